"""HTTPS for BMCs that take firmware by download alone: a package lies here while one of them is told to fetch it.

The bytes come from memory, as they were verified, under an address that nobody can guess and that ends with the update.
"""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import quote

from aiohttp import web

from freehold.model.errors import FreeholdError

CHUNK = 1 << 20


class NeverFetched(FreeholdError):
    """A BMC says that it is done with a package that it has not fetched whole."""


@dataclass
class _Package:
    content: bytes
    whole: int = 0  # how often its last byte went out


class FirmwareShelf:
    """`base`: the URL of the port that `create_app` is served on, without a path."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._packages: dict[str, _Package] = {}

    @asynccontextmanager
    async def serve(self, content: bytes, name: str) -> AsyncIterator[str]:
        """The URL of `content` while the context is entered. Raises `NeverFetched` at its end if nobody took it whole:
        then nobody can have installed it, whatever he says."""
        secret = secrets.token_hex(16)
        self._packages[secret] = package = _Package(content)
        try:
            yield f"{self._base}/firmware/{secret}/{quote(name.rpartition('/')[2])}"
        finally:
            del self._packages[secret]
        if not package.whole:
            raise NeverFetched(
                "the BMC reports the update as done, and has not fetched the package",
                expected=f"a download of {len(content)} bytes",
                remedy="look at the BMC's log; it may have installed something else, so do not release the server yet",
            )

    def create_app(self) -> web.Application:
        """GET and HEAD of what lies here; 404 for all else."""
        app = web.Application()
        app.router.add_get("/firmware/{secret}/{name}", self._answer)
        return app

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        package = self._packages.get(request.match_info["secret"])
        if package is None:
            raise web.HTTPNotFound
        answer = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        answer.content_length = len(package.content)
        await answer.prepare(request)
        if request.method == "HEAD":
            return answer
        for start in range(0, len(package.content), CHUNK):
            await answer.write(package.content[start : start + CHUNK])
        await answer.write_eof()
        package.whole += 1
        return answer
