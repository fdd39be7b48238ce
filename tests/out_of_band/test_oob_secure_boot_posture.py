"""Secure Boot databases against the keys that a server was given."""

from pathlib import Path

import msgspec
import pytest
from oob_support import Keys

from freehold.model.findings import Severity
from freehold.out_of_band.secure_boot import KeyDatabases, SecureBootState
from freehold.out_of_band.secure_boot_posture import secure_boot_findings


@pytest.fixture
def wanted(tmp_path: Path) -> KeyDatabases:
    pems = {name: (Keys(tmp_path, name).pem,) for name in ("PK", "KEK", "db")}
    return KeyDatabases(certificates=pems, dbx=("ab" * 32,))


@pytest.fixture
def right(wanted: KeyDatabases) -> SecureBootState:
    held = {name: entries for name, entries in wanted.entries.items() if name != "dbx"} | {"dbx": ()}
    signatures = {"dbx": ("ab" * 32, "cd" * 32)}  # the firmware forbids one more
    return SecureBootState(enabled=True, active=True, mode="UserMode", databases=held, signatures=signatures)


def kinds(state: SecureBootState | None, wanted: KeyDatabases) -> list[tuple[str, str]]:
    return [(found.kind, found.severity) for found in secure_boot_findings(state, wanted, subject="server-1")]


def test_what_the_site_enrolled_is_clean(right: SecureBootState, wanted: KeyDatabases) -> None:
    assert kinds(right, wanted) == []
    hidden = msgspec.structs.replace(right, signatures={})
    assert kinds(hidden, wanted) == []


def test_a_foreign_key_is_named_with_its_fingerprint(right: SecureBootState, wanted: KeyDatabases) -> None:
    held = right.databases | {"db": (*right.databases["db"], "ee" * 32)}
    (found,) = secure_boot_findings(msgspec.structs.replace(right, databases=held), wanted, subject="server-1")
    assert (found.kind, found.severity, found.evidence) == ("secure-boot-foreign-key", Severity.CRITICAL, "ee" * 32)
    assert found.detail == "db holds 1 that the site did not put there: who has it decides what starts"


def test_what_is_missing_or_off_is_critical(right: SecureBootState, wanted: KeyDatabases) -> None:
    off = msgspec.structs.replace(right, enabled=False)
    assert kinds(off, wanted) == [("secure-boot-off", "critical")]
    (found,) = secure_boot_findings(off, wanted, subject="server-1")
    assert found.evidence == "SecureBoot: SecureBootEnable is not true, SecureBootMode is UserMode"
    setup = msgspec.structs.replace(right, databases=right.databases | {"PK": ()}, signatures={"dbx": ()})
    assert kinds(setup, wanted) == [("secure-boot-key-missing", "critical")] * 2


def test_a_bmc_that_shows_nothing_is_a_remark(right: SecureBootState, wanted: KeyDatabases) -> None:
    assert kinds(None, wanted) == [("secure-boot-unseen", "info")]
    assert kinds(msgspec.structs.replace(right, databases={}), wanted) == [("secure-boot-unseen", "info")]
    for state, read in (
        (None, "its System has no SecureBoot resource"),
        (msgspec.structs.replace(right, databases={}), "SecureBoot: no SecureBootDatabases; SecureBootMode is User"),
    ):
        (found,) = secure_boot_findings(state, wanted, subject="server-1")
        assert found.evidence.startswith(read)
