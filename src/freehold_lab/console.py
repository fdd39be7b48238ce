"""The serial console of a machine: a log with the seconds since power-on, and a socket for people."""

import asyncio
import contextlib
import re
import time
from pathlib import Path
from typing import TextIO

LOG, SOCKET = "console.log", "console.sock"
_NOISE = re.compile(r"\x1b\[[0-9;?=]*[A-Za-z]|\x1b[()][A-Z0-9]|[\r\0\x07]|\s*Downloading\.*\d+%")
_CLIENT_LIMIT = 1 << 20  # a console client that does not read loses the connection, not the machine


def clean(line: bytes) -> str:
    """A console line as a person reads it: no escape sequences, no progress counters."""
    return _NOISE.sub("", line.decode(errors="replace"))


class Console:
    """Follows what a machine writes; lives as long as its BMC, across reboots of the machine."""

    def __init__(self, directory: Path) -> None:
        self.log = directory / LOG
        self._socket = directory / SOCKET
        self._file: TextIO | None = None
        self._clients: set[asyncio.StreamWriter] = set()
        self._input: asyncio.StreamWriter | None = None
        self._power_on = time.monotonic()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        self._file = self.log.open("a", buffering=1)
        self._socket.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self._socket)

    async def close(self) -> None:
        if self._server:
            self._server.close()
        for client in list(self._clients):
            client.close()
        if self._file:
            self._file.close()
        self._socket.unlink(missing_ok=True)

    def powered_on(self) -> None:
        """The clock of the log starts again."""
        self._power_on = time.monotonic()

    def note(self, text: str) -> None:
        """A line by the lab itself, set apart from what the machine wrote."""
        self._write(f"--- {text}")

    async def follow(self, output: asyncio.StreamReader, keyboard: asyncio.StreamWriter) -> None:
        """Log and pass on one run of the machine, until it ends."""
        self._input, rest = keyboard, b""
        while data := await output.read(65536):
            for client in list(self._clients):
                if client.transport.get_write_buffer_size() > _CLIENT_LIMIT:
                    client.transport.abort()
                else:
                    client.write(data)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._write(clean(line))
        self._input = None
        if rest:
            self._write(clean(rest))

    def _write(self, text: str) -> None:
        if self._file and not self._file.closed:
            self._file.write(f"{time.monotonic() - self._power_on:9.3f} {text}\n")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        try:
            with contextlib.suppress(ConnectionError):
                while typed := await reader.read(4096):
                    if self._input and not self._input.is_closing():
                        self._input.write(typed)
        finally:
            self._clients.discard(writer)
            writer.close()
