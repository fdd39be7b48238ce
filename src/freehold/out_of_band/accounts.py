"""The door through which a take-over reaches a real BMC: accounts over Redfish (ManagerAccount, AccountService)."""

from collections.abc import Awaitable, Callable
from typing import Protocol

from freehold.out_of_band.errors import (
    BmcAnswerUnreadable,
    BmcError,
    ChangeRefused,
    NotSupported,
    PasswordChangeRequired,
    WrongCredential,
)
from freehold.out_of_band.posture import AccountFact, AccountPolicy, read_account_policy, read_accounts
from freehold.out_of_band.redfish import Credential, Json, RedfishClient, link
from freehold.out_of_band.server import delete_account, disable_account
from freehold.out_of_band.transport import Answer

PASSWORD_TASK = 120.0
"""Seconds that a BMC may take for a change of a password that it does as a task."""


class AccountDoor(Protocol):
    """What a take-over needs of a BMC."""

    async def login(self, credential: Credential) -> str | None:
        """One attempt. The account that must change its password ("" if unnamed), or None. `WrongCredential`."""

    async def read(self) -> tuple[AccountPolicy, tuple[AccountFact, ...]]: ...
    async def create(self, credential: Credential) -> bool:
        """Add an administrator; False if this BMC cannot add accounts. Raises as `set_password`."""

    async def set_password(self, account: str, password: str, *, restore: bool) -> None:
        """`restore` also enables and unlocks the account and makes it administrator. Waits for the BMC's task.
        `ChangeRefused` if the BMC said no; whatever else it raises, the change may come into effect later."""

    async def retire(self, account: str) -> bool:
        """Disable, or else delete, another account; False if the BMC lets us do neither."""

    async def close(self) -> None: ...


class RedfishDoor:
    """`AccountDoor` for one BMC. `connect` makes a client that is not logged in yet for a credential; `ensure` is
    awaited before every change, and raises if the caller may not make one (any more)."""

    def __init__(
        self, connect: Callable[[Credential], RedfishClient], ensure: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._connect, self._ensure = connect, ensure
        self._open: RedfishClient | None = None

    @property
    def _client(self) -> RedfishClient:
        if self._open is None:
            raise AssertionError("log in first")
        return self._open

    async def login(self, credential: Credential) -> str | None:
        await self.close()
        client = self._connect(credential)
        await client.__aenter__()
        self._open = client
        if client.password_change_account is None and (service := link(client.root, "AccountService")) is not None:
            try:
                # Not every BMC says at log-in that the password must be changed; the first read tells.
                await client.get(service)
            except PasswordChangeRequired as error:
                return error.account
        return client.password_change_account

    async def _may_change(self) -> None:
        if self._ensure is not None:
            await self._ensure()

    async def close(self) -> None:
        if self._open is not None:
            client, self._open = self._open, None
            await client.__aexit__(None, None, None)

    async def read(self) -> tuple[AccountPolicy, tuple[AccountFact, ...]]:
        return await read_account_policy(self._client), await read_accounts(self._client)

    async def create(self, credential: Credential) -> bool:
        body = {"UserName": credential.username, "Password": credential.password, "RoleId": "Administrator"}
        path = link(await self._client.get(link(self._client.root, "AccountService") or ""), "Accounts")
        if path is None:
            return False
        await self._may_change()
        try:
            answer = await self._client.post(path, {**body, "Enabled": True})
        except NotSupported:
            return await self._fill_slot(path, body)
        except BmcError as error:
            if any(name.endswith("CreateLimitReachedForResource") for name in error.message_ids):
                return False
            raise _refusal(error) from error
        await self._changed(answer)
        return True

    async def _fill_slot(self, path: str, body: Json) -> bool:
        """BMCs with a fixed table of accounts show the free ones as accounts without a name (iDRAC 9 before 7.00)."""
        for member in await self._client.members(path):
            uri = link(member)
            # Slot 1 of that table is reserved and cannot be written.
            if uri is not None and member.get("UserName") == "" and not uri.endswith("/1"):
                await self._change(uri, {**body, "Enabled": True})
                return True
        return False

    async def set_password(self, account: str, password: str, *, restore: bool) -> None:
        body: Json = {"Password": password}
        if restore:
            body |= {"Enabled": True, "RoleId": "Administrator"}
            if (await self._client.get(account)).get("Locked") is True:
                body["Locked"] = False
        await self._may_change()
        await self._change(account, body)

    async def _change(self, account: str, body: Json) -> None:
        try:
            answer = await self._client.patch(account, body)
        except (BmcError, NotSupported) as error:
            raise _refusal(error) from error
        await self._changed(answer)

    async def _changed(self, answer: Answer) -> None:
        """Wait for what the BMC does as a task. Where it does not tell of it, or the old password does not let us look
        any more, the log-in that follows decides."""
        try:
            await self._client.wait_task(answer, timeout=PASSWORD_TASK, anew=False)
        except (NotSupported, BmcAnswerUnreadable, WrongCredential):
            return
        except BmcError as error:
            raise _refusal(error) from error

    async def retire(self, account: str) -> bool:
        await self._may_change()
        try:
            await disable_account(self._client, account)
        except (BmcError, NotSupported):
            try:
                await delete_account(self._client, account)
            except (BmcError, NotSupported):
                return False
        return True


def _refusal(error: BmcError | NotSupported) -> Exception:
    """`ChangeRefused` if the BMC has said no. What it could not do now, or has not ended, it may do later still."""
    status = error.status or 0
    if status == 202 or status >= 500 or status in (408, 409, 429):
        return error
    return ChangeRefused(error.what, server=error.server, remedy=error.remedy)
