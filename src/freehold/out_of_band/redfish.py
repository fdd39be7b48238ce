"""A Redfish client for one BMC (DSP0266): session, errors in words, ETags, tasks, paging, a crawl of the whole tree."""

import asyncio
import base64
import contextlib
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec

from freehold.out_of_band import messages
from freehold.out_of_band.errors import (
    BmcAnswerUnreadable,
    BmcError,
    BmcUnreachable,
    NotSupported,
    OutOfBandError,
    PasswordChangeRequired,
    WrongCredential,
)
from freehold.out_of_band.transport import Answer, BmcIdentity, Call, HttpsTransport, Transport

ROOT = "/redfish/v1/"

MAX_PAGES, MAX_MEMBERS = 1_000, 20_000
"""Of one collection: far more than any BMC has, and an end to one that lists for ever."""

Json = dict[str, Any]


class Credential(msgspec.Struct, frozen=True):
    """A BMC account. `generated` tells a password that we made from one that a factory or a person did."""

    username: str
    password: str
    generated: bool = False

    def __repr__(self) -> str:
        return f"Credential({self.username!r}, password hidden)"


class Crawl(msgspec.Struct, frozen=True):
    """Every resource by URI, and why the rest of what was linked could not be read."""

    resources: dict[str, Json]
    unreadable: dict[str, str]


def link(resource: Json | None, *names: str) -> str | None:
    """The `@odata.id` found along `names`, e.g. `link(system, "SecureBoot")`; None if any step is absent."""
    value: Any = resource
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    uri = value.get("@odata.id") if isinstance(value, dict) else None
    return uri if isinstance(uri, str) and uri.startswith("/") else None


class RedfishClient:
    """One logged-in conversation: `async with RedfishClient.connect(…) as client`. Logs in on entry, out at the end.

    A refused credential is never tried again by this object: every later call raises `WrongCredential` without sending.
    """

    def __init__(
        self,
        transport: Transport,
        credential: Credential,
        *,
        server: str | None = None,
        timeout: float = 30.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.server, self.timeout = server, timeout
        self.root: Json = {}
        self.password_change_account: str | None = None
        """Set when our account may do nothing but change its password: its URI, or "" if the BMC does not say."""
        self._transport, self._credential, self._sleep = transport, credential, sleep
        self._authorization: dict[str, str] = {}
        self._session_uri: str | None = None
        self._refused = False
        self._session_lost = False  # and not opened anew yet
        self._secrets: set[str] = set()
        """All that was sent in this conversation and must not come back in an error."""

    @classmethod
    def connect(
        cls,
        address: str,
        identity: BmcIdentity,
        credential: Credential,
        *,
        server: str | None = None,
        timeout: float = 30.0,
    ) -> Self:
        """A client over verified TLS; nothing is sent before `async with`."""
        return cls(HttpsTransport(address, identity, server=server), credential, server=server, timeout=timeout)

    async def __aenter__(self) -> Self:
        try:
            await self.login()
        except BaseException:
            await self._transport.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._session_uri is not None:
                # A session left behind ends by its own timeout, so failing here must not hide the caller's result.
                with contextlib.suppress(OutOfBandError):
                    await self._send(Call(method="DELETE", path=self._session_uri, timeout=5.0))
        finally:
            await self._transport.close()

    async def login(self) -> None:
        """One attempt: a session where the BMC has them (DSP0266, 13.3.4), else Basic, proven on a resource."""
        answer = await self._send(Call(method="GET", path=ROOT, timeout=self.timeout))
        messages.raise_for(answer, "GET", ROOT, server=self.server, secrets=self._secrets)
        self.root = answer.body or {}
        self._authorization = {}
        sessions = link(self.root, "Links", "Sessions")
        if sessions is not None and await self._open_session(sessions):
            return
        pair = f"{self._credential.username}:{self._credential.password}".encode()
        self._authorization = {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}
        try:
            await self.get(link(self.root, "Systems") or ROOT + "Systems")
        except PasswordChangeRequired as error:
            self.password_change_account = error.account

    async def _open_session(self, sessions: str) -> bool:
        """False if this BMC has no sessions (so nothing was tried)."""
        body = {"UserName": self._credential.username, "Password": self._credential.password}
        answer = await self._send(Call(method="POST", path=sessions, body=body, timeout=self.timeout))
        if answer.status in (404, 405, 501):
            return False
        try:
            messages.raise_for(answer, "POST", sessions, server=self.server, logging_in=True, secrets=self._secrets)
        except WrongCredential:
            self._refused = True
            raise
        token = answer.headers.get("x-auth-token")
        if not token:
            raise BmcAnswerUnreadable(
                "the BMC opened a session but gave no X-Auth-Token", server=self.server, remedy="update its firmware"
            )
        self._authorization = {"X-Auth-Token": token}
        location = answer.headers.get("location") or (answer.body or {}).get("@odata.id") or ""
        self._session_uri = _path(location) if location else None
        self.password_change_account = messages.password_change_account(answer.body)
        return True

    async def _send(self, call: Call) -> Answer:
        if self._refused:
            raise messages.wrong_credential(self.server)
        headers = {**call.headers, **self._authorization}
        shown = {value.removeprefix("Basic ") for value in self._authorization.values()}
        self._secrets |= {self._credential.password, *shown, *messages.secrets_in(call.body)}
        return await self._transport.request(msgspec.structs.replace(call, headers=headers))

    async def _call(self, method: str, path: str, *, anew: bool = True, **parts: Any) -> Answer:
        """Send and raise typed errors. A session that the BMC forgot (it restarted) is opened anew, once; not so if the
        password may have changed: then `anew` is False."""
        call = Call(method=method, path=path, **{"timeout": self.timeout, **parts})
        if self._session_lost and not self._authorization:
            # The BMC went away while we logged in again. Sent without a token, the call would look like a refusal.
            await self._log_in_again()
        answer = await self._send(call)
        if answer.status == 401 and anew and "X-Auth-Token" in self._authorization:
            # 401 means that nothing was done (RFC 9110, 15.5.2), so even a POST may be sent again with a new token.
            await self._log_in_again()
            answer = await self._send(call)
        try:
            messages.raise_for(answer, method, path, server=self.server, secrets=self._secrets)
        except WrongCredential as error:
            if anew and "X-Auth-Token" in self._authorization:  # it took the password a moment ago
                self._authorization, self._session_uri, self._session_lost = {}, None, True
                raise BmcUnreachable(
                    f"{method} {path}: the BMC forgot the session that it had just opened; nothing was done",
                    server=self.server,
                    remedy="it may be starting anew, and is tried again by itself",
                ) from error
            self._refused = True
            raise
        return answer

    async def _log_in_again(self) -> None:
        self._authorization, self._session_uri, self._session_lost = {}, None, True
        await self.login()
        self._session_lost = False

    async def read(self, path: str, *, timeout: float | None = None) -> Answer:
        """GET with its headers; the body is there."""
        answer = await self._call("GET", path, timeout=timeout or self.timeout)
        if answer.body is None:
            raise BmcAnswerUnreadable(f"GET {path}: HTTP {answer.status} without a JSON object", server=self.server)
        return answer

    async def get(self, path: str, *, timeout: float | None = None) -> Json:
        return (await self.read(path, timeout=timeout)).body or {}

    async def patch(self, path: str, body: Json, *, timeout: float | None = None) -> Answer:
        """PATCH under the ETag just read. If somebody changed the resource in between (412) it is read again, once."""
        for last in (False, True):
            current = await self.read(path)
            etag = current.headers.get("etag") or (current.body or {}).get("@odata.etag")
            if isinstance(etag, str) and last:
                etag = etag.removeprefix("W/")  # some BMCs hand out weak tags and compare strongly (RFC 9110, 13.1.1)
            headers = {"If-Match": etag} if isinstance(etag, str) and etag else {}
            try:
                return await self._call("PATCH", path, body=body, headers=headers, timeout=timeout or self.timeout)
            except BmcError as error:
                if last or error.status not in (412, 428):
                    raise
        raise AssertionError("unreachable: the second round returns or raises")

    async def post(self, path: str, body: Json, *, timeout: float | None = None) -> Answer:
        """POST once. `BmcUnreachable` means that the outcome is unknown: re-read the state before trying again."""
        return await self._call("POST", path, body=body, timeout=timeout or self.timeout)

    async def upload(self, path: str, content: bytes, content_type: str, *, timeout: float) -> Answer:
        """POST of a file, once; as `post`. `path` is as the BMC tells it, but always on this BMC."""
        headers = {"Content-Type": content_type}
        return await self._call("POST", _path(path), content=content, headers=headers, timeout=timeout)

    async def delete(self, path: str, *, timeout: float | None = None) -> None:
        """DELETE; a resource that is already gone is success."""
        try:
            await self._call("DELETE", path, timeout=timeout or self.timeout)
        except NotSupported as error:
            if await self.exists(path):
                raise NotSupported(f"DELETE {path} is not supported", server=self.server) from error

    async def exists(self, path: str) -> bool:
        answer = await self._send(Call(method="GET", path=path, timeout=self.timeout))
        if answer.status in (404, 410):
            return False
        messages.raise_for(answer, "GET", path, server=self.server, secrets=self._secrets)
        return True

    async def action(self, resource: Json, name: str, body: Json, *, timeout: float | None = None) -> Answer:
        """POST to the action's own target (`#ComputerSystem.Reset`), never to a guessed path."""
        found = (resource.get("Actions") or {}).get(f"#{name}")
        target = found.get("target") if isinstance(found, dict) else None
        if not isinstance(target, str):
            raise NotSupported(f"{resource.get('@odata.id')} has no action {name}", server=self.server)
        return await self.post(target, body, timeout=timeout)

    async def members(self, path: str, *, missing: list[str] | None = None) -> list[Json]:
        """All members of a collection, pages followed. Members that the BMC lists but does not have go to `missing`."""
        found: list[Json] = []
        visited: set[str] = set()
        page: str | None = path
        listed = 0
        while page is not None and page not in visited:  # some services link a last page to itself
            visited.add(page)
            body = await self.get(page)
            members = body.get("Members") or []
            if not isinstance(members, list):
                raise BmcAnswerUnreadable(f"{page}: its Members are no list", server=self.server)
            listed += len(members)
            if listed > MAX_MEMBERS:
                raise self._endless(path)
            for member in members:
                uri = link(member)
                if isinstance(member, dict) and len(member) > 1:
                    found.append(member)  # expanded in the collection
                elif uri is not None:
                    try:
                        found.append(await self.get(uri))
                    except NotSupported:
                        if missing is not None:
                            missing.append(uri)
            following = body.get("Members@odata.nextLink") or body.get("@odata.nextLink")
            page = following if isinstance(following, str) else None
            if len(visited) > MAX_PAGES:
                raise self._endless(path)
        seen: dict[str, Json] = {}
        for number, member in enumerate(found):
            seen.setdefault(link(member) or str(number), member)
        return list(seen.values())

    def _endless(self, path: str) -> BmcAnswerUnreadable:
        return BmcAnswerUnreadable(
            f"the collection {path} does not end",
            server=self.server,
            expected=f"at most {MAX_MEMBERS} members on {MAX_PAGES} pages",
            remedy="restart the BMC; if it goes on so, replace its firmware",
        )

    async def wait_task(self, answer: Answer, *, timeout: float = 600.0, poll: float = 2.0, anew: bool = True) -> Json:
        """Wait until what `answer` (202) started is over; other answers are over already. Returns the last body.

        Follows the task monitor in `Location` and the `Task` resource (DSP0266, 12.2). `BmcError` if the task failed.
        """
        if answer.status != 202:
            return answer.body or {}
        monitor = answer.headers.get("location") or link(answer.body)
        if monitor is None:
            raise BmcAnswerUnreadable("the BMC accepted a task but does not say where it is", server=self.server)
        monitor = _path(monitor)
        began, waited = time.monotonic(), 0.0
        while True:
            now = await self._call("GET", monitor, anew=anew)
            body = now.body or {}
            state = body.get("TaskState")
            if state in ("Exception", "Killed", "Cancelled"):
                reason = messages.text(body, self._secrets) or body.get("TaskStatus") or "no reason given"
                raise BmcError(f"task {monitor} ended as {state}: {reason}", status=now.status, server=self.server)
            if state == "Completed" or (now.status != 202 and "TaskState" not in body):
                return body
            if waited >= timeout:
                raise BmcError(
                    f"task {monitor} is still {state or 'running'} after {timeout:g} s", status=202, server=self.server
                )
            await self._sleep(poll)
            waited = max(waited + poll, time.monotonic() - began)  # a BMC that answers slowly gets no longer

    async def crawl(self, start: str = ROOT, *, limit: int = 20_000) -> Crawl:
        """Read what `start` leads to by `@odata.id`, four at a time. `limit` bounds a BMC that links on for ever."""
        resources: dict[str, Json] = {}
        unreadable: dict[str, str] = {}
        queue = [start]
        known = {_key(start)}
        while queue:
            batch, queue = queue[:4], queue[4:]
            for uri, result in zip(batch, await asyncio.gather(*map(self._try_get, batch)), strict=True):
                if isinstance(result, str):
                    unreadable[uri] = result
                    continue
                resources[uri] = result
                for target in links_in(result):
                    if _key(target) not in known and len(known) < limit:
                        known.add(_key(target))
                        queue.append(target)
        return Crawl(resources, unreadable)

    async def _try_get(self, uri: str) -> Json | str:
        try:
            return await self.get(uri)
        except (NotSupported, BmcError, BmcAnswerUnreadable) as error:
            return error.what


def _path(location: str) -> str:
    """The path of a `Location`, which may be absolute. The host in it is never used: a token stays with its BMC."""
    return urlsplit(location)._replace(scheme="", netloc="").geturl()


def _key(uri: str) -> str:
    return uri.rstrip("/")


def links_in(value: Any) -> list[str]:
    """Every Redfish URI that a resource links to: `@odata.id` and next pages, fragments dropped, in document order."""
    found: list[str] = []
    left: list[tuple[str, Any]] = [("", value)]
    while left:  # a loop: how deep a resource nests is the BMC's choice, how deep the stack is ours
        name, part = left.pop()
        if name == "@odata.id" or name.endswith("@odata.nextLink"):
            if isinstance(part, str) and part.startswith("/redfish/v1"):
                found.append(part.partition("#")[0])
        elif isinstance(part, dict):
            left += reversed(part.items())
        elif isinstance(part, list):
            left += [("", each) for each in reversed(part)]
    return found
