"""Accounts, roles, lockout, password policy, sessions."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from bmc_rig import PASSWORD, ROOT, SYSTEM, Rig, error_key, login, running

SERVICE = f"{ROOT}/AccountService"
ACCOUNTS = f"{SERVICE}/Accounts"
SESSIONS = f"{ROOT}/SessionService/Sessions"
NEW = {"UserName": "freehold", "Password": "a-long-password", "RoleId": "Administrator"}


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(tmp_path) as rig:
        yield rig


async def add(rig: Rig, **changes: Any) -> str:
    status, body = await rig.post(ACCOUNTS, {**NEW, **changes})
    assert status == 201, body
    assert rig.headers["Location"] == body["@odata.id"]
    return str(body["@odata.id"])


async def session(rig: Rig, user_name: str = "root", password: str = PASSWORD) -> tuple[int, str, str]:
    """(status, token, URI)"""
    status, body = await rig.post(SESSIONS, {"UserName": user_name, "Password": password}, auth=None)
    return status, rig.headers.get("X-Auth-Token", ""), body.get("@odata.id", "")


async def test_new_account_can_log_in_and_its_password_is_not_shown(rig: Rig) -> None:
    uri = await add(rig)
    assert (await rig.get(SYSTEM, auth=login("freehold", NEW["Password"])))[0] == 200
    _, body = await rig.get(uri)
    assert body["Password"] is None
    assert body["RoleId"] == "Administrator"
    assert "AccountAdded" in await rig.log()


async def test_password_file_holds_no_password(rig: Rig, tmp_path: Path) -> None:
    await add(rig)
    state = tmp_path / "bmc.json"
    assert NEW["Password"] not in state.read_text()
    assert PASSWORD not in state.read_text()
    assert state.stat().st_mode & 0o077 == 0


async def test_password_change_ends_the_old_password_and_other_sessions(rig: Rig) -> None:
    uri = await add(rig)
    _, mine, _ = await session(rig, "freehold", NEW["Password"])
    _, other, _ = await session(rig, "freehold", NEW["Password"])
    headers = {"X-Auth-Token": mine}
    assert (await rig.patch(uri, {"Password": "another-password"}, auth=None, headers=headers))[0] == 200
    assert (await rig.get(SYSTEM, auth=None, headers=headers))[0] == 200
    assert (await rig.get(SYSTEM, auth=None, headers={"X-Auth-Token": other}))[0] == 401
    assert (await rig.get(SYSTEM, auth=login("freehold", NEW["Password"])))[0] == 401
    assert (await rig.get(SYSTEM, auth=login("freehold", "another-password")))[0] == 200


async def test_disabled_and_deleted_accounts_are_out(rig: Rig) -> None:
    uri = await add(rig)
    auth = login("freehold", NEW["Password"])
    _, token, _ = await session(rig, "freehold", NEW["Password"])
    await rig.patch(uri, {"Enabled": False})
    assert (await rig.get(SYSTEM, auth=auth))[0] == 401
    assert (await rig.get(SYSTEM, auth=None, headers={"X-Auth-Token": token}))[0] == 401
    await rig.patch(uri, {"Enabled": True})
    assert (await rig.get(SYSTEM, auth=auth))[0] == 200
    assert (await rig.delete(uri))[0] == 204
    assert (await rig.get(uri))[0] == 404
    assert (await rig.get(SYSTEM, auth=auth))[0] == 401


@pytest.mark.parametrize("password", ["short", "x" * 41])
async def test_password_policy_is_enforced(rig: Rig, password: str) -> None:
    status, body = await rig.post(ACCOUNTS, {**NEW, "Password": password})
    assert (status, error_key(body)) == (400, "PasswordLength")
    status, body = await rig.patch(f"{ACCOUNTS}/1", {"Password": password})
    assert (status, error_key(body)) == (400, "PasswordLength")
    assert (await rig.get(SYSTEM))[0] == 200


async def test_password_policy_can_be_changed(rig: Rig) -> None:
    assert (await rig.patch(SERVICE, {"MinPasswordLength": 20}))[0] == 200
    assert (await rig.post(ACCOUNTS, NEW))[0] == 400
    status, body = await rig.patch(SERVICE, {"MinPasswordLength": 30, "MaxPasswordLength": 29})
    assert (status, error_key(body)) == (400, "PropertyValueConflict")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"UserName": "root"}, "ResourceAlreadyExists"),
        ({"UserName": "a b"}, "PropertyValueFormatError"),
        ({"RoleId": "King"}, "PropertyValueNotInList"),
        ({"Shoe": 45}, "PropertyUnknown"),
    ],
)
async def test_bad_accounts_are_refused(rig: Rig, change: dict[str, Any], key: str) -> None:
    status, body = await rig.post(ACCOUNTS, {**NEW, **change})
    assert (status, error_key(body)) == (400, key)


async def test_account_without_password_is_refused(rig: Rig) -> None:
    status, body = await rig.post(ACCOUNTS, {"UserName": "x", "RoleId": "ReadOnly"})
    assert (status, error_key(body)) == (400, "PropertyMissing")


async def test_the_last_administrator_stays(rig: Rig) -> None:
    for attempt in (rig.delete(f"{ACCOUNTS}/1"), rig.patch(f"{ACCOUNTS}/1", {"Enabled": False})):
        status, body = await attempt
        assert (status, error_key(body)) == (403, "ResourceCannotBeDeleted")
    assert (await rig.patch(f"{ACCOUNTS}/1", {"RoleId": "ReadOnly"}))[0] == 403
    uri = await add(rig)
    assert (await rig.delete(f"{ACCOUNTS}/1"))[0] == 204
    assert (await rig.get(uri, auth=login("freehold", NEW["Password"])))[0] == 200


async def test_read_only_may_read_and_change_its_own_password_only(rig: Rig) -> None:
    uri = await add(rig, RoleId="ReadOnly")
    auth = login("freehold", NEW["Password"])
    assert (await rig.get(SYSTEM, auth=auth))[0] == 200
    for attempt in (
        rig.patch(SYSTEM, {"AssetTag": "x"}, auth=auth),
        rig.post(f"{SYSTEM}/Actions/ComputerSystem.Reset", {"ResetType": "On"}, auth=auth),
        rig.post(f"{ROOT}/UpdateService/update-multipart", {}, auth=auth),
        rig.post(ACCOUNTS, {**NEW, "UserName": "y"}, auth=auth),
        rig.patch(f"{ACCOUNTS}/1", {"Password": "stolen-password"}, auth=auth),
        rig.patch(uri, {"RoleId": "Administrator"}, auth=auth),
        rig.delete(f"{ACCOUNTS}/1", auth=auth),
    ):
        status, body = await attempt
        assert (status, error_key(body)) == (403, "InsufficientPrivilege")
    assert (await rig.patch(uri, {"Password": "my-new-password"}, auth=auth))[0] == 200
    assert rig.hardware.boots == []


async def test_password_change_required(rig: Rig) -> None:
    uri = await add(rig, PasswordChangeRequired=True)
    auth = login("freehold", NEW["Password"])
    status, body = await rig.get(SYSTEM, auth=auth)
    assert (status, error_key(body)) == (403, "PasswordChangeRequired")
    assert (await rig.post(f"{ROOT}/UpdateService/update-multipart", {}, auth=auth))[0] == 403
    assert (await rig.patch(uri, {"Password": "my-new-password"}, auth=auth))[0] == 200
    assert (await rig.get(SYSTEM, auth=login("freehold", "my-new-password")))[0] == 200


async def fail(rig: Rig, times: int, user_name: str = "root") -> None:
    for _ in range(times):
        assert (await rig.get(SYSTEM, auth=login(user_name, "wrong")))[0] == 401


async def test_lockout_refuses_the_right_password_until_the_duration_is_over(rig: Rig) -> None:
    await add(rig)
    await fail(rig, 5, "freehold")
    right = login("freehold", NEW["Password"])
    assert (await rig.get(SYSTEM, auth=right))[0] == 401
    assert (await session(rig, "freehold", NEW["Password"]))[0] == 401
    assert (await rig.get(f"{ACCOUNTS}/2"))[1]["Locked"] is True
    log = await rig.log()
    assert log.count("LoginFailed") >= 5
    assert log.count("AccountLocked") == 1
    rig.clock.now += 299
    assert (await rig.get(SYSTEM, auth=right))[0] == 401
    rig.clock.now += 2
    assert (await rig.get(SYSTEM, auth=right))[0] == 200
    assert (await rig.get(f"{ACCOUNTS}/2"))[1]["Locked"] is False


async def test_lockout_counter_resets(rig: Rig) -> None:
    await fail(rig, 4)
    rig.clock.now += 61
    await fail(rig, 4)
    assert (await rig.get(SYSTEM))[0] == 200
    await fail(rig, 4)  # the success reset the counter
    assert (await rig.get(SYSTEM))[0] == 200


async def test_administrator_unlocks(rig: Rig) -> None:
    await add(rig)
    await rig.patch(SERVICE, {"AccountLockoutDuration": 0, "AccountLockoutThreshold": 2})
    await fail(rig, 2, "freehold")
    rig.clock.now += 1_000_000
    assert (await rig.get(SYSTEM, auth=login("freehold", NEW["Password"])))[0] == 401
    assert (await rig.patch(f"{ACCOUNTS}/2", {"Locked": True}))[0] == 400
    assert (await rig.patch(f"{ACCOUNTS}/2", {"Locked": False}))[0] == 200
    assert (await rig.get(SYSTEM, auth=login("freehold", NEW["Password"])))[0] == 200


async def test_no_lockout_with_threshold_zero(rig: Rig) -> None:
    await rig.patch(SERVICE, {"AccountLockoutThreshold": 0})
    await fail(rig, 12)
    assert (await rig.get(SYSTEM))[0] == 200


async def test_lockout_policy_must_fit(rig: Rig) -> None:
    status, body = await rig.patch(SERVICE, {"AccountLockoutDuration": 30})
    assert (status, error_key(body)) == (400, "PropertyValueConflict")


async def test_unknown_user_is_refused(rig: Rig) -> None:
    await fail(rig, 6, "nobody")
    assert "AccountLocked" not in await rig.log()


async def test_session_life(rig: Rig) -> None:
    status, token, uri = await session(rig)
    assert status == 201
    headers = {"X-Auth-Token": token}
    _, body = await rig.get(uri, auth=None, headers=headers)
    assert body["UserName"] == "root"
    assert token not in str(body)
    assert (await rig.delete(uri, auth=None, headers=headers))[0] == 204
    assert (await rig.get(SYSTEM, auth=None, headers=headers))[0] == 401
    assert (await session(rig, password="wrong"))[0] == 401


async def test_idle_session_ends_and_a_used_one_lives(rig: Rig) -> None:
    await rig.patch(f"{ROOT}/SessionService", {"SessionTimeout": 60})
    _, used, _ = await session(rig)
    _, idle, _ = await session(rig)
    for _ in range(3):
        rig.clock.now += 40
        assert (await rig.get(SYSTEM, auth=None, headers={"X-Auth-Token": used}))[0] == 200
    assert (await rig.get(SYSTEM, auth=None, headers={"X-Auth-Token": idle}))[0] == 401
    _, body = await rig.get(SESSIONS)
    assert body["Members@odata.count"] == 1


async def test_only_administrators_end_other_peoples_sessions(rig: Rig) -> None:
    await add(rig, RoleId="Operator")
    _, _, uri = await session(rig)
    assert (await rig.delete(uri, auth=login("freehold", NEW["Password"])))[0] == 403
    assert (await rig.delete(uri))[0] == 204


async def test_bmc_remembers_over_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as first:
        await add(first)
        await first.patch(SERVICE, {"AccountLockoutThreshold": 3})
        await first.patch(f"{ROOT}/Managers/1/NetworkProtocol", {"IPMI": {"ProtocolEnabled": False}})
        await fail(first, 3)
        before = (await first.get(ROOT, auth=None))[1]["UUID"]
    async with running(tmp_path) as second:
        assert (await second.get(SYSTEM))[0] == 401  # root is still locked
        second.auth = login("freehold", NEW["Password"])
        assert (await second.get(SERVICE))[1]["AccountLockoutThreshold"] == 3
        _, protocols = await second.get(f"{ROOT}/Managers/1/NetworkProtocol")
        assert protocols["IPMI"]["ProtocolEnabled"] is False
        assert (await second.get(ROOT))[1]["UUID"] == before
        assert "AccountLocked" in await second.log()
