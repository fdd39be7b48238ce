"""The media that bring a ticket to a machine without a TPM: its BMC fetches them, on the out-of-band network.

They are made in memory for one boot of one server, lie under an address that nobody can guess, and end with that boot.
"""

import secrets

from aiohttp import web

SECTOR = 2048  # of a CD (ISO 9660): `agent/ticket.py` finds the record at the beginning of one
MAGIC = b"FREEHOLD-TICKET-1 "


def medium(iso: bytes, ticket: bytes) -> bytes:
    """The CD image with one more sector at its end, which bears the ticket and is in no file system."""
    padded = iso + bytes(-len(iso) % SECTOR)
    return padded + (MAGIC + ticket.hex().encode()).ljust(SECTOR, b"\0")


class TicketShelf:
    """`base`: the URL of the port that `add_routes` was called for, without a path."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._media: dict[str, tuple[str, bytes]] = {}  # server -> (part of the address, content)

    def lay(self, server: str, content: bytes) -> str:
        """The URL of `content`, until the server gets another one or `clear` is called."""
        secret = secrets.token_hex(16)
        self._media[server] = (secret, content)
        return f"{self._base}/tickets/{secret}/agent.iso"

    def clear(self, server: str) -> None:
        self._media.pop(server, None)

    def add_routes(self, app: web.Application) -> None:
        """GET and HEAD of what lies here, whole or a range of it: BMCs read media piece by piece; 404 for all else."""
        app.router.add_get("/tickets/{secret}/agent.iso", self._answer)

    async def _answer(self, request: web.Request) -> web.Response:
        wanted = request.match_info["secret"]
        content = next((content for secret, content in self._media.values() if secret == wanted), None)
        if content is None:
            raise web.HTTPNotFound
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        try:
            asked = request.http_range
        except ValueError:
            asked = slice(None, None, 1)
        if asked.start is None and asked.stop is None:
            return web.Response(body=content, headers=headers)
        start, stop, _ = asked.indices(len(content))
        if start >= stop:
            raise web.HTTPRequestRangeNotSatisfiable(headers={"Content-Range": f"bytes */{len(content)}"})
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return web.Response(status=206, body=content[start:stop], headers=headers)
