"""The Bare Metal Sovereignty Test: seven questions, answered from evidence and nothing else.

Pure: statements of the evidence log in, answers out. A question without fresh evidence is NOT PROVEN, never PASS; an
answer names the leaves of the log that it rests on, so that an auditor can read them.
"""

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any

import msgspec

from freehold.out_of_band.hardening import directories


class Verdict(StrEnum):
    PASS = "PASS"  # noqa: S105
    DEGRADED = "DEGRADED"
    NON_SOVEREIGN = "NON-SOVEREIGN"
    NOT_PROVEN = "NOT PROVEN"


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """One statement of the log: `name` is the last part of its predicate type, `index` its leaf."""

    index: int
    name: str
    subject: str
    predicate: dict[str, Any]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    number: int
    question: str
    verdict: Verdict
    reason: str
    evidence: tuple[int, ...] = ()


class Run:
    """The claims of one run about one server."""

    def __init__(self, claims: Iterable[Claim], server: str) -> None:
        self.claims = tuple(claims)
        self.server = server

    def of(self, name: str, **wanted: object) -> list[Claim]:
        """Claims of that name about the server (or about the whole site), with those values in the predicate."""
        return [
            claim
            for claim in self.claims
            if claim.name == name
            and claim.predicate.get("server", self.server) == self.server
            and all(claim.predicate.get(key) == value for key, value in wanted.items())
        ]


Finding = tuple[Verdict, str, list[Claim]]


def offline_rebuild(run: Run) -> Finding:
    egress, images = run.of("egress"), run.of("image", read_back=True)
    active = run.of("transition", to="active")
    if not egress:
        return Verdict.NOT_PROVEN, "nobody counted what tried to leave", []
    if (leak := leaked(egress)) is not None:
        return leak[0], leak[1], egress
    if not (images and active):
        return Verdict.NOT_PROVEN, "no server went from a blank disk to a ready OS in this run", images + active
    if not images[-1].predicate.get("disk_was_blank"):
        return Verdict.DEGRADED, "the server was rebuilt offline, but its disk was not blank", images + active
    return Verdict.PASS, "blank disk to ready OS with every outside path cut", [images[-1], active[-1], egress[-1]]


def leaked(egress: list[Claim]) -> tuple[Verdict, str] | None:
    """Why the count of what tried to leave does not stand for 'nothing left'; None if it does."""
    counts = egress[-1].predicate
    if not (_positive(counts.get("control_packets")) and _positive(counts.get("control_lookups"))):
        return Verdict.NOT_PROVEN, "the counter was not shown to work: the control attempt was not counted"
    packets, lookups = counts.get("packets"), counts.get("lookups")
    if packets != 0 or lookups != 0:
        return Verdict.NON_SOVEREIGN, f"{packets} packets and {lookups} name look-ups tried to leave"
    return None


def bmc_credentials(run: Run) -> Finding:
    claims = run.of("credential")
    if not claims:
        return Verdict.NOT_PROVEN, "no BMC credential was taken over in this run", []
    last = claims[-1].predicate
    if not (last.get("unique") is True and last.get("stored") == "vault"):
        return Verdict.NON_SOVEREIGN, "the BMC credential is shared, or not in the local vault", claims
    if not last.get("factory_accounts_disabled"):
        return Verdict.NON_SOVEREIGN, "a factory account is still enabled", claims
    if not run.of("credential", event="rotated", why="schedule"):
        return Verdict.DEGRADED, "unique and in the local vault; rotation on schedule has no evidence yet", claims
    return Verdict.PASS, "unique, rotated on schedule, in the local vault", claims


def bmc_isolation(run: Run) -> Finding:
    claims = run.of("posture", kind="reachability")
    if not claims:
        return Verdict.NOT_PROVEN, "nobody tried to reach the BMC from the other networks", []
    attempts = [attempt for claim in claims for attempt in claim.predicate.get("attempts", [])]
    # A refusal is an answer: the path is there, only the port is shut.
    reached = [attempt for attempt in attempts if attempt.get("outcome") not in ("timeout", "unreachable")]
    if reached:
        first = reached[0]
        return Verdict.NON_SOVEREIGN, f"the BMC answers from {first.get('from')}", claims
    places = {str(attempt.get("from")) for attempt in attempts}
    if not any(place.startswith("production") for place in places):
        return Verdict.NOT_PROVEN, "nobody tried from the production network", claims
    if not all(claim.predicate.get("control") == "connected" for claim in claims):
        return Verdict.NOT_PROVEN, "the probe was not shown to work: it reached nothing at all", claims
    return Verdict.PASS, f"unreachable from {', '.join(sorted(places))}", claims


def firmware_chain(run: Run) -> Finding:
    claims = run.of("firmware")
    if not claims:
        return Verdict.NOT_PROVEN, "no firmware package was staged, verified and applied in this run", []
    if not all(claim.predicate.get("staged_locally") and claim.predicate.get("verified") for claim in claims):
        return Verdict.NON_SOVEREIGN, "firmware was applied without verification, or fetched from outside", claims
    return Verdict.PASS, "every package staged locally and verified on the bytes that were sent", claims


def measured_boot(run: Run) -> Finding:
    boots, attestations = run.of("boot-config"), run.of("attestation")
    if not attestations:
        let_in = run.of("admission")
        why = f"; {len(let_in)} were let in by ticket, which proves nothing of what they booted" if let_in else ""
        return Verdict.NOT_PROVEN, f"no boot was attested in this run{why}", let_in
    # Whoever has a TPM can come to the door with this server's MAC address; its own TPM cannot be had by that.
    own = {claim.predicate["ek_sha256"] for claim in run.of("inventory", source="tpm")}
    attestations = [each for each in attestations if not own or each.predicate.get("ek_sha256") in (None, *own)]
    refused = [claim for claim in attestations if claim.predicate.get("trusted") is not True]
    if refused:
        return Verdict.NON_SOVEREIGN, f"a boot was refused: {refused[0].predicate.get('reasons')}", refused
    revoked = [claim for claim in attestations if claim.predicate.get("revoked_image")]
    if revoked:
        return Verdict.DEGRADED, "a boot was attested of an image that the newest Secure Boot keys refuse", revoked
    attested = len({claim.predicate.get("boot_id") for claim in attestations})
    if attested < len(boots):
        return Verdict.DEGRADED, f"{len(boots)} boots, but only {attested} were attested", attestations
    references = [claim for claim in run.of("posture", kind="firmware-reference") if approvals(claim) >= 2]
    approved = {claim.predicate["firmware"] for claim in references if claim.predicate.get("firmware")}
    # A staging boot comes before the approval of what it measured; it counts if just that was approved later.
    unknown = [
        claim
        for claim in attestations
        if claim.predicate.get("reference") != "approved" and claim.predicate.get("firmware") not in approved
    ]
    if unknown:
        reason = f"all {attested} boots attested, but PCR 0 and 2 of {len(unknown)} are not what two people approved"
        return Verdict.DEGRADED, reason, unknown
    return Verdict.PASS, f"all {attested} boots gave the expected PCR values", attestations + references


def approvals(claim: Claim) -> int:
    """How many different people the claim says that approved."""
    return len(set(claim.predicate.get("approved_by") or ()))


def verified_decommission(run: Run) -> Finding:
    certificates = run.of("decommission-certificate")
    if not certificates:
        return Verdict.NOT_PROVEN, "no server was decommissioned in this run", []
    media = certificates[-1].predicate.get("media", [])
    if not media or not all(medium.get("clean") is True for medium in media):
        return Verdict.NON_SOVEREIGN, "a medium was not proven clean", certificates
    if missing := certificates[-1].predicate.get("missing_media"):
        claims = certificates + run.of("waiver")
        return Verdict.DEGRADED, f"under a waiver, {len(missing)} media are unaccounted for", claims
    if not run.of("key-destruction"):
        return Verdict.DEGRADED, "media are clean, but the destruction of the keys is not recorded", certificates
    return Verdict.PASS, f"{len(media)} media sanitized, read back and certified", certificates


def offline_test_age(run: Run) -> Finding:
    egress = run.of("egress")
    if not egress:
        return Verdict.NOT_PROVEN, "never under measured network loss", []
    if (leak := leaked(egress)) is not None:
        return leak[0], leak[1], egress
    verdict, reason, claims = offline_rebuild(run)
    if verdict is not Verdict.PASS:
        return verdict, reason, claims
    return Verdict.PASS, f"in this run, which ended {egress[-1].predicate.get('until')}", egress


QUESTIONS: tuple[tuple[str, Callable[[Run], Finding]], ...] = (
    ("Provision a server from bare disk to OS ready with no external reachability?", offline_rebuild),
    ("BMC credentials unique per server, rotated on schedule, in a locally controlled vault?", bmc_credentials),
    ("BMC network isolated from production and provisioning networks?", bmc_isolation),
    ("Firmware packages staged locally and cryptographically verified before application?", firmware_chain),
    ("Measured boot with TPM 2.0 attestation producing expected PCR values on every boot?", measured_boot),
    (
        "Decommission with cryptographic verification of data destruction and an auditable record?",
        verified_decommission,
    ),
    ("When was offline provisioning last tested under simulated external network loss?", offline_test_age),
)


def _under_the_ca(claim: Claim) -> bool:
    return claim.name == "bmc-identity" and str(claim.predicate.get("method", "")).startswith("certificate of")


def _keys_enrolled(claim: Claim) -> bool:
    return claim.name == "secure-boot" and "written_by" in claim.predicate


def _no_account_waived(claim: Claim) -> bool:
    return claim.name == "credential" and not claim.predicate.get("waived_accounts")


def _ipmi_silent(claim: Claim) -> bool:
    return claim.predicate.get("kind") == "ipmi" and claim.predicate.get("probe", {}).get("present") is False


def _no_directory(claim: Claim) -> bool:
    return "left_open" in claim.predicate and not directories(claim.predicate["left_open"])


def _tpm_bound(claim: Claim) -> bool:
    return claim.name == "inventory" and claim.predicate.get("ek_sha256") is not None


_UNVOUCHED = "what tells it is an agent that no TPM vouches for"

WAIVED: tuple[tuple[int, str, Callable[[Claim], bool], str], ...] = (
    (1, "missing-tpm", _tpm_bound, _UNVOUCHED),
    (2, "bmc-account", _no_account_waived, "its BMC has an account that is not ours"),
    (2, "bmc-directory", _no_directory, "its BMC lets in whom a directory vouches for"),
    (2, "ipmi", _ipmi_silent, "its BMC answers IPMI, which gives a password's hash to whoever asks"),
    (2, "bmc-certificate", _under_the_ca, "its BMC serves no certificate of the site's CA"),
    (5, "secure-boot-databases", _keys_enrolled, "its firmware has not the site's Secure Boot keys"),
    (5, "missing-tpm", _tpm_bound, "it had no TPM"),
    (6, "missing-tpm", _tpm_bound, _UNVOUCHED),
    (7, "missing-tpm", _tpm_bound, _UNVOUCHED),
)
"""Question, the waiver that lowers its answer, the claim after which it does not any more, and why it does."""


def under_waiver(run: Run, number: int, found: Finding) -> Finding:
    """No question is answered PASS by what two people signed that it may be missing. The missing medium is judged
    with its question."""
    for question, finding, mends, lack in WAIVED:
        verdict, reason, claims = found
        if question != number or verdict not in (Verdict.PASS, Verdict.DEGRADED):
            continue
        names = ("bmc-identity", "credential", "secure-boot", "posture", "inventory")
        mended = max((claim.index for name in names for claim in run.of(name) if mends(claim)), default=-1)
        used = [*run.of("waiver", finding=finding), *run.of("admission", finding=finding)]
        waivers = sorted((claim for claim in used if claim.index > mended), key=lambda claim: claim.index)
        if waivers:
            found = (Verdict.DEGRADED, f"{reason}; but {lack}, under a waiver", claims + waivers)
    return found


def answer(run: Run) -> tuple[Answer, ...]:
    """The seven answers, in the order of the test."""
    answers = []
    for number, (question, judge) in enumerate(QUESTIONS, 1):
        verdict, reason, claims = under_waiver(run, number, judge(run))
        leaves = tuple(claim.index for claim in claims)
        answers.append(Answer(number=number, question=question, verdict=verdict, reason=reason, evidence=leaves))
    return tuple(answers)


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
