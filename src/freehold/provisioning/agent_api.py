"""The server side of the agent protocol (docs/architecture.md): HTTP in, typed calls to a backend, HTTP out.

It decides nothing. The backend says who is trusted; this module bounds, decodes and names what is wrong, and keeps
the reasons of unexpected failures in the log instead of the answer.
"""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import msgspec
from aiohttp import web

from freehold.model.errors import FreeholdError
from freehold.provisioning.agent_messages import (
    MAX_EVENT_LOG_BYTES,
    Admission,
    AgentRefusedError,
    Challenge,
    ConflictError,
    Entry,
    Evidence,
    Hello,
    Order,
    Progress,
    Ready,
    Result,
    UnknownCertificateError,
    UnknownOrderError,
)

log = logging.getLogger(__name__)
Message = TypeVar("Message")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# Body limits in bytes by last path word. An inventory of a big server stays far below 4 MiB.
LIMITS = {"hello": 64 << 10, "attest": MAX_EVENT_LOG_BYTES * 4 // 3 + (64 << 10), "result": 4 << 20}
DEFAULT_LIMIT = 64 << 10
LONGEST_WAIT_S = 60.0


class AgentBackend(Protocol):
    """What the controller does with the agent's words. Errors: the classes of `agent_messages`; others become a 500.

    `peer` is the agent's IP address; `certificate` the SHA-256 (hex) of the certificate whose key it has shown to hold.
    Methods that take one raise UnknownCertificateError unless it is that of a live session.
    """

    async def hello(self, hello: Hello, peer: str) -> Challenge: ...

    async def attest(self, evidence: Evidence, tls_certificate_sha256: bytes, peer: str) -> Admission:
        """The session's certificate. Burns the challenge whatever the verdict; AgentRefusedError names the failing
        event."""
        ...

    async def enter(self, entry: Entry, peer: str) -> Admission:
        """The session's certificate, for a ticket in place of an attestation."""
        ...

    async def authenticate(self, certificate: str) -> None:
        """Asked before a body is read."""
        ...

    async def next_order(self, certificate: str, wait: float) -> Order | None: ...

    async def progress(self, certificate: str, order_id: str, progress: Progress) -> None: ...

    async def result(self, certificate: str, order_id: str, result: Result) -> None:
        """Idempotent: the same result for the same order again is fine."""
        ...

    async def ready(self, certificate: str, ready: Ready) -> None: ...


def create_agent_app(backend: AgentBackend, tls_certificate_sha256: bytes) -> web.Application:
    """The application for the HTTPS port; the digest is that of the DER of the certificate that the port shows."""
    if len(tls_certificate_sha256) != 32:
        raise ValueError("tls_certificate_sha256 must be 32 bytes")

    async def hello(request: web.Request) -> web.Response:
        return answer(await backend.hello(await body_of(request, Hello), peer_of(request)))

    async def attest(request: web.Request) -> web.Response:
        evidence = await body_of(request, Evidence)
        return answer(await backend.attest(evidence, tls_certificate_sha256, peer_of(request)))

    async def enter(request: web.Request) -> web.Response:
        return answer(await backend.enter(await body_of(request, Entry), peer_of(request)))

    async def orders(request: web.Request) -> web.Response:
        certificate, wait = await session_of(request), wait_of(request)
        order = await backend.next_order(certificate, wait)
        return web.Response(status=204) if order is None else answer({"order": order})

    async def progress(request: web.Request) -> web.Response:
        certificate = await session_of(request)
        await backend.progress(certificate, request.match_info["id"], await body_of(request, Progress))
        return web.Response(status=204)

    async def result(request: web.Request) -> web.Response:
        certificate = await session_of(request)
        await backend.result(certificate, request.match_info["id"], await body_of(request, Result))
        return web.Response(status=204)

    async def ready(request: web.Request) -> web.Response:
        certificate = await session_of(request)
        await backend.ready(certificate, await body_of(request, Ready))
        return web.Response(status=204)

    async def session_of(request: web.Request) -> str:
        certificate = certificate_of(request)
        if certificate is None:
            raise UnknownCertificateError("the agent shows no certificate", remedy="attest first")
        await backend.authenticate(certificate)
        return certificate

    app = web.Application(middlewares=[errors_as_json], client_max_size=max(LIMITS.values()))
    app.router.add_post("/agent/v1/hello", hello)
    app.router.add_post("/agent/v1/attest", attest)
    app.router.add_post("/agent/v1/enter", enter)
    app.router.add_get("/agent/v1/orders", orders)
    app.router.add_post("/agent/v1/orders/{id}/progress", progress)
    app.router.add_post("/agent/v1/orders/{id}/result", result)
    app.router.add_post("/agent/v1/ready", ready)
    return app


async def body_of(request: web.Request, kind: type[Message]) -> Message:
    """The body as `kind`, or 400 that names the field, or 413."""
    limit = LIMITS.get(request.path.rpartition("/")[2], DEFAULT_LIMIT)
    data = bytearray()
    async for chunk in request.content.iter_chunked(1 << 16):
        data += chunk
        if len(data) > limit:
            raise web.HTTPRequestEntityTooLarge(limit, len(data))
    try:
        return msgspec.json.decode(bytes(data), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # ValidationError is a DecodeError
        raise web.HTTPBadRequest(reason="bad message", text=f"{kind.__name__}: {error}") from error


def wait_of(request: web.Request) -> float:
    """The `wait` parameter in seconds: 0 to 60, 20 when absent."""
    text = request.query.get("wait", "20")
    if not (text.isascii() and text.isdecimal()):
        raise web.HTTPBadRequest(reason="bad message", text=f"wait: {text[:40]!r} is not a whole number of seconds")
    return min(float(text[:9]), LONGEST_WAIT_S)


def peer_of(request: web.Request) -> str:
    """The agent's address; no proxy stands in between, so no header is believed."""
    return request.remote or "unknown"


def certificate_of(request: web.Request) -> str | None:
    """The SHA-256 (hex) of the certificate that the peer of this connection showed and TLS verified; None: it showed
    none."""
    tls = request.transport.get_extra_info("ssl_object") if request.transport is not None else None
    der = tls.getpeercert(binary_form=True) if tls is not None else None
    return hashlib.sha256(der).hexdigest() if der else None


def answer(message: object, status: int = 200) -> web.Response:
    """A message as JSON; bytes become base64."""
    return web.Response(status=status, body=msgspec.json.encode(message), content_type="application/json")


def refusal(status: int, what: str, remedy: str) -> web.Response:
    """The error shape of the protocol."""
    return answer({"error": {"what": what, "remedy": remedy}}, status)


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure in the protocol's shape. What nobody expected is logged here and not told to the peer."""
    try:
        return await handler(request)
    except (AgentRefusedError, UnknownCertificateError, UnknownOrderError, ConflictError) as error:
        return refusal(error.status, error.what, error.remedy or "see the controller's log")
    except web.HTTPException as error:
        return refusal(error.status, error.text or error.reason, "use an agent of the same release as the controller")
    except (asyncio.CancelledError, ConnectionResetError):
        raise
    except FreeholdError as error:
        # Written for the operator: it may name files and hosts of the controller.
        log.error("agent %s: %s %s: %s", peer_of(request), request.method, request.path, error)
    except Exception:
        log.exception("agent %s: %s %s", peer_of(request), request.method, request.path)
    return refusal(500, "the controller failed to handle this request", "see the controller's log")
