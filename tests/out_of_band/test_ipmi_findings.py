"""What the answers of an IPMI port mean."""

import msgspec
import pytest

from freehold.model.findings import Severity
from freehold.out_of_band.ipmi.findings import IPMI_KINDS, ipmi_findings
from freehold.out_of_band.ipmi.probe import IpmiPosture

SILENT = IpmiPosture(address="172.30.1.11", silence="no answer")
PRESENT = IpmiPosture(address="172.30.1.11", present=True, versions=("2.0",))
WORST = IpmiPosture(
    address="172.30.1.11",
    present=True,
    versions=("1.5", "2.0"),
    auth_types=("none", "md2", "md5", "password"),
    anonymous=True,
    null_user=True,
    cipher_suites=(0, 3, 8, 17),
    cipher_zero=True,
    challenged=("", "root"),
    users=("", "root"),
    hashes=("", "root"),
    unanswered=("RAKP message 1 for 'ADMIN' (status 0x01)",),
)


def kinds(posture: IpmiPosture, declared: bool | None) -> dict[str, Severity]:
    found = ipmi_findings(posture, subject="s1", declared=declared)
    assert all(finding.evidence.strip() and finding.remedy.strip() for finding in found)
    return {finding.kind: finding.severity for finding in found}


def test_silence_is_a_finding_only_if_redfish_says_that_ipmi_is_on() -> None:
    assert kinds(SILENT, False) == kinds(SILENT, None) == {}
    assert kinds(SILENT, True) == {"ipmi-silent": Severity.INFO}


def test_a_bmc_that_was_switched_off_and_answers_is_critical() -> None:
    assert kinds(PRESENT, False) == {"ipmi-still-answers": Severity.CRITICAL}
    assert kinds(PRESENT, True) == kinds(PRESENT, None) == {"ipmi-answers": Severity.WARNING}


def test_every_weakness_is_named_with_its_evidence_and_what_to_do() -> None:
    findings = ipmi_findings(WORST, subject="s1", declared=True)
    assert {finding.kind for finding in findings if finding.severity is Severity.CRITICAL} == {
        "ipmi-cipher-zero",
        "ipmi-anonymous",
        "ipmi-auth-none",
        "ipmi-hash-disclosed",
    }
    assert {finding.kind for finding in findings} <= IPMI_KINDS
    assert all(finding.evidence and finding.remedy and finding.subject == "s1" for finding in findings)
    text = {finding.kind: f"{finding.detail} | {finding.evidence}" for finding in findings}
    assert "CVE-2013-4782, -4783, -4784" in text["ipmi-cipher-zero"]
    assert "CVE-2013-4786" in text["ipmi-hash-disclosed"]
    assert "the null user, root" in text["ipmi-hash-disclosed"]
    assert "without password to the null user, root" in text["ipmi-auth-none"]
    assert "cipher suites 0, 8 are" in text["ipmi-weak-cipher-suites"]
    assert "status 0x01" in text["ipmi-unanswered"]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"cipher_zero": False}, "ipmi-cipher-zero"),
        ({"anonymous": False, "null_user": False}, "ipmi-anonymous"),
        ({"auth_types": ("md5",)}, "ipmi-auth-none"),
        ({"auth_types": ("none", "md5")}, "ipmi-weak-auth"),
        ({"hashes": ()}, "ipmi-hash-disclosed"),
        ({"users": ()}, "ipmi-default-user"),
        ({"cipher_suites": (3, 17)}, "ipmi-weak-cipher-suites"),
        ({"unanswered": ()}, "ipmi-unanswered"),
    ],
)
def test_each_finding_needs_its_cause(change: dict[str, object], kind: str) -> None:
    assert kind in kinds(WORST, True)
    assert kind not in kinds(msgspec.structs.replace(WORST, **change), True)


def test_a_null_user_with_a_password_is_less_than_an_anonymous_one() -> None:
    found = kinds(msgspec.structs.replace(WORST, anonymous=False), True)
    assert found["ipmi-null-user"] is Severity.WARNING
    assert "ipmi-anonymous" not in found


def test_a_hash_for_any_name_is_told_with_its_doubt() -> None:
    doubtful = msgspec.structs.replace(PRESENT, hashes=("root",), any_name=True)
    (found,) = [f for f in ipmi_findings(doubtful, subject="s1", declared=True) if f.kind == "ipmi-hash-disclosed"]
    assert "a made-up name was answered so, too" in found.evidence
