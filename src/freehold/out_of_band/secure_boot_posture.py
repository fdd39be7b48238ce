"""What the Secure Boot databases of a server amount to, held against the keys that it was given. Pure."""

from freehold.model.findings import Finding, Severity
from freehold.out_of_band.secure_boot import KeyDatabases, SecureBootState

REMEDY = (
    "find out who wrote to its BMC; its next boot is quarantined by PCR 7. Put the site's keys back: let drift "
    "remediate them (Policy), or decommission it, which enrols them anew"
)


def secure_boot_findings(state: SecureBootState | None, wanted: KeyDatabases, *, subject: str) -> list[Finding]:
    """`state` is None where the BMC tells nothing of Secure Boot. Its word is a hint; PCR 7 is the proof."""
    if state is None or not state.databases:
        detail = "the BMC does not show the Secure Boot databases: only PCR 7 of its boots tells what they hold"
        remedy = "none: attestation checks it at every boot"
        return [
            Finding(
                severity=Severity.INFO,
                kind="secure-boot-unseen",
                subject=subject,
                detail=detail,
                evidence=_unseen(state),
                remedy=remedy,
            )
        ]
    found = []
    if not state.enabled:
        read = f"SecureBoot: SecureBootEnable is not true, SecureBootMode is {state.mode or 'absent'}"
        found.append(_critical("secure-boot-off", subject, "Secure Boot is off: the next boot starts anything", read))
    for name, ours in wanted.entries.items():
        if name == "dbx" and name not in state.signatures:
            continue  # the BMC does not show it
        held = state.entries.get(name, ())
        foreign, missing = sorted(set(held) - set(ours)), sorted(set(ours) - set(held))
        if foreign and name != "dbx":  # what the firmware forbids beside ours may stay
            detail = f"{name} holds {len(foreign)} that the site did not put there: who has it decides what starts"
            found.append(_critical("secure-boot-foreign-key", subject, detail, ", ".join(foreign)))
        if missing:
            detail = f"{name} lacks {len(missing)} of the site's"
            found.append(_critical("secure-boot-key-missing", subject, detail, ", ".join(missing)))
    return found


def _unseen(state: SecureBootState | None) -> str:
    if state is None:
        return "its System has no SecureBoot resource that can be read"
    return f"SecureBoot: no SecureBootDatabases; SecureBootMode is {state.mode or 'absent'}"


def _critical(kind: str, subject: str, detail: str, evidence: str) -> Finding:
    return Finding(
        severity=Severity.CRITICAL, kind=kind, subject=subject, detail=detail, evidence=evidence, remedy=REMEDY
    )
