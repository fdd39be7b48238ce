"""The internet, as a lab sees it: answers every HTTP request and every name look-up.

It exists so that an open path is demonstrably open, and a cut one demonstrably cut. Run inside the `internet`
namespace, whose packet filter redirects any address in the world to it: `python -m freehold_lab.internet ADDRESS`.
"""

import asyncio
import socket
import struct
import sys
from typing import cast

ANSWER = b"this is the world outside\n"
_HEADER = "!6H"  # RFC 1035, 4.1.1: id, flags, and the counts of questions, answers, authorities, additionals
_RESPONSE = 0x8180  # response, recursion desired and available, no error


def dns_answer(query: bytes, address: str) -> bytes | None:
    """The answer to a query: one A record with our address for any name; None if it is no query."""
    if len(query) < 17:
        return None
    identity, flags, questions, *_ = struct.unpack_from(_HEADER, query)
    if flags & 0x8000 or questions != 1:
        return None
    end = 12
    while query[end]:
        end += 1 + query[end]
        if end + 5 > len(query):
            return None
    question = query[12 : end + 5]
    is_a = struct.unpack_from("!H", query, end + 1)[0] == 1
    record = struct.pack("!HHHIH", 0xC00C, 1, 1, 60, 4) + socket.inet_aton(address) if is_a else b""
    return struct.pack(_HEADER, identity, _RESPONSE, 1, int(is_a), 0, 0) + question + record


class _Names(asyncio.DatagramProtocol):
    def __init__(self, address: str) -> None:
        self._address = address

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if answer := dns_answer(data, self._address):
            self._transport.sendto(answer, addr)


async def _web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        head = (
            f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(ANSWER)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + ANSWER)
        await writer.drain()
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass  # whoever asked has gone
    finally:
        writer.close()


async def serve(address: str) -> None:
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(lambda: _Names(address), local_addr=(address, 53))
    server = await asyncio.start_server(_web, address, 80)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
