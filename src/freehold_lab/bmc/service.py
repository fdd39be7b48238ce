"""The HTTP side of the BMC: faults, errors, authentication, dispatch to the tree, and the TLS server."""

import asyncio
import base64
import json
import socket
import struct
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from freehold_lab.bmc import (
    account_service,
    certificates,
    events,
    inventory,
    logs,
    managers,
    media,
    root,
    secure_boot,
    sessions,
    systems,
    tasks,
    updates,
)
from freehold_lab.bmc.accounts import ROLES
from freehold_lab.bmc.context import Bmc, BmcConfig
from freehold_lab.bmc.core import ROOT, Call, Found, JsonObject, Reply, Resource, Tree, perform
from freehold_lab.bmc.messages import RedfishError
from freehold_lab.bmc.state import Account
from freehold_lab.hardware import Hardware

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

TREE = Tree(
    resource
    for module in (
        root, sessions, account_service, systems, secure_boot, inventory, media, managers, logs, certificates, updates,
        tasks, events,
    )
    for resource in module.RESOURCES
)  # fmt: skip
METADATA = root.metadata(TREE)
BMC = web.AppKey("bmc", Bmc)
MAX_BODY = updates.MAX_IMAGE_BYTES + (1 << 20)
TASK_MONITORS = f"{tasks.SERVICE}/TaskMonitors/"
RETRY_AFTER = 5


def create_app(hardware: Hardware, config: BmcConfig, *, clock: Callable[[], float] = time.time) -> web.Application:
    """The service without a socket. Reads (and at first makes) the BMC's state in `config.state_dir`.

    `clock` tells UNIX time.
    """
    return _application(Bmc(hardware, config, clock))


def _application(bmc: Bmc) -> web.Application:
    app = web.Application(middlewares=[_faults, _errors], client_max_size=MAX_BODY)
    app[BMC] = bmc
    app.router.add_route("*", "/{path:.*}", _dispatch)

    async def stop(_: web.Application) -> None:
        await bmc.stop()

    async def start(_: web.Application) -> None:
        await media.restore(bmc)
        await bmc.settle_ipmi()

    app.on_startup.append(start)
    app.on_shutdown.append(stop)
    return app


async def serve(hardware: Hardware, config: BmcConfig) -> web.AppRunner:
    """Serve over TLS on `config.address`:`config.port` until `cleanup()` of the runner that is returned. Its
    `addresses` tell the port that was bound if `config.port` is 0."""
    bmc = Bmc(hardware, config)
    runner = web.AppRunner(_application(bmc), access_log=None, shutdown_timeout=1)
    await runner.setup()
    port = await _listen(runner, bmc, config.port)

    async def restart() -> None:
        """As a BMC that boots: connections drop, nothing answers for a while, sessions and tasks are gone."""
        for site in list(runner.sites):
            await site.stop()
        for connection in runner.server.connections if runner.server else []:
            if connection.transport:
                connection.transport.abort()
        bmc.sessions.close(lambda _: False)
        await bmc.tasks.stop()
        if config.ipmi is not None:
            await config.ipmi.silence()
        await asyncio.sleep(config.reset_seconds)
        bmc.tls.load()
        await bmc.settle_ipmi()
        await _listen(runner, bmc, port)

    bmc.restart = restart
    return runner


async def _listen(runner: web.AppRunner, bmc: Bmc, port: int) -> int:
    site = web.TCPSite(runner, bmc.config.address, port, ssl_context=bmc.tls.context, reuse_address=True)
    await site.start()
    return site.port


@web.middleware
async def _faults(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What `Hardware.faults` asks for, before anything else looks at the request."""
    faults = request.app[BMC].hardware.faults
    if faults.connection_resets > 0:
        faults.connection_resets -= 1
        _reset_connection(request)
        return web.Response(status=500)  # never sent
    if faults.bmc_slow_seconds > 0:
        await asyncio.sleep(faults.bmc_slow_seconds)
    if faults.bmc_errors > 0:
        faults.bmc_errors -= 1
        error = RedfishError("ServiceTemporarilyUnavailable", RETRY_AFTER)
        return _json(error.status, error.body(), {"Retry-After": str(RETRY_AFTER)})
    if faults.bmc_html:
        page = "<!DOCTYPE html><html><title>HMC-4</title><body>The management controller is starting.</body></html>"
        return web.Response(text=page, content_type="text/html")
    return await handler(request)


def _reset_connection(request: web.Request) -> None:
    """Close with RST instead of FIN (SO_LINGER of zero seconds)."""
    if request.transport is None:
        return
    connection = request.transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.transport.abort()


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure becomes a Redfish error body."""
    try:
        return await handler(request)
    except RedfishError as error:
        headers = {"WWW-Authenticate": 'Basic realm="Redfish"'} if error.status == 401 else {}
        if error.status == 405:
            headers["Allow"] = ", ".join(_methods_at(request.path))
        return _json(error.status, error.body(), headers)
    except web.HTTPException as error:
        return _json(error.status, RedfishError("GeneralError", error.reason, status=error.status).body())
    except asyncio.CancelledError:
        raise
    except Exception as error:  # the hardware failed: the client must read why, not a stack trace
        failure = RedfishError("GeneralError", f"{type(error).__name__}: {error}")
        request.app.logger.exception("%s %s failed", request.method, request.path)
        return _json(failure.status, failure.body())


def _methods_at(path: str) -> tuple[str, ...]:
    try:
        return TREE.find(path).methods
    except RedfishError:
        return ("GET", "HEAD")


def _json(status: int, body: JsonObject | None, headers: dict[str, str] | None = None) -> web.Response:
    fixed = {"OData-Version": "4.0", "Cache-Control": "no-cache", "Server": "Halden-HMC/4"}
    if body is None:
        return web.Response(status=status, headers={**fixed, **(headers or {})})
    return web.json_response(body, status=status, headers={**fixed, **(headers or {})})


async def _dispatch(request: web.Request) -> web.StreamResponse:
    bmc, path, method = request.app[BMC], request.path, request.method
    if document := _public_document(path):
        if method not in ("GET", "HEAD"):
            raise RedfishError("OperationNotAllowed")
        return document
    account = _authenticate(bmc, request)
    _check_password_change(account, path, method)
    if path == events.SSE_PATH and method == "GET" and _require(account):
        return await bmc.events.stream(request)
    if path == updates.PUSH_PATH and method == "POST":
        _authorize(_require(account), "ConfigureComponents")
        return await _answer(bmc, await updates.push(Call(bmc, path, {}, account, http=request)), account)
    if path.startswith(TASK_MONITORS):
        _require(account)
        return _task_monitor(bmc, path.removeprefix(TASK_MONITORS), method)
    found = _find(path, account)
    if method not in found.methods:
        raise RedfishError("OperationNotAllowed")
    _check_access(found, method, account)
    if any(name.startswith("$") for name in request.query):
        raise RedfishError("QueryNotSupported")  # DSP0266, 7.3: unknown parameters that begin with "$"
    body = await _read_body(request) if method in ("PATCH", "POST") else {}
    call = Call(bmc, found.uri, found.params, account, body, request)
    if method in ("GET", "HEAD"):
        reply = await perform(TREE, found, method, call, "")
        if request.headers.get("If-None-Match") == reply.headers["ETag"]:
            return _json(304, None, dict(reply.headers))
    elif found.action:  # may take long, and must not keep other changes waiting
        reply = await perform(TREE, found, method, call, "")
    else:
        async with bmc.lock:  # so that an ETag that matched still matches while the change is made
            reply = await perform(TREE, found, method, call, request.headers.get("If-Match", ""))
    answer = await _answer(bmc, reply, account)
    if method in ("GET", "HEAD"):
        answer.headers["Allow"] = ", ".join(found.methods)
    return answer


def _public_document(path: str) -> web.Response | None:
    if path.rstrip("/") == "/redfish":
        return _json(200, root.versions())
    if path.rstrip("/") == f"{ROOT}/odata":
        return _json(200, root.odata())
    if path == f"{ROOT}/$metadata":
        return web.Response(text=METADATA, content_type="application/xml", headers={"OData-Version": "4.0"})
    return None


def _find(path: str, account: Account | None) -> Found:
    """Who is not logged in does not learn which resources exist."""
    try:
        return TREE.find(path)
    except RedfishError:
        _require(account)
        raise


async def _answer(bmc: Bmc, reply: Reply, account: Account | None) -> web.Response:
    headers = dict(reply.headers)
    body = reply.body
    if reply.show:
        body = await TREE.represent(TREE.find(reply.show), bmc, account)
        headers.setdefault("ETag", body["@odata.etag"])
    return _json(reply.status, body, headers)


async def _read_body(request: web.Request) -> JsonObject:
    raw = await request.read()
    if not raw:
        return {}
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise RedfishError("MalformedJSON") from error
    if not isinstance(body, dict):
        raise RedfishError("UnrecognizedRequestBody")
    return body


def _authenticate(bmc: Bmc, request: web.Request) -> Account | None:
    """The account of the session token or of HTTP Basic; None if neither is given. Raises 401 if it is wrong."""
    if token := request.headers.get("X-Auth-Token"):
        session = bmc.sessions.use(token, bmc.store.data.session_timeout)
        account = bmc.accounts.all().get(session.account_id) if session else None
        if account is None or not account.enabled:
            raise RedfishError("NoValidSession")
        return account
    scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user_name, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except ValueError as error:
        raise RedfishError("NoValidSession") from error
    account, locked = bmc.accounts.login(user_name, password)
    sessions.note_login(Call(bmc, request.path, {}), user_name, ok=account is not None, locked=locked)
    if account is None:
        raise RedfishError("ResourceAtUriUnauthorized", request.path, "invalid username or password")
    return account


def _require(account: Account | None) -> Account:
    if account is None:
        raise RedfishError("NoValidSession")
    return account


def _check_password_change(account: Account | None, path: str, method: str) -> None:
    """DSP0266, 13.3.7.1: such an account may do nothing but change its password, and begin and end sessions."""
    if account is None or not account.password_change_required:
        return
    own = f"{account_service.SERVICE}/Accounts/{account.id}"
    changes_password = path == own and method in ("GET", "PATCH")
    in_sessions = path.startswith(f"{sessions.SERVICE}/Sessions") and method in ("POST", "DELETE")
    if not (changes_password or in_sessions):
        raise RedfishError("PasswordChangeRequired", own)


def _check_access(found: Found, method: str, account: Account | None) -> None:
    resource = found.resource
    if method in resource.public and not found.action:
        return
    known = _require(account)
    if method not in ("GET", "HEAD") and not resource.self_privilege:
        _authorize(known, _privilege(found, resource))


def _privilege(found: Found, resource: Resource) -> str:
    return (found.action.privilege if found.action else "") or resource.privilege


def _authorize(account: Account, privilege: str) -> None:
    if privilege not in ROLES[account.role]:
        raise RedfishError("InsufficientPrivilege")


def _task_monitor(bmc: Bmc, task_id: str, method: str) -> web.Response:
    """DSP0266, 12: 202 while the task runs, then the answer that the operation would have given."""
    task = bmc.tasks.tasks.get(task_id)
    if task is None:
        raise RedfishError("ResourceMissingAtURI", TASK_MONITORS + task_id)
    if method not in ("GET", "HEAD"):
        raise RedfishError("OperationNotAllowed")
    if not task.ended:
        uri = f"{tasks.SERVICE}/Tasks/{task.id}"
        shown: JsonObject = {
            "@odata.id": uri,
            "@odata.type": "#Task.v1_7_4.Task",
            "Id": task.id,
            **tasks.task_body(task),
        }
        return _json(202, shown, {"Location": TASK_MONITORS + task.id, "Retry-After": "1"})
    if task.state in tasks.FAILED:
        raise RedfishError("GeneralError", task.problem or task.state)
    return _json(204, None)
