"""`freehold audit` as a person meets it, on a site whose BMCs are the lab's Redfish service on loopback."""

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from cli_support import Shell

from freehold.interfaces.cli import audit as audit_module
from freehold.model.findings import Finding, Severity
from freehold.model.status import Facts, ImageFact, ServerState, ServerStatus
from freehold.orchestration.opening import open_vault
from freehold.orchestration.view import ServerView
from freehold.out_of_band import transport
from freehold.out_of_band.credential_slots import StagedCredential
from freehold.out_of_band.redfish import Credential, RedfishClient
from freehold.out_of_band.transport import BmcIdentity, fetch_identity
from freehold.root_of_trust.secure_boot_keys import SecureBootKeyring
from freehold_lab.bmc.context import BmcConfig
from freehold_lab.bmc.memory import MemoryHardware
from freehold_lab.bmc.service import serve

PASSWORD = "factory-pass"
OURS = Credential("root", PASSWORD, generated=True)
ADDRESSES = {"server-1": "172.30.1.11", "server-2": "172.30.1.12"}
MANAGER = "/redfish/v1/Managers/1"


@contextmanager
def lab_bmc(directory: Path) -> Iterator[tuple[str, int]]:
    """A BMC in a thread of its own: the command line has its own event loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    starting = serve(MemoryHardware(), BmcConfig(PASSWORD, directory, port=0))
    runner = asyncio.run_coroutine_threadsafe(starting, loop).result()
    try:
        yield "127.0.0.1", runner.addresses[0][1]
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class Rack:
    """`own(server)` makes a declared server ours; `found` is where its address leads to."""

    def __init__(self, site: Shell, found: tuple[str, int]) -> None:
        self.site, self.where = site, dict.fromkeys(ADDRESSES.values(), found)
        self.key = asyncio.run(fetch_identity(f"{found[0]}:{found[1]}")).spki_sha256
        self.vault = open_vault(site.state)
        self.vault.put("site/audit-key", bytes(32))

    def own(
        self, server: str, findings: tuple[Finding, ...] = (), *, credential: Credential = OURS, **more: Any
    ) -> None:
        self.vault.put(f"bmc/{server}/current", msgspec.json.encode(credential))
        facts = Facts(bmc_identity=self.key, bmc_credential_committed=True, **more)
        status = ServerStatus(state=ServerState.ACTIVE, state_since=time.time(), facts=facts, findings=findings)
        self.site.set_status(server, status)

    def patch(self, path: str, body: dict[str, Any]) -> None:
        async def work() -> None:
            host, port = self.where[ADDRESSES["server-1"]]
            client = RedfishClient.connect(f"{host}:{port}", BmcIdentity(spki_sha256=self.key), OURS)
            async with client:
                await client.patch(path, body)

        asyncio.run(work())


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    with lab_bmc(tmp_path_factory.mktemp("bmc")) as found:
        yield found


@pytest.fixture
def rack(site: Shell, factory: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Rack:
    made, real = Rack(site, factory), transport.split_address
    monkeypatch.setattr(transport, "split_address", lambda address: made.where.get(address) or real(address))
    return made


def kinds(answer: Any, server: str) -> set[str]:
    (found,) = [each for each in answer["servers"] if each["server"] == server]
    return {finding["kind"] for finding in found["findings"]}


def test_findings_end_with_3_and_say_what_to_do(rack: Rack) -> None:
    rack.own("server-1")
    answer = rack.site("audit", "server-1", "--output", "json")
    assert answer.code == 3
    (found,) = answer.json()["servers"]
    assert (found["server"], found["clean"], found["error"]) == ("server-1", False, None)
    assert {"bmc-ipmi-enabled", "bmc-host-interface-bootstrapping", "ipmi-silent"} <= kinds(answer.json(), "server-1")
    assert all(each["remedy"] and each["severity"] and each["evidence"].strip() for each in found["findings"])
    assert PASSWORD not in answer.out


def test_a_server_that_is_not_ours_yet_is_listed_and_the_audit_does_not_end_well(rack: Rack) -> None:
    """Its BMC may stand as open as the factory made it."""
    rack.own("server-1")
    answer = rack.site("audit", "--output", "json")
    assert answer.code == 1
    audited, other = answer.json()["servers"]
    assert (audited["server"], audited["error"]) == ("server-1", None)
    assert (other["server"], other["clean"], other["findings"]) == ("server-2", False, [])
    assert other["error"]["what"] == "its BMC is not ours yet: enrolled, declared"
    table = rack.site("audit")
    assert table.code == 1
    assert "server-2   not audited" in table.out
    assert "its BMC is not ours yet" in table.out
    assert "1 not audited" in table.err


def test_the_table_has_a_line_for_each_finding_worst_first(rack: Rack) -> None:
    rack.own("server-1")
    answer = rack.site("audit", "server-1")
    header, *lines = answer.out.splitlines()
    assert header.split() == ["SERVER", "SEVERITY", "FINDING", "EVIDENCE", "REMEDY"]
    assert all(line.startswith("server-1   ") for line in lines)
    assert "critical" in lines[0]
    assert "bmc-ipmi-enabled: IPMI 2.0 hands out password hashes" in answer.out
    assert "NetworkProtocol.IPMI.ProtocolEnabled is true, port 623" in answer.out
    assert answer.err.startswith("1 server audited: ")
    assert answer.code == 3


def test_the_row_of_each_finding_has_severity_evidence_and_remedy_uncut(rack: Rack) -> None:
    rack.own("server-1")
    lines = rack.site("audit", "server-1").out.splitlines()[1:]
    rows = [re.split(" {3,}", line) for line in lines]  # an empty cell leaves fewer than five
    answer = rack.site("audit", "server-1", "-o", "json").json()
    (server,) = answer["servers"]
    shown = [("server-1", each) for each in server["findings"]]
    shown = [*(("(site)", each) for each in answer["site"]), *shown]
    assert len(shown) > 5
    for (where, found), row in zip(shown, rows, strict=True):
        told = [where, found["severity"], f"{found['kind']}: {found['detail']}", found["evidence"], found["remedy"]]
        assert all(cell.strip() for cell in told), found
        assert row == told


def test_a_closed_bmc_ends_with_0(site: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with lab_bmc(tmp_path / "closed") as found:
        rack = Rack(site, found)
        rack.own("server-1")
        rack.patch(f"{MANAGER}/HostInterfaces/1", {"InterfaceEnabled": False})
        off = {"ProtocolEnabled": False}
        rack.patch(f"{MANAGER}/NetworkProtocol", {"IPMI": off, "SNMP": off, "SSDP": off})
        real = transport.split_address
        monkeypatch.setattr(transport, "split_address", lambda address: rack.where.get(address) or real(address))
        answer = site("audit", "server-1")
    assert answer.code == 0, answer
    assert "1 server audited: no findings" in answer.err
    assert "clean" in answer.out


def test_a_server_that_cannot_be_audited_ends_with_1_and_the_others_are(
    rack: Rack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_BACK_OFF_SECONDS", 0.01)
    rack.own("server-1")
    rack.own("server-2", credential=Credential("root", "another-password", generated=True))
    rack.where[ADDRESSES["server-2"]] = ("127.0.0.1", 1)  # nothing listens there
    answer = rack.site("audit", "-o", "json")
    assert answer.code == 1
    assert kinds(answer.json(), "server-1")
    assert answer.json()["servers"][1]["error"]["server"] == "server-2"
    table = rack.site("audit")
    assert "1 not audited" in table.err
    assert "server-2   not audited" in table.out


def test_what_nobody_has_thought_of_at_one_bmc_keeps_no_other_from_being_audited(
    rack: Rack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for server in ADDRESSES:
        rack.own(server)
    real = audit_module.audit_server

    async def one_breaks(vault: Any, view: ServerView, **how: Any) -> Any:
        if view.name == "server-2":
            raise RecursionError("maximum recursion depth exceeded")
        return await real(vault, view, **how)

    monkeypatch.setattr(audit_module, "audit_server", one_breaks)
    answer = rack.site("audit", "-o", "json")
    assert answer.code == 1
    assert kinds(answer.json(), "server-1")
    assert "the audit failed: RecursionError" in answer.json()["servers"][1]["error"]["what"]


def test_a_shared_password_is_found_by_its_digest(rack: Rack) -> None:
    for server in ADDRESSES:
        rack.own(server)
    answer = rack.site("audit", "server-1", "-o", "json")
    (shared,) = [each for each in answer.json()["servers"][0]["findings"] if each["kind"] == "bmc-password-shared"]
    assert "server-2" in shared["detail"]
    rack.own("server-2", credential=Credential("root", "another-password", generated=True))
    assert "bmc-password-shared" not in kinds(rack.site("audit", "server-1", "-o", "json").json(), "server-1")


WAIVER = """apiVersion: freehold/v1
kind: Waiver
metadata: {name: old-bmc}
spec: {server: server-1, finding: bmc-certificate, expires: "2099-01-01", reason: no certificate service}
"""


def test_what_two_people_waived_is_listed_and_says_so_and_what_has_no_waiver_counts(rack: Rack, tmp_path: Path) -> None:
    site = rack.site
    rack.own("server-1")
    facts = Facts(bmc_identity=rack.key, bmc_credential_committed=True, bmc_certificate_waived=True)
    site.set_status("server-1", ServerStatus(state=ServerState.ACTIVE, state_since=time.time(), facts=facts))
    (unsigned,) = [each for each in site("audit", "server-1", "-o", "json").json()["servers"][0]["findings"]
                   if (each["kind"], each["subject"]) == ("waiver-ended", "bmc-certificate")]  # fmt: skip
    assert unsigned["severity"] == "critical"
    assert "the waiver of that has ended" in unsigned["detail"]
    site.declare(WAIVER)
    for name in ("ann", "bob"):
        site("operator", "keygen", tmp_path / f"{name}.key", "--no-passphrase")
    site("operator", "found", *(f"{name}={tmp_path}/{name}.key.pub" for name in ("ann", "bob")))
    (request,) = [each["id"] for each in site("approval", "list", "-o", "json").json()["items"]]
    for name in ("ann", "bob"):
        assert site("approval", "sign", request, "--key", tmp_path / f"{name}.key").code == 0
    (waived,) = [each for each in site("audit", "server-1", "-o", "json").json()["servers"][0]["findings"]
                 if each["kind"] == "bmc-certificate"]  # fmt: skip
    assert waived["severity"] == "info"
    assert "waived until 2099-01-01 00:00:00Z: no certificate service" in waived["detail"]
    assert waived["evidence"] == "Waiver old-bmc, signed by ann, bob"
    described = site("describe", "server-1").out
    assert "INFO bmc-certificate (server-1): its BMC serves no certificate of the site's BMC CA; waived" in described
    assert "bmc-certificate by old-bmc, until 2099-01-01 00:00:00Z, signed by ann, bob" in described


def test_what_was_found_about_the_site_stands_first_and_counts(rack: Rack) -> None:
    rack.own("server-1")
    finding = Finding(
        severity=Severity.CRITICAL, kind="depot-expiry", subject="depot/root", detail="late", remedy="act"
    )
    rack.site.store(lambda store: store.site.set_findings("depot", (finding,)))
    answer = rack.site("audit", "server-1")
    assert answer.out.splitlines()[1].split() == ["(site)", "critical", "depot-expiry:", "late", "act"]
    assert answer.code == 3
    assert [each["kind"] for each in rack.site("audit", "-o", "json").json()["site"]] == ["depot-expiry"]
    described = rack.site("describe", "site", "lab")
    assert "CRITICAL depot-expiry (depot/root): late" in described.out
    assert rack.site("describe", "site", "lab", "-o", "json").json()["findings"][0]["remedy"] == "act"


def test_a_server_that_runs_a_revoked_image_is_not_clean(rack: Rack) -> None:
    image = ImageFact(name="debian", version="12", manifest="ab" * 32)
    rack.own("server-1", image=image)
    assert not {"revoked-image", "revocations-unchecked"} & kinds(rack.site("audit", "-o", "json").json(), "server-1")
    ring = SecureBootKeyring(rack.vault, "lab", UUID(int=0))
    ring.create(datetime.now(UTC))
    ring.revoke("cd" * 32, "CVE-2026-1", datetime.now(UTC))
    assert "revocations-unchecked" in kinds(rack.site("audit", "-o", "json").json(), "server-1")
    found = Finding(severity=Severity.CRITICAL, kind="revoked-image", subject="server-1", detail="d", remedy="r")
    rack.own("server-1", (found,), image=image)
    assert {"revoked-image", "revocations-unchecked"} & kinds(rack.site("audit", "-o", "json").json(), "server-1") == {
        "revoked-image"
    }


def test_a_bmc_whose_password_is_being_changed_is_left_alone(rack: Rack) -> None:
    rack.own("server-1")
    staged = StagedCredential(credential=OURS, threshold=5, window=60.0)
    rack.vault.put("bmc/server-1/pending", msgspec.json.encode(staged))
    answer = rack.site("audit", "server-1")
    assert answer.code == 1
    assert "password is being changed" in answer.out


def test_a_changed_key_is_a_finding_and_gets_nothing(rack: Rack) -> None:
    rack.key = "ab" * 32
    rack.own("server-1")
    answer = rack.site("audit", "server-1")
    assert answer.code == 3
    assert "another key" in answer.out
    assert "nothing was sent to it" in answer.out
    (found,) = rack.site("audit", "server-1", "-o", "json").json()["servers"][0]["findings"]
    assert (found["kind"], found["severity"]) == ("bmc-identity", "critical")


def test_a_server_that_is_not_ours_is_said_so(site: Shell) -> None:
    answer = site("audit", "server-1")
    assert answer.code == 1
    assert "its BMC is not ours yet" in answer.out
    assert not (site.state / "vault.key").exists()  # looking founds no vault
    answer = site("audit", "-o", "json")
    assert answer.code == 1
    assert [each["clean"] for each in answer.json()["servers"]] == [False, False]


def test_a_name_that_is_not_declared_is_an_error(site: Shell) -> None:
    answer = site("audit", "server-9")
    assert answer.code == 1
    assert "server-9" in answer.err


def test_a_lab_that_is_not_there_is_said_so(site: Shell, tmp_path: Path) -> None:
    answer = site("audit", "--lab", tmp_path)
    assert answer.code == 1
    assert f"there is no lab in {tmp_path}" in answer.err


def test_a_long_audit_says_how_far_it_is(rack: Rack, monkeypatch: pytest.MonkeyPatch) -> None:
    rack.own("server-1")
    monkeypatch.setattr(audit_module, "QUIET_SECONDS", 0.01)
    assert "audited 0 of 1 after 0 s" in rack.site("audit").err
    monkeypatch.setattr(audit_module, "QUIET_SECONDS", 60.0)
    assert "after" not in rack.site("audit").err


def test_factory_credentials_are_tried_only_on_demand(rack: Rack) -> None:
    rack.own("server-1")
    plain = rack.site("audit", "server-1", "-o", "json")
    assert "bmc-defaults-untried" not in kinds(plain.json(), "server-1")
    probed = rack.site("audit", "server-1", "--probe-defaults", "-o", "json")
    assert "bmc-defaults-untried" in kinds(probed.json(), "server-1")  # nobody documents the lab's vendor
