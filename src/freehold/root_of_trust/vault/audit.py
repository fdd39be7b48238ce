"""What is wrong with a vault, said to a person. Pure."""

from collections.abc import Iterator, Sequence

from freehold.model.findings import Finding, Severity
from freehold.root_of_trust.vault.interface import RecordReport


def findings(
    kind: str, people: int | None, reports: Sequence[RecordReport], stale_keys: Sequence[str]
) -> Iterator[Finding]:
    """`kind`: of the key's place, as custody.json names it. `people`: how many can recover by pairs; None: not ours to
    say. `stale_keys`: key files that open nothing any more."""
    if kind in ("file", "passphrase"):
        yield Finding(
            severity=Severity.WARNING,
            kind="development-key",
            subject="vault",
            detail=f"the vault's key is a {kind}: for development only",
            remedy="`freehold vault rekey --kek …` to a PKCS#11 token, a TPM or OpenBao",
        )
    if people == 0:
        yield Finding(
            severity=Severity.WARNING,
            kind="no-recovery",
            subject="vault",
            detail="nobody can recover the vault: with its key, every secret is lost",
            remedy="`freehold vault rekey --recovery alice=age1… --recovery bob=age1…`",
        )
    for report in reports:
        if report.problem is not None:
            yield Finding(
                severity=Severity.CRITICAL,
                kind="tampered-record",
                subject=report.path,
                detail=f"version {report.version}: {report.problem}",
                remedy="find out who writes there; restore the record from a copy of the vault",
            )
        elif report.recoverable is False and people:
            yield Finding(
                severity=Severity.WARNING,
                kind="no-recovery-wrap",
                subject=report.path,
                detail="this secret cannot be recovered by two people",
                remedy="write it again, or `freehold vault rekey`",
            )
    for name in stale_keys:
        yield Finding(
            severity=Severity.WARNING,
            kind="stale-key-file",
            subject=name,
            detail="this key file opens nothing in this vault any more, but it may open an old copy",
            remedy=f"remove it: shred -u {name}",
        )
