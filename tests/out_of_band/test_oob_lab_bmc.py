"""The doers against the lab's Redfish service, which was written from the standard by somebody else."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.serialization import Encoding
from oob_support import Crashes, Keys, MemorySlots

from freehold.out_of_band import server
from freehold.out_of_band.accounts import RedfishDoor
from freehold.out_of_band.errors import BmcUnreachable, EnrolmentFailed, NotSupported, WrongCredential
from freehold.out_of_band.hardening import UNWANTED, Hardened, harden
from freehold.out_of_band.inventory import Cpu
from freehold.out_of_band.posture import posture_findings, read_account_policy, read_posture
from freehold.out_of_band.redfish import Credential, RedfishClient
from freehold.out_of_band.secure_boot import KeyDatabases
from freehold.out_of_band.takeover import take_over
from freehold.out_of_band.transport import BmcIdentity, fetch_identity
from freehold_lab.bmc.context import BmcConfig
from freehold_lab.bmc.memory import MemoryHardware, example_info
from freehold_lab.bmc.service import serve
from freehold_lab.hardware import BootTarget, SecureBootDatabaseName

FACTORY = Credential("root", "factory-pass")


@asynccontextmanager
async def bmc(
    tmp_path: Path, hardware: MemoryHardware, trusted_ca: Path | None = None
) -> AsyncIterator[tuple[str, BmcIdentity]]:
    config = BmcConfig(FACTORY.password, tmp_path / "bmc", port=0, reset_seconds=0.1, trusted_ca=trusted_ca)
    runner = await serve(hardware, config)
    address = f"127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield address, BmcIdentity(spki_sha256=(await fetch_identity(address)).spki_sha256)
    finally:
        await runner.cleanup()


@pytest.fixture
def hardware() -> MemoryHardware:
    return MemoryHardware(example_info())


@pytest.fixture
async def place(tmp_path: Path, hardware: MemoryHardware) -> AsyncIterator[tuple[str, BmcIdentity]]:
    async with bmc(tmp_path, hardware) as where:
        yield where


@pytest.fixture
async def client(place: tuple[str, BmcIdentity]) -> AsyncIterator[RedfishClient]:
    async with RedfishClient.connect(*place, FACTORY, server="server-1") as logged_in:
        yield logged_in


async def test_inventory_says_what_the_hardware_is(client: RedfishClient, hardware: MemoryHardware) -> None:
    inventory, info = await server.read_inventory(client), hardware.info
    assert inventory.cpus == (Cpu(model=info.cpu_model, cores=info.cores, threads=inventory.cpus[0].threads),)
    assert inventory.memory_mib == info.memory_mib
    assert [nic.mac for nic in inventory.nics] == [nic.mac for nic in info.nics]
    assert [(d.serial, d.capacity_bytes) for d in inventory.drives] == [
        (d.serial, d.capacity_bytes) for d in info.drives
    ]
    assert (inventory.uuid, inventory.serial, inventory.bios_version) == (info.uuid, info.serial, info.bios_version)
    assert inventory.tpm is not None
    assert inventory.tpm.interface == "TPM2_0"
    assert inventory.findings == ()


async def test_crawl_reads_the_whole_service(client: RedfishClient) -> None:
    crawl = await client.crawl()
    assert crawl.unreadable == {}
    assert len(crawl.resources) > 60


async def test_ipmi_off_is_seen_in_the_posture(client: RedfishClient) -> None:
    before = await read_posture(client)
    assert "bmc-ipmi-enabled" in [f.kind for f in server.posture_findings(before, subject="server-1")]
    assert await server.set_ipmi(client, False)
    assert not await server.set_ipmi(client, False)
    assert not (await server.read_posture(client)).enabled("IPMI")


async def test_what_nobody_needs_is_closed_once_and_for_all(client: RedfishClient) -> None:
    before = await read_posture(client)
    kinds = {finding.kind for finding in posture_findings(before, subject="server-1")}
    assert "bmc-snmp-enabled" in kinds
    hardened = await harden(client)
    assert "SNMP" in hardened.closed
    assert hardened.open == ()
    after = await read_posture(client)
    assert not any(after.enabled(name) for name in UNWANTED)
    assert not any(each.enabled or each.bootstrapping for each in after.host_interfaces)
    left = {finding.kind for finding in posture_findings(after, subject="server-1")}
    assert not [kind for kind in left if "snmp" in kind or "host-interface" in kind]
    assert await harden(client) == Hardened(closed=(), open=())


async def test_a_full_take_over(place: tuple[str, BmcIdentity]) -> None:
    slots = MemorySlots(Crashes(), FACTORY)
    door = RedfishDoor(lambda credential: RedfishClient.connect(*place, credential, server="server-1"))
    result = await take_over(door, slots, server="server-1")
    assert (result.username, result.remaining) == ("freehold", ())
    assert slots.now is not None
    async with RedfishClient.connect(*place, slots.now) as own:
        accounts = {account.username: account.enabled for account in await server.accounts(own)}
        assert accounts == {"root": False, "freehold": True}
        kinds = [f.kind for f in server.posture_findings(await server.read_posture(own), subject="server-1")]
        assert "bmc-foreign-account" not in kinds
        policy = await read_account_policy(own)
        assert policy.min_password_length is not None
        assert len(slots.now.password) >= policy.min_password_length
    assert (await take_over(door, slots)).username == "freehold"
    with pytest.raises(WrongCredential):  # the test may guess; the product reads the Enabled flag
        await RedfishClient.connect(*place, FACTORY).__aenter__()


async def test_a_take_over_of_an_account_that_must_change_its_password(place: tuple[str, BmcIdentity]) -> None:
    async with RedfishClient.connect(*place, FACTORY) as factory:
        own = next(a.uri for a in await server.accounts(factory) if a.username == "root")
        await factory.patch(own, {"PasswordChangeRequired": True})
    slots = MemorySlots(Crashes(), FACTORY)
    door = RedfishDoor(lambda credential: RedfishClient.connect(*place, credential))
    assert (await take_over(door, slots)).username == "freehold"
    assert slots.next is None


async def test_a_foreign_account_is_removed(client: RedfishClient) -> None:
    await client.post(
        "/redfish/v1/AccountService/Accounts",
        {"UserName": "mallory", "Password": "some-Password-1", "RoleId": "Administrator"},
    )
    foreign = next(a for a in await server.accounts(client) if a.username == "mallory")
    await server.disable_account(client, foreign.uri)
    await server.disable_account(client, foreign.uri)
    assert not next(a for a in await server.accounts(client) if a.username == "mallory").enabled
    await server.delete_account(client, foreign.uri)
    await server.delete_account(client, foreign.uri)
    assert [a.username for a in await server.accounts(client)] == ["root"]


async def test_power_looks_at_the_state_first(client: RedfishClient) -> None:
    assert await server.power(client, "on") == "On"
    assert await server.power(client, "on") == "On"
    assert await server.power(client, "reset") == "On"
    assert await server.power(client, "off") == "Off"
    assert await server.power(client, "off") == "Off"
    assert await server.power(client, "reset") == "On"


async def test_boot_override_by_http_and_back(client: RedfishClient, hardware: MemoryHardware) -> None:
    uri = "http://172.30.2.2:8080/agent.efi"
    for _ in range(2):
        await server.set_boot_http(client, uri)
        override = await hardware.boot_override()
        assert (override.target, override.enabled, override.http_uri) == (BootTarget.UEFI_HTTP, "Once", uri)
    await server.set_boot_http(client, uri, once=False)
    assert (await hardware.boot_override()).enabled == "Continuous"
    for _ in range(2):
        await server.clear_boot_override(client)
        assert (await hardware.boot_override()).enabled == "Disabled"
    await server.boot_cd(client)
    assert (await hardware.boot_override()).target is BootTarget.CD


async def test_virtual_media_is_inserted_once_and_ejected(client: RedfishClient, tmp_path: Path) -> None:
    async def image(_: web.Request) -> web.StreamResponse:
        return web.Response(body=b"CD001" * 1000)

    app = web.Application()
    app.router.add_get("/{name}", image)
    async with TestServer(app) as files:
        for name in ("a.iso", "a.iso", "b.iso"):
            url = str(files.make_url(f"/{name}"))
            await server.insert_media(client, url)
            assert await _inserted(client) == url
    for _ in range(2):
        await server.eject_media(client)
        assert await _inserted(client) is None


async def _inserted(client: RedfishClient) -> str | None:
    media = (await client.crawl()).resources
    return next((m["Image"] for m in media.values() if "VirtualMedia.v" in m["@odata.type"] and m["Inserted"]), None)


async def test_boot_order_is_set_as_declared(client: RedfishClient, hardware: MemoryHardware) -> None:
    order = tuple(reversed(await server.boot_order(client)))
    await server.set_boot_order(client, order)
    await server.power(client, "reset")
    assert await server.boot_order(client) == order


async def test_bios_attributes_are_staged_and_unknown_ones_refused(client: RedfishClient) -> None:
    assert await server.set_bios_attributes(client, {"SriovGlobalEnable": True, "NumLock": True}) == (
        "SriovGlobalEnable",
    )
    assert await server.set_bios_attributes(client, {"SriovGlobalEnable": True}) == ()
    await server.power(client, "reset")
    assert (await server.bios_attributes(client))["SriovGlobalEnable"] is True
    with pytest.raises(NotSupported, match="no attribute Nonsense"):
        await server.set_bios_attributes(client, {"Nonsense": 1})


DIGEST, OTHER_DIGEST = "ab" * 32, "cd" * 32


@pytest.fixture
def wanted(tmp_path: Path) -> KeyDatabases:
    pems = {name: (Keys(tmp_path, name).pem,) for name in ("PK", "KEK", "db")}
    return KeyDatabases(certificates=pems, dbx=(DIGEST,))


def with_db(wanted: KeyDatabases, *pems: str) -> KeyDatabases:
    return msgspec.structs.replace(wanted, certificates=wanted.certificates | {"db": pems})


async def deletions(client: RedfishClient) -> int:
    logs = [line.message for line in await server.log_entries(client) if "Secure" in line.message]
    return sum("DeleteAllKeys" in line for line in logs)


async def test_secure_boot_is_enrolled_with_exactly_our_keys_and_what_is_revoked(
    client: RedfishClient, hardware: MemoryHardware, wanted: KeyDatabases
) -> None:
    await server.power(client, "off")
    for _ in range(2):
        state = await server.enroll_secure_boot(client, wanted)
        assert state.enabled
        assert state.mode == "UserMode"
        assert state.entries == wanted.entries
    assert len(await hardware.secure_boot_certificates("db")) == 1
    assert await hardware.secure_boot_signatures("dbx") == [DIGEST]
    await server.power(client, "on")
    assert (await server.secure_boot_state(client)).active
    assert await deletions(client) == 1  # the second enrolment had nothing to do


async def test_enrolment_removes_foreign_keys_and_survives_an_interruption(
    client: RedfishClient, hardware: MemoryHardware, tmp_path: Path, wanted: KeyDatabases
) -> None:
    await server.power(client, "off")
    await server.enroll_secure_boot(client, with_db(wanted, Keys(tmp_path, "foreign").pem))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            await server.enroll_secure_boot(client, wanted)
    state = await server.enroll_secure_boot(client, wanted)
    assert [len(state.databases[name]) for name in ("PK", "KEK", "db")] == [1, 1, 1]


async def test_two_keys_in_db_and_a_longer_dbx_take_the_place_of_what_was_there(
    client: RedfishClient, tmp_path: Path, wanted: KeyDatabases
) -> None:
    await server.power(client, "off")
    await server.enroll_secure_boot(client, wanted)
    both = with_db(wanted, *wanted.certificates["db"], Keys(tmp_path, "db-new").pem)
    both = msgspec.structs.replace(both, dbx=(OTHER_DIGEST, DIGEST))
    assert (await server.enroll_secure_boot(client, both)).entries == both.entries
    assert (await server.enroll_secure_boot(client, wanted)).entries == wanted.entries


async def test_a_firmware_that_adds_a_vendors_key_is_found_out(
    client: RedfishClient,
    hardware: MemoryHardware,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wanted: KeyDatabases,
) -> None:
    foreign = Keys(tmp_path, "vendor").certificate.public_bytes(Encoding.DER)
    honest = hardware.set_secure_boot_database

    async def smuggle(name: SecureBootDatabaseName, certificates: list[bytes], signatures: list[str]) -> None:
        await honest(name, [*certificates, foreign] if name == "db" else certificates, signatures)

    monkeypatch.setattr(hardware, "set_secure_boot_database", smuggle)
    with pytest.raises(EnrolmentFailed, match=r"after enrolment db holds \w{12}, \w{12} instead of \w{12}"):
        await server.enroll_secure_boot(client, wanted)


@pytest.mark.parametrize(("smuggled", "accepted"), [([OTHER_DIGEST, DIGEST], True), ([OTHER_DIGEST], False)])
async def test_a_firmware_may_forbid_more_than_we_do_but_not_less(
    client: RedfishClient,
    hardware: MemoryHardware,
    monkeypatch: pytest.MonkeyPatch,
    wanted: KeyDatabases,
    smuggled: list[str],
    accepted: bool,
) -> None:
    honest = hardware.set_secure_boot_database

    async def smuggle(name: SecureBootDatabaseName, certificates: list[bytes], signatures: list[str]) -> None:
        await honest(name, certificates, signatures)
        if name == "PK":
            await honest("dbx", [], smuggled)

    monkeypatch.setattr(hardware, "set_secure_boot_database", smuggle)
    if accepted:
        assert set(wanted.entries["dbx"]) < set((await server.enroll_secure_boot(client, wanted)).entries["dbx"])
    else:
        with pytest.raises(EnrolmentFailed, match="dbx holds sha256:cdcdcdcdcdcd instead of sha256:abababababab"):
            await server.enroll_secure_boot(client, wanted)


async def test_a_bmc_without_a_dbx_cannot_be_told_what_is_revoked(
    client: RedfishClient, monkeypatch: pytest.MonkeyPatch, wanted: KeyDatabases
) -> None:
    full = RedfishClient.members

    async def members(self: RedfishClient, path: str, **rest: Any) -> list[Any]:
        return [each for each in await full(self, path, **rest) if each.get("DatabaseId") != "dbx"]

    monkeypatch.setattr(RedfishClient, "members", members)
    await server.enroll_secure_boot(client, msgspec.structs.replace(wanted, dbx=()))
    with pytest.raises(NotSupported, match="takes no signatures for the Secure Boot database dbx"):
        await server.enroll_secure_boot(client, wanted)


async def test_secure_boot_can_be_reset(client: RedfishClient, wanted: KeyDatabases) -> None:
    await server.power(client, "off")
    await server.enroll_secure_boot(client, wanted)
    await server.reset_secure_boot(client, "DeleteAllKeys")
    assert (await server.secure_boot_state(client)).mode == "SetupMode"


async def test_a_session_survives_a_restart_of_the_bmc(client: RedfishClient) -> None:
    manager = await client.get("/redfish/v1/Managers/1")
    await client.action(manager, "Manager.Reset", {"ResetType": "ForceRestart"})
    for _ in range(30):
        await asyncio.sleep(0.1)
        with contextlib.suppress(BmcUnreachable):
            assert await server.power_state(client) in ("On", "Off")
            return
    pytest.fail("the BMC did not come back")


async def test_the_service_as_a_process_is_read_over_its_factory_certificate(tmp_path: Path) -> None:
    command = ["-m", "freehold_lab.bmc", "--port", "0", "--state-dir", str(tmp_path), "--number", "7"]
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
        address = line.split()[0].removeprefix("https://")
        identity = BmcIdentity(spki_sha256=(await fetch_identity(address)).spki_sha256)
        async with RedfishClient.connect(address, identity, FACTORY) as own:
            assert (await server.read_inventory(own)).serial == "HX2B4007"
    finally:
        process.terminate()
        await process.wait()
