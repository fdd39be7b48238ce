import msgspec
import pytest

from freehold.sovereignty.maturity import maturity
from freehold.sovereignty.questions import Claim, Run, Verdict, answer

EGRESS = {"packets": 0, "lookups": 0, "control_packets": 3, "control_lookups": 1, "until": "2026-11-23T12:00:00Z"}
ATTEMPTS = [
    {"from": "production (client)", "outcome": "timeout"},
    {"from": "provisioning (agent)", "outcome": "timeout"},
]
ROTATED = {
    "unique": True, "stored": "vault", "factory_accounts_disabled": ["root"], "event": "rotated", "why": "schedule",
}  # fmt: skip
WHOLE = [
    ("credential", {"unique": True, "stored": "vault", "factory_accounts_disabled": ["root"]}),
    ("credential", ROTATED),
    ("posture", {"kind": "reachability", "attempts": ATTEMPTS, "control": "connected"}),
    ("firmware", {"staged_locally": True, "verified": True}),
    ("boot-config", {}),
    ("attestation", {"trusted": True, "reference": "approved"}),
    ("image", {"read_back": True, "disk_was_blank": True}),
    ("transition", {"to": "active"}),
    ("key-destruction", {}),
    ("decommission-certificate", {"media": [{"clean": True}]}),
    ("egress", EGRESS),
]


def run(changes=(), without=()):
    claims = [
        Claim(index=i, name=name, subject="s1", predicate={"server": "s1"} | predicate)
        for i, (name, predicate) in enumerate([*(c for c in WHOLE if c[0] not in without), *changes])
    ]
    return Run(claims, "s1")


def verdicts(a_run):
    return [a.verdict for a in answer(a_run)]


def test_whole_evidence_passes_and_is_stage_four():
    answers = answer(run())
    assert [a.verdict for a in answers] == [Verdict.PASS] * 7
    assert maturity(answers).stage == 4
    assert all(a.evidence for a in answers)


def test_a_password_that_was_only_changed_when_somebody_asked_shows_no_schedule():
    asked = answer(run([("credential", ROTATED | {"why": "asked"})], without=("credential",)))
    assert asked[1].verdict is Verdict.DEGRADED
    assert "on schedule has no evidence" in asked[1].reason


def test_no_evidence_is_not_proven_and_stage_one():
    answers = answer(Run([], "s1"))
    assert {a.verdict for a in answers} == {Verdict.NOT_PROVEN}
    assert maturity(answers).stage == 1


CERTIFIED = ("bmc-identity", {"method": "certificate of the site's BMC CA"})
WITH_ANOTHER = ("credential", ROTATED | {"waived_accounts": ["field"]})
SILENT = ("posture", {"kind": "ipmi", "probe": {"present": False}})
ANSWERS = ("posture", {"kind": "ipmi", "probe": {"present": True}})
CLOSED = ("posture", {"kind": "services", "left_open": ["SNMP"]})
LETS_IN = ("posture", {"kind": "services", "left_open": ["directory LDAP"]})
ENROLLED = ("secure-boot", {"generation": 1, "written_by": "the BMC"})


@pytest.mark.parametrize(
    ("number", "finding", "mended", "others"),
    [
        (2, "bmc-certificate", CERTIFIED, [("bmc-identity", {"method": "accepted by eve"}), ENROLLED]),
        (2, "bmc-account", ("credential", ROTATED), [WITH_ANOTHER, CERTIFIED]),
        (2, "ipmi", SILENT, [ANSWERS, CERTIFIED, CLOSED]),
        (2, "bmc-directory", CLOSED, [LETS_IN, ("credential", ROTATED), SILENT]),
        (5, "secure-boot-databases", ENROLLED, [("secure-boot", {"event": "generation"}), CERTIFIED]),
    ],
)
def test_what_a_waiver_lets_be_missing_is_never_a_pass(number, finding, mended, others):
    lowered = ("waiver", {"finding": finding})
    for changes in ([lowered], [mended, lowered]):
        answers = answer(run(changes))
        assert [each.number for each in answers if each.verdict is not Verdict.PASS] == [number]
        assert answers[number - 1].verdict is Verdict.DEGRADED
        assert "under a waiver" in answers[number - 1].reason
        assert maturity(answers).stage == 3
    assert verdicts(run([lowered, mended])) == [Verdict.PASS] * 7
    assert verdicts(run([lowered, *(each for each in others if each != mended)]))[number - 1] is Verdict.DEGRADED


NO_TPM = [
    ("waiver", {"finding": "missing-tpm"}),
    ("admission", {"finding": "missing-tpm", "method": "ticket", "attested": False}),
]


@pytest.mark.parametrize("told", [NO_TPM[:1], NO_TPM[1:], NO_TPM])
def test_a_server_without_a_tpm_passes_nothing_that_its_agent_tells_and_no_measured_boot(told):
    answers = answer(run(told, without=("attestation",)))
    assert [each.number for each in answers if each.verdict is not Verdict.PASS] == [1, 5, 6, 7]
    assert answers[4].verdict is Verdict.NOT_PROVEN
    for number in (1, 6, 7):
        assert answers[number - 1].verdict is Verdict.DEGRADED
        assert "what tells it is an agent that no TPM vouches for, under a waiver" in answers[number - 1].reason
    assert maturity(answers).stage == 2
    let_in = sum(name == "admission" for name, _ in told)
    assert ("let in by ticket, which proves nothing of what they booted" in answers[4].reason) is bool(let_in)


def test_some_boots_by_ticket_degrade_what_was_attested_until_a_tpm_is_bound():
    degraded = answer(run(NO_TPM))
    assert degraded[4].verdict is Verdict.DEGRADED
    assert "it had no TPM, under a waiver" in degraded[4].reason
    assert verdicts(run([*NO_TPM, ("inventory", {"source": "tpm", "ek_sha256": "e" * 64})])) == [Verdict.PASS] * 7
    assert verdicts(run([*NO_TPM, ("inventory", {"source": "tpm", "ek_sha256": None})]))[0] is Verdict.DEGRADED


@pytest.mark.parametrize(
    ("number", "change", "verdict"),
    [
        (1, ("egress", EGRESS | {"packets": 1}), Verdict.NON_SOVEREIGN),
        (1, ("egress", EGRESS | {"lookups": 1}), Verdict.NON_SOVEREIGN),
        (1, ("egress", EGRESS | {"control_packets": 0}), Verdict.NOT_PROVEN),
        (1, ("egress", EGRESS | {"control_lookups": None}), Verdict.NOT_PROVEN),
        (1, ("image", {"read_back": True}), Verdict.DEGRADED),
        (2, ("credential", {"unique": False, "stored": "vault"}), Verdict.NON_SOVEREIGN),
        (2, ("credential", {"unique": True, "stored": "vault"}), Verdict.NON_SOVEREIGN),
        (
            3,
            ("posture", {"kind": "reachability", "attempts": [{"from": "production", "outcome": "connected"}]}),
            Verdict.NON_SOVEREIGN,
        ),
        (3, ("posture", {"kind": "reachability", "attempts": ATTEMPTS, "control": "timeout"}), Verdict.NOT_PROVEN),
        (4, ("firmware", {"staged_locally": True, "verified": False}), Verdict.NON_SOVEREIGN),
        (5, ("attestation", {"trusted": False, "reasons": ["PCR 4"]}), Verdict.NON_SOVEREIGN),
        (5, ("attestation", {"trusted": True, "reference": "learned"}), Verdict.DEGRADED),
        (5, ("attestation", {"trusted": True, "reference": "approved", "revoked_image": True}), Verdict.DEGRADED),
        (6, ("decommission-certificate", {"media": [{"clean": False}]}), Verdict.NON_SOVEREIGN),
        (6, ("decommission-certificate", {"media": []}), Verdict.NON_SOVEREIGN),
        (7, ("egress", EGRESS | {"packets": 9}), Verdict.NON_SOVEREIGN),
    ],
)
def test_one_bad_fact_changes_the_answer(number, change, verdict):
    answers = answer(run([change]))
    assert answers[number - 1].verdict is verdict
    assert maturity(answers).stage < 4


@pytest.mark.parametrize(
    ("number", "without"),
    [
        (1, "image"),
        (2, "credential"),
        (3, "posture"),
        (4, "firmware"),
        (5, "attestation"),
        (6, "decommission-certificate"),
    ],
)
def test_missing_evidence_is_never_a_pass(number, without):
    assert verdicts(run(without=(without,)))[number - 1] is Verdict.NOT_PROVEN


def test_another_servers_evidence_does_not_count():
    other = [msgspec.structs.replace(c, predicate=c.predicate | {"server": "s2"}) for c in run().claims]
    assert set(verdicts(Run(other, "s1"))) == {Verdict.NOT_PROVEN}


def test_stage_three_without_attestation_and_stage_two_without_firmware():
    assert maturity(answer(run(without=("attestation",)))).stage == 3
    assert maturity(answer(run(without=("firmware",)))).stage == 2


STAGING = ("attestation", {"trusted": True, "reference": "none yet", "firmware": "f1", "boot_id": "b0"})


@pytest.mark.parametrize(
    ("later", "verdict"),
    [
        ([], Verdict.DEGRADED),
        ([{"firmware": "f1", "approved_by": ["ann"]}], Verdict.DEGRADED),
        ([{"firmware": "f1", "approved_by": ["ann", "ann"]}], Verdict.DEGRADED),
        ([{"firmware": "f2", "approved_by": ["ann", "bob"]}], Verdict.DEGRADED),
        ([{"approved_by": ["ann", "bob"]}], Verdict.DEGRADED),
        ([{"firmware": "f1", "approved_by": ["ann", "bob"]}], Verdict.PASS),
    ],
)
def test_a_staging_boot_counts_once_two_people_approved_what_it_measured(later, verdict):
    claims = [("posture", {"kind": "firmware-reference"} | each) for each in later]
    assert verdicts(run([STAGING, *claims]))[4] is verdict
