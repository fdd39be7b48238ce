"""`verify` and `evidence`: an auditor's view of a real log with the site's real keys."""

import json
import os
import shutil
from pathlib import Path

import pytest
from cli_support import Shell

from freehold.evidence import Ed25519Signer, Predicate, Statement, Subject
from freehold.orchestration.opening import open_log, open_vault
from freehold.root_of_trust.keys import SiteKeys


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with five statements, exported."""
    directory = tmp_path_factory.mktemp("site") / "state"
    directory.mkdir()
    keys = SiteKeys.create(directory, open_vault(directory), "lab", ["172.30.2.2"], bmc_networks=["172.30.1.0/24"])
    kinds = [Predicate.TRANSITION, Predicate.ATTESTATION, Predicate.SANITIZATION, Predicate.DECOMMISSION_CERTIFICATE]
    with open_log(directory, "lab", keys) as log:
        for kind in kinds:
            facts = {"server": "server-1", "to": "active\x1b[2J", "pcrs": {"0": "ab"}}
            log.append(Statement.claim(kind, [Subject.of_name("server/server-1")], facts))
        log.append(Statement.claim(Predicate.DRIFT, [Subject.of_name("server/server-10")], {"server": "server-10"}))
    return directory


@pytest.fixture
def site(shell: Shell, state: Path) -> Shell:
    shutil.copytree(state, shell.state)
    return shell


@pytest.fixture
def bundle(site: Shell, tmp_path: Path) -> Path:
    assert site("evidence", "export", "--out", tmp_path / "out" / "bundle").code == 0
    return tmp_path / "out" / "bundle"


def test_export_then_verify_with_the_sites_key(site: Shell, bundle: Path) -> None:
    answer = site("verify", bundle, "--key", site.state / "keys" / "evidence.pub")
    assert answer.code == 0, answer
    lines = answer.out.splitlines()
    assert lines[-1] == "verified"
    assert "ok  key: the trusted key" in lines
    assert any(line.startswith("log:          freehold.dev/lab/evidence, 5 entries, root ") for line in lines)
    kinds = "1 attestation, 1 decommission-certificate, 1 drift, 1 sanitization, 1 transition"
    assert f"statements:   {kinds}" in lines
    assert "certificates: 1 of destruction" in lines
    assert lines[-2].endswith("(pinned)")


def test_a_bundle_that_vouches_for_itself_is_not_called_verified(site: Shell, bundle: Path) -> None:
    answer = site("verify", bundle)
    assert answer.code == 0
    assert "(NOT pinned)" in answer.out
    assert "verified" not in answer.out.splitlines()[-1]
    assert site("verify", bundle, "-o", "json").json()["key_pinned"] is False


def test_a_tampered_bundle_is_refused_with_the_file_and_the_check(site: Shell, bundle: Path) -> None:
    report = bundle / "report.json"
    report.write_bytes(report.read_bytes().replace(b'"lab"', b'"Lab"'))
    answer = site("verify", bundle)
    assert (answer.code, answer.out) == (3, "")
    assert answer.err.startswith("freehold: evidence refused: report.json: ")
    found = site("verify", bundle, "-o", "json")
    assert found.code == 3
    assert found.error()["file"] == "report.json"
    assert found.error()["check"]


def test_another_sites_key_is_refused(site: Shell, bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pub"
    other.write_bytes(Ed25519Signer.generate().public_key_pem)
    assert site("verify", bundle, "--key", other).code == 3
    other.write_text("no key")
    assert site("verify", bundle, "--key", other).code == 3


def test_a_certificate_on_its_own(site: Shell, bundle: Path) -> None:
    certificate, key = bundle / "certificates" / "3.json", site.state / "keys" / "evidence.pub"
    answer = site("verify", certificate, "--key", key)
    assert answer.code == 0
    assert "ok  entry 3 of 5 in freehold.dev/lab/evidence\nsubject: server/server-1\n" in answer.out
    assert "\x1b" not in answer.out
    assert site("verify", certificate, "--key", key, "-o", "json").json()["index"] == 3
    assert "give the site's evidence key with --key" in site("verify", certificate).err
    certificate.write_bytes(certificate.read_bytes().replace(b'"index":3', b'"index":2'))
    refused = site("verify", certificate, "--key", key)
    assert refused.code == 3
    assert "inclusion proof" in refused.err


def test_an_export_does_not_overwrite(site: Shell, bundle: Path) -> None:
    answer = site("evidence", "export", "--out", bundle)
    assert answer.code == 1
    assert f"{bundle} exists" in answer.err


def test_an_export_goes_into_the_state_directory_by_default(site: Shell) -> None:
    found = site("evidence", "export", "-o", "json").json()
    assert Path(found["bundle"]).parent == site.state / "bundles"
    assert json.loads((Path(found["bundle"]) / "report.json").read_bytes())["entries"] == 5


def test_no_private_key_is_exported(site: Shell, bundle: Path) -> None:
    for file in (each for each in bundle.rglob("*") if each.is_file()):
        assert b"PRIVATE" not in file.read_bytes(), file


def test_the_log_is_listed_by_server_and_in_pages(site: Shell) -> None:
    answer = site("evidence", "log", "--server", "server-1", "--limit", "2")
    assert [line.split()[:3] for line in answer.out.splitlines()[1:]] == [
        ["0", "transition", "server/server-1"],
        ["1", "attestation", "server/server-1"],
    ]
    assert answer.err == "there is more: go on with --since 2\n"
    assert "\x1b" not in answer.out
    found = site("evidence", "log", "--since", "3", "-o", "json").json()
    assert [(each["index"], each["kind"]) for each in found["items"]] == [
        (3, "decommission-certificate"),
        (4, "drift"),
    ]
    assert found["next"] is None


def test_a_changed_log_is_not_listed(site: Shell) -> None:
    entries = site.state / "evidence" / "tile" / "entries" / "000"
    data = bytearray(entries.read_bytes())
    data[200] ^= 1
    entries.write_bytes(data)
    answer = site("evidence", "log")
    assert answer.code == 1
    assert answer.err.startswith("freehold: the entries in ")


@pytest.mark.parametrize("command", ["export", "log"])
def test_a_directory_without_evidence_stays_as_it_is(shell: Shell, command: str) -> None:
    answer = shell("evidence", command)
    assert answer.code == 1
    assert "this site has no evidence yet" in answer.err
    assert not os.path.lexists(shell.state)


def test_the_log_of_a_bundle_is_listed_once_the_bundle_verifies(site: Shell, bundle: Path) -> None:
    assert (
        site("evidence", "log", "--bundle", bundle, "-o", "json").json() == site("evidence", "log", "-o", "json").json()
    )
    report = bundle / "report.json"
    report.write_bytes(report.read_bytes().replace(b"5", b"6"))
    assert site("evidence", "log", "--bundle", bundle).code == 3


def test_waivers_stand_in_the_report_of_an_export(site: Shell, tmp_path: Path) -> None:
    keys = SiteKeys.load(site.state, open_vault(site.state))
    waived = {"server": "server-1", "finding": "bmc-certificate", "reason": "old", "approved_by": ["ann", "bob"]}
    with open_log(site.state, "lab", keys) as log:
        log.append(Statement.claim(Predicate.WAIVER, [Subject.of_name("server/server-1")], waived))
    assert site("evidence", "export", "--out", tmp_path / "bundle").code == 0
    report = json.loads((tmp_path / "bundle" / "report.json").read_bytes())
    assert report["waivers"] == [{"entry": 5, **waived}]
    assert site("verify", tmp_path / "bundle").code == 0
