"""The probe for factory credentials against the lab's BMC, which counts refused log-ins and locks accounts."""

import dataclasses
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from site_support import SERVER

from freehold.model.findings import Finding, Severity
from freehold.orchestration.default_probe import probe
from freehold.orchestration.opening import open_vault
from freehold.out_of_band.advisories import Firmware
from freehold.out_of_band.audit import read_firmware
from freehold.out_of_band.errors import BmcUnreachable
from freehold.out_of_band.factory_credentials import (
    IN_USE,
    NO_LOCKOUT,
    UNTRIED,
    Trial,
    allowance,
    candidates,
    default_findings,
    try_credentials,
)
from freehold.out_of_band.posture import AccountFact, AccountPolicy, Posture, read_posture
from freehold.out_of_band.redfish import Credential, RedfishClient
from freehold.out_of_band.transport import BmcIdentity, fetch_identity
from freehold.root_of_trust.vault import Vault
from freehold_lab.bmc.context import BmcConfig
from freehold_lab.bmc.memory import MemoryHardware
from freehold_lab.bmc.service import serve

OWN = Credential("freehold", "a-password-of-ours")
DELL = Firmware(vendors=("Dell Inc.",))
IBM = Firmware(vendors=("IBM",))
NOW = 1_000_000.0


def account(name: str, enabled: bool = True) -> AccountFact:
    return AccountFact(uri=f"/a/{name}", username=name, role="Administrator", enabled=enabled)


def users(firmware: Firmware, *accounts: AccountFact, own: str = "freehold") -> list[str]:
    return [each.username for each in candidates(firmware, accounts, own)]


def test_only_what_the_vendor_documents_is_a_candidate() -> None:
    assert users(DELL) == ["root"]
    assert users(Firmware(vendors=("HPE",), product="ProLiant")) == []
    assert users(Firmware(vendors=("Dellmont",))) == []
    assert users(Firmware(vendors=("Super Micro Computer, Inc.",))) == ["ADMIN"]
    assert users(Firmware(product="AMI")) == ["admin", "sysadmin"]


@pytest.mark.parametrize(
    ("manufacturer", "expected"),
    [
        ("GIGABYTE", [("admin", "password"), ("admin", "admin")]),
        ("Giga Computing Technology", [("admin", "password")]),
        ("Quanta Cloud Technology Inc.", [("root", "superuser"), ("admin", "cmb9.admin"), ("", "")]),
        ("Intel Corporation", [("root", "superuser"), ("", "")]),
        ("Huawei", [("Administrator", "Admin@9000")]),
        ("Oracle Corporation", [("root", "changeme")]),
        ("Lenovo", [("USERID", "PASSW0RD")]),
    ],
)
def test_what_is_less_sure_comes_last(manufacturer: str, expected: list[tuple[str, str]]) -> None:
    found = candidates(Firmware(vendors=(manufacturer,)), (), "freehold")
    assert [(each.username, each.password) for each in found] == expected


def test_no_bmc_has_more_candidates_than_one_without_a_lockout_may_be_asked() -> None:
    for named in ("GIGABYTE AMI", "Quanta AMI", "IBM OpenBMC", "Intel", "Lenovo AMI"):
        assert len(candidates(Firmware(vendors=(named,)), (), "freehold")) <= NO_LOCKOUT


def test_a_user_with_several_passwords_is_said_until_all_were_tried_or_one_was_taken() -> None:
    wanted = candidates(Firmware(vendors=("GIGABYTE",)), (), "freehold")
    policy = AccountPolicy(lockout_threshold=3)
    refused, taken, unknown = (("admin", trial) for trial in (Trial.REFUSED, Trial.TAKEN, Trial.UNKNOWN))
    for tried in ((), (refused,), (unknown,), (refused, unknown)):
        (found,) = default_findings(SERVER, wanted, tried, policy)
        assert (found.kind, found.detail) == (UNTRIED, "factory credentials were not tried: 'admin'")
    assert default_findings(SERVER, wanted, (refused, refused), policy) == ()
    for tried in ((taken,), (refused, taken)):
        (found,) = default_findings(SERVER, wanted, tried, policy)
        assert (found.kind, found.evidence) == (IN_USE, "a log-in with it succeeded: 'admin'")


def test_our_own_account_is_never_a_candidate() -> None:
    assert users(DELL, account("root"), own="root") == []
    assert users(IBM, own="Admin") == ["USERID", "root"]


def test_enabled_accounts_come_first_and_disabled_ones_last() -> None:
    assert users(IBM, account("USERID", False), account("admin")) == ["admin", "root", "USERID"]


@pytest.mark.parametrize(("threshold", "most"), [(None, 1), (0, NO_LOCKOUT), (1, 0), (2, 0), (3, 1), (5, 3)])
def test_attempts_stay_two_below_the_threshold(threshold: int | None, most: int) -> None:
    assert allowance(AccountPolicy(lockout_threshold=threshold)) == most


@dataclasses.dataclass
class Bmc:
    """The lab's BMC after take-over; `root` is the factory's account, with `password`."""

    directory: Path
    connect: Callable[[Credential], RedfishClient]
    posture: Posture
    firmware: Firmware
    vault: Vault

    def failures(self) -> int:
        text = (self.directory / "bmc.json").read_text()
        return sum(each["failures"] for each in json.loads(text)["accounts"].values())

    async def probe(self, firmware: Firmware | None = None, *, own: str = "freehold", now: float = NOW, **policy: int):
        limits = msgspec.structs.replace(self.posture.policy, **policy)
        posture = msgspec.structs.replace(self.posture, policy=limits)
        return await probe(self.vault, SERVER, self.connect, posture, firmware or self.firmware, own=own, now=now)


@asynccontextmanager
async def lab_bmc(directory: Path, vault: Vault, password: str, user: str = "root") -> AsyncIterator[Bmc]:
    config = BmcConfig(password, directory, port=0, factory_user=user, manufacturer="Dell Inc.")
    runner = await serve(MemoryHardware(), config)
    address = f"127.0.0.1:{runner.addresses[0][1]}"
    identity = BmcIdentity(spki_sha256=(await fetch_identity(address)).spki_sha256)

    def connect(credential: Credential) -> RedfishClient:
        return RedfishClient.connect(address, identity, credential, server=SERVER)

    try:
        async with connect(Credential(user, password)) as client:
            body = {"UserName": OWN.username, "Password": OWN.password, "RoleId": "Administrator"}
            await client.post("/redfish/v1/AccountService/Accounts", body)
            posture = await read_posture(client)
            firmware = await read_firmware(client, posture)
        yield Bmc(directory, connect, posture, firmware, vault)
    finally:
        await runner.cleanup()


@pytest.fixture
async def factory(tmp_path: Path, vault: Vault) -> AsyncIterator[Bmc]:
    async with lab_bmc(tmp_path / "bmc", vault, "calvin") as made:
        yield made


@pytest.fixture
async def changed(tmp_path: Path, vault: Vault) -> AsyncIterator[Bmc]:
    async with lab_bmc(tmp_path / "bmc", vault, "another-password") as made:
        yield made


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    (tmp_path / "state").mkdir()
    return open_vault(tmp_path / "state")


def kinds(findings: tuple[Finding, ...]) -> list[str]:
    return [each.kind for each in findings]


async def test_a_factory_password_that_works_is_critical_and_not_shown(factory: Bmc) -> None:
    (found,) = await factory.probe(DELL)
    assert (found.kind, found.severity, found.subject) == (IN_USE, Severity.CRITICAL, SERVER)
    assert "'root'" in found.detail
    assert "calvin" not in repr(found)
    assert factory.failures() == 0


async def test_one_attempt_that_is_refused_is_no_finding_and_counts_once(changed: Bmc) -> None:
    assert await changed.probe(DELL) == ()
    assert changed.failures() == 1


async def test_nobody_is_locked_however_often_it_is_repeated(changed: Bmc) -> None:
    for _ in range(10):
        await changed.probe(DELL, lockout_threshold=5)
    assert changed.failures() == 3
    assert kinds(await changed.probe(DELL, lockout_threshold=5)) == [UNTRIED]
    async with changed.connect(Credential("root", "another-password")) as client:  # not locked
        assert client.root


async def test_the_bmc_forgets_and_then_it_may_be_tried_again(changed: Bmc) -> None:
    limits = {"lockout_threshold": 3, "lockout_counter_reset_after": 60}
    assert await changed.probe(DELL, **limits) == ()
    assert kinds(await changed.probe(DELL, now=NOW + 59, **limits)) == [UNTRIED]
    assert await changed.probe(DELL, now=NOW + 61, **limits) == ()


async def test_a_bmc_that_locks_soon_is_not_tried_at_all(changed: Bmc) -> None:
    (found,) = await changed.probe(DELL, lockout_threshold=2)
    assert (found.kind, found.severity) == (UNTRIED, Severity.INFO)
    assert "'root'" in found.detail
    assert found.evidence == "AccountLockoutThreshold is 2"
    assert changed.failures() == 0


async def test_our_own_account_is_left_alone(factory: Bmc) -> None:
    assert kinds(await factory.probe(DELL, own="root")) == [UNTRIED]
    assert factory.failures() == 0


async def test_an_unknown_vendor_is_said(factory: Bmc) -> None:
    (found,) = await factory.probe(Firmware(vendors=("Halden Compute",)))
    assert found.kind == UNTRIED
    assert "documented" in found.detail


async def test_an_attempt_is_counted_before_it_is_made(changed: Bmc, monkeypatch: pytest.MonkeyPatch) -> None:
    async def die(self: RedfishClient) -> None:
        raise RuntimeError("power loss")

    with monkeypatch.context() as patch:
        patch.setattr(RedfishClient, "login", die)
        for _ in range(3):
            with pytest.raises(RuntimeError):
                await changed.probe(DELL, lockout_threshold=5)
    assert kinds(await changed.probe(DELL, lockout_threshold=5)) == [UNTRIED]
    assert changed.failures() == 0


async def test_an_answer_that_is_neither_yes_nor_no_ends_it(changed: Bmc, monkeypatch: pytest.MonkeyPatch) -> None:
    async def lost(self: RedfishClient) -> None:
        raise BmcUnreachable("no answer")

    monkeypatch.setattr(RedfishClient, "login", lost)
    tried = await try_credentials(changed.connect, candidates(IBM, (), "freehold"))
    assert tried == (("USERID", "unknown"),)


GIGABYTE, QUANTA = Firmware(vendors=("GIGABYTE",)), Firmware(vendors=("Quanta Cloud Technology Inc.",))


async def test_two_passwords_of_one_user_are_two_attempts_and_nobody_is_locked(tmp_path: Path, vault: Vault) -> None:
    async with lab_bmc(tmp_path / "bmc", vault, "another-password", "admin") as bmc:
        (found,) = await bmc.probe(GIGABYTE, lockout_threshold=3)
        assert (found.kind, found.detail) == (UNTRIED, "factory credentials were not tried: 'admin'")
        assert bmc.failures() == 1
        for _ in range(3):
            await bmc.probe(GIGABYTE, lockout_threshold=5)
        assert bmc.failures() == 3
        async with bmc.connect(Credential("admin", "another-password")) as client:  # not locked
            assert client.root


async def test_a_user_who_was_let_in_is_not_refused_with_another_password(tmp_path: Path, vault: Vault) -> None:
    async with lab_bmc(tmp_path / "bmc", vault, "password", "admin") as bmc:
        (found,) = await bmc.probe(GIGABYTE)
        assert (found.kind, found.severity) == (IN_USE, Severity.CRITICAL)
        assert bmc.failures() == 0


@pytest.mark.parametrize(
    ("user", "password", "named"),
    [("", "", "the user without a name"), ("admin", "cmb9.admin", "'admin'"), ("root", "superuser", "'root'")],
)
async def test_each_factory_credential_of_a_quanta_is_found(
    tmp_path: Path, vault: Vault, user: str, password: str, named: str
) -> None:
    async with lab_bmc(tmp_path / "bmc", vault, password, user) as bmc:
        found = [each for each in await bmc.probe(QUANTA, lockout_threshold=10) if each.kind == IN_USE]
    assert [each.severity for each in found] == [Severity.CRITICAL]
    assert f"documented password for {named}" in found[0].detail
    assert not password or password not in repr(found)


async def test_a_bmc_that_refuses_all_of_a_quanta_s_is_asked_once_for_each(changed: Bmc) -> None:
    assert await changed.probe(QUANTA, lockout_threshold=5) == ()
    assert changed.failures() == 1  # the one account of the three that is there
    assert kinds(await changed.probe(QUANTA, lockout_threshold=5)) == [UNTRIED]
