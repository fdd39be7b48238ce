"""A UDP port of a BMC, asked one question at a time. Whatever comes back, every question ends in bounded time."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar, cast

T = TypeVar("T")

_ATTEMPTS = 2
_INBOX = 32  # a peer that floods us loses its own answers


class Channel(asyncio.DatagramProtocol):
    """`heard`: a question was answered. `closed`: the host said that nothing listens (ICMP port unreachable)."""

    def __init__(self, timeout: float, budget: float) -> None:
        self.heard = self.closed = False
        self._timeout, self._end = timeout, asyncio.get_running_loop().time() + budget
        self._inbox: asyncio.Queue[bytes] = asyncio.Queue(_INBOX)
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)  # asyncio's own is no subclass of it

    def datagram_received(self, data: bytes, addr: object) -> None:
        if not self._inbox.full():
            self._inbox.put_nowait(data)

    def error_received(self, exc: Exception) -> None:
        if isinstance(exc, ConnectionRefusedError):
            self.closed = True
            self.datagram_received(b"", None)  # wakes whoever waits

    async def ask(self, packet: bytes, read: Callable[[bytes], T | None], *, attempts: int = _ATTEMPTS) -> T | None:
        """Send, and wait for a datagram that `read` understands; others are dropped. None if there was none within the
        timeout of each attempt, if the budget is spent, or if nothing listens."""
        assert self._transport is not None
        while not self._inbox.empty():
            self._inbox.get_nowait()
        loop = asyncio.get_running_loop()
        for _ in range(attempts):
            left = min(self._timeout, self._end - loop.time())
            if left <= 0 or self.closed:
                break
            self._transport.sendto(packet)
            try:
                async with asyncio.timeout(left):
                    answer = await self._next(read)
            except TimeoutError:
                continue
            self.heard = self.heard or answer is not None
            return answer
        return None

    async def _next(self, read: Callable[[bytes], T | None]) -> T | None:
        while not self.closed:
            answer = read(await self._inbox.get())
            if answer is not None:
                return answer
        return None


@asynccontextmanager
async def channel(address: str, port: int, *, timeout: float, budget: float) -> AsyncIterator[Channel]:
    """A connected socket, so that only datagrams from this address and port get in. Seconds: `timeout` of one attempt,
    `budget` of all questions together."""
    loop = asyncio.get_running_loop()
    transport, made = await loop.create_datagram_endpoint(lambda: Channel(timeout, budget), remote_addr=(address, port))
    try:
        yield made
    finally:
        transport.close()
