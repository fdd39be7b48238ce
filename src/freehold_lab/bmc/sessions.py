"""Sessions and the SessionService. Sessions live in memory: a restart of the BMC ends them, as on real ones."""

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from freehold_lab.bmc.core import OK, ROOT, Call, JsonObject, Reply, Resource, collection, created, link
from freehold_lab.bmc.fields import Range
from freehold_lab.bmc.messages import RedfishError

SERVICE = f"{ROOT}/SessionService"
SESSION_LIMIT = 32


@dataclass
class Session:
    id: str
    token: str
    account_id: str
    user_name: str
    address: str
    created: str
    last_used: float


class Sessions:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._by_token: dict[str, Session] = {}

    def open(self, account_id: str, user_name: str, address: str, created_at: str) -> Session:
        session = Session(
            secrets.token_hex(5), secrets.token_urlsafe(32), account_id, user_name, address, created_at, self._clock()
        )
        self._by_token[session.token] = session
        return session

    def use(self, token: str, timeout: int) -> Session | None:
        """The session of a token, which lives on by being used; None if it is unknown or was idle for `timeout` s."""
        self._expire(timeout)
        session = self._by_token.get(token)
        if session:
            session.last_used = self._clock()
        return session

    def all(self, timeout: int) -> list[Session]:
        self._expire(timeout)
        return list(self._by_token.values())

    def close(self, keep: Callable[[Session], bool]) -> None:
        self._by_token = {token: session for token, session in self._by_token.items() if keep(session)}

    def _expire(self, timeout: int) -> None:
        now = self._clock()
        self.close(lambda session: now - session.last_used <= timeout)


def _all(call: Call) -> list[Session]:
    return call.bmc.sessions.all(call.bmc.store.data.session_timeout)


def _find(call: Call) -> Session:
    for session in _all(call):
        if session.id == call["session"]:
            return session
    raise call.missing()


async def _service(call: Call) -> JsonObject:
    return {
        "Name": "Session Service",
        "Status": OK,
        "ServiceEnabled": True,
        "SessionTimeout": call.bmc.store.data.session_timeout,
        "Sessions": link(f"{SERVICE}/Sessions"),
    }


async def _patch_service(call: Call) -> None:
    call.bmc.store.data.session_timeout = call.body.get("SessionTimeout", call.bmc.store.data.session_timeout)
    call.bmc.store.save()


async def _members(call: Call) -> Iterable[str]:
    return [session.id for session in _all(call)]


async def _session(call: Call) -> JsonObject:
    session = _find(call)
    return {
        "Name": "User Session",
        "UserName": session.user_name,
        "CreatedTime": session.created,
        "ClientOriginIPAddress": session.address,
    }


async def _login(call: Call) -> Reply:
    bmc = call.bmc
    user_name = call.body["UserName"]
    account, locked = bmc.accounts.login(user_name, call.body["Password"])
    note_login(call, user_name, ok=account is not None, locked=locked)
    if account is None:
        raise RedfishError("ResourceAtUriUnauthorized", call.uri, "invalid username or password")
    if len(_all(call)) >= SESSION_LIMIT:
        raise RedfishError("CreateLimitReachedForResource", status=503)
    address = (call.http.remote if call.http else None) or "0.0.0.0"  # noqa: S104 (no address is known)
    session = bmc.sessions.open(account.id, account.user_name, address, bmc.now())
    bmc.record("LoginSucceeded", user_name, origin=SERVICE)
    return created(f"{SERVICE}/Sessions/{session.id}", {"X-Auth-Token": session.token})


def note_login(call: Call, user_name: str, *, ok: bool, locked: bool) -> None:
    """Log a failed login and a lockout."""
    if not ok:
        call.bmc.record("LoginFailed", user_name, origin=SERVICE)
    if locked:
        threshold = call.bmc.store.data.policy.lockout_threshold
        call.bmc.record("AccountLocked", user_name, threshold, origin=f"{ROOT}/AccountService")


async def _logout(call: Call) -> None:
    session = _find(call)
    if call.account and call.account.id != session.account_id and call.account.role != "Administrator":
        raise RedfishError("InsufficientPrivilege")
    call.bmc.sessions.close(lambda other: other.id != session.id)


RESOURCES = (
    Resource(
        SERVICE,
        "SessionService.v1_2_0.SessionService",
        _service,
        fields={"SessionTimeout": Range(30, 86400)},
        patch=_patch_service,
        privilege="ConfigureManager",
    ),
    collection(
        f"{SERVICE}/Sessions",
        "Session",
        "Session Collection",
        _members,
        create=_login,
        create_fields={"UserName": str, "Password": str},
        create_required=("UserName", "Password"),
        public=("POST",),
    ),
    Resource(
        f"{SERVICE}/Sessions/{{session}}",
        "Session.v1_8_0.Session",
        _session,
        delete=_logout,
        privilege="ConfigureManager",
        self_privilege=True,
    ),
)
