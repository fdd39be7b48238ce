"""What the answers of an IPMI port mean. Pure."""

from freehold.model.findings import Finding, Severity
from freehold.out_of_band.ipmi.packets import SUITES
from freehold.out_of_band.ipmi.probe import IpmiPosture

_OFF = "turn IPMI over LAN off; until then keep UDP 623 within the out-of-band network"
IPMI_KINDS = frozenset(
    {
        "ipmi-silent", "ipmi-still-answers", "ipmi-answers", "ipmi-cipher-zero", "ipmi-anonymous", "ipmi-null-user",
        "ipmi-auth-none", "ipmi-weak-auth", "ipmi-hash-disclosed", "ipmi-default-user", "ipmi-weak-cipher-suites",
        "ipmi-unanswered",
    }
)  # fmt: skip
"""Every kind that `ipmi_findings` may give."""
_NO_AES = {suite for suite, (_, _, confidentiality) in SUITES.items() if confidentiality != 1}
_MD5 = {suite for suite, (authentication, _, _) in SUITES.items() if authentication == 2}


def ipmi_findings(posture: IpmiPosture, *, subject: str, declared: bool | None) -> list[Finding]:
    """`declared`: what Redfish says of IPMI over LAN, None if it does not. Silence is as it should be, unless Redfish
    says that IPMI is on: then what could be asked of it is not known."""
    where = f"UDP {posture.address} port {posture.port}"
    found: list[Finding] = []

    def note(severity: Severity, kind: str, detail: str, evidence: str, remedy: str = _OFF) -> None:
        found.append(
            Finding(severity=severity, kind=kind, subject=subject, detail=detail, remedy=remedy, evidence=evidence)
        )

    if not posture.present:
        if declared:
            note(
                Severity.INFO,
                "ipmi-silent",
                "Redfish says that IPMI is on, but it does not answer here: how it stands is not known",
                f"{where}: {posture.silence}",
                "turn IPMI over LAN off; or probe from a host that reaches it",
            )
        return found
    spoken = f"{where} answered, IPMI {' and '.join(posture.versions) or 'of unknown version'}"
    if declared is False:
        note(
            Severity.CRITICAL,
            "ipmi-still-answers",
            "IPMI was switched off, and the BMC answers it still",
            spoken,
            "restart the BMC and probe again; if that does not help, block UDP 623 at its network port",
        )
    else:
        note(Severity.WARNING, "ipmi-answers", "the BMC speaks IPMI over LAN", spoken)
    if posture.cipher_zero:
        note(
            Severity.CRITICAL,
            "ipmi-cipher-zero",
            "a session without authentication can be opened: any password will do (CVE-2013-4782, -4783, -4784)",
            "Open Session Request with cipher suite 0: accepted with algorithms none/none/none",
        )
    if posture.anonymous:
        note(
            Severity.CRITICAL,
            "ipmi-anonymous",
            "a user without name and password is enabled",
            "Get Channel Authentication Capabilities: anonymous log-in enabled",
        )
    elif posture.null_user:
        note(
            Severity.WARNING,
            "ipmi-null-user",
            "a user without a name is enabled",
            "Get Channel Authentication Capabilities, or the empty name was accepted",
        )
    if "none" in posture.auth_types:
        began = f"; challenge given without password to {_names(posture.challenged)}" if posture.challenged else ""
        note(
            Severity.CRITICAL,
            "ipmi-auth-none",
            "IPMI 1.5 sessions need no password",
            f"Get Channel Authentication Capabilities: {', '.join(posture.auth_types)}{began}",
        )
    if weak := [name for name in posture.auth_types if name in ("password", "md2")]:
        note(
            Severity.WARNING,
            "ipmi-weak-auth",
            f"IPMI 1.5 offers {' and '.join(weak)}: a password in the clear, or a broken digest of it",
            f"Get Channel Authentication Capabilities: {', '.join(posture.auth_types)}",
        )
    if posture.hashes:
        doubt = "; a made-up name was answered so, too" if posture.any_name else ""
        note(
            Severity.CRITICAL,
            "ipmi-hash-disclosed",
            f"a hash of the password of {_names(posture.hashes)} is given before log-in, to be guessed offline"
            " (CVE-2013-4786)",
            f"RAKP message 1 with these names: message 2 had a key exchange authentication code{doubt}",
        )
    if posture.users:
        note(
            Severity.WARNING,
            "ipmi-default-user",
            f"factory user names exist: {_names(posture.users)}",
            "Get Session Challenge or RAKP message 1 accepted them, and not a made-up name",
            "rename or disable them, or turn IPMI over LAN off",
        )
    if weak_suites := [suite for suite in posture.cipher_suites if suite in _NO_AES | _MD5]:
        note(
            Severity.WARNING,
            "ipmi-weak-cipher-suites",
            f"cipher suites {', '.join(map(str, weak_suites))} are without AES or use MD5",
            f"Get Channel Cipher Suites: {', '.join(map(str, posture.cipher_suites))}",
            "leave suite 17 only (3 on older BMCs), or turn IPMI over LAN off",
        )
    if posture.unanswered:
        note(
            Severity.INFO,
            "ipmi-unanswered",
            "some questions were not answered: what they would have shown is not known",
            "; ".join(posture.unanswered),
            "probe again",
        )
    return found


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(name or "the null user" for name in names)
