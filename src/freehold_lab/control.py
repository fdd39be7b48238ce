"""The control socket of a machine: the lab's own side door, for faults and for whoever stands at the rack.

One JSON object a line each way: `{"op": NAME, …}` → `{"ok": true, "result": {…}}` or
`{"ok": false, "error": {"what", "remedy"}}`.
"""

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from freehold_lab.errors import LabError

Operation = Callable[[dict[str, Any]], Awaitable[Any]]


async def serve(path: Path, operations: dict[str, Operation]) -> asyncio.Server:
    """Answer on `path` (short, e.g. relative: unix addresses have at most 107 bytes)."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async for line in reader:
                writer.write(json.dumps(await answer(line, operations)).encode() + b"\n")
                await writer.drain()
        except ConnectionError:
            pass  # whoever asked has gone
        finally:
            writer.close()

    path.unlink(missing_ok=True)
    return await asyncio.start_unix_server(handle, path)


async def answer(line: bytes, operations: dict[str, Operation]) -> dict[str, Any]:
    try:
        request = json.loads(line)
        operation = operations[request.pop("op")]
    except (ValueError, KeyError, TypeError, AttributeError):
        return _refusal(
            f"unknown request {line.decode(errors='replace').strip()!r}", f"Operations: {', '.join(operations)}."
        )
    try:
        return {"ok": True, "result": await operation(request)}
    except LabError as exc:
        return _refusal(str(exc.what), exc.remedy)
    except (KeyError, TypeError, ValueError, OSError) as exc:
        return _refusal(f"{type(exc).__name__}: {exc}", None)


def _refusal(what: str, remedy: str | None) -> dict[str, Any]:
    return {"ok": False, "error": {"what": what, "remedy": remedy}}


def connect(path: Path, *, seconds: float = 10.0) -> socket.socket:
    """A connection to a unix socket at a path of any length."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(seconds)
        try:
            connection.connect(f"/proc/self/fd/{directory}/{path.name}")
        except OSError:
            connection.close()
            raise
        return connection
    finally:
        os.close(directory)


def request(path: Path, op: str, *, server: str, patience: float = 120.0, **arguments: Any) -> Any:
    """One operation of the machine behind a control socket; LabError if it refuses or is not there.

    It gives up after `patience` seconds without an answer.
    """
    try:
        with connect(path, seconds=patience) as connection, connection.makefile("rwb") as stream:
            stream.write(json.dumps({"op": op, **arguments}).encode() + b"\n")
            stream.flush()
            line = stream.readline()
    except OSError as exc:
        raise LabError(
            f"its BMC process does not answer ({exc})",
            server=server,
            remedy="Look at bmcd.log; `freehold lab down` and `freehold lab up` start it again.",
        ) from exc
    if not line:
        raise LabError(
            "its BMC process ended while it worked on the request", server=server, remedy="Look at bmcd.log."
        )
    reply = json.loads(line)
    if not reply["ok"]:
        raise LabError(reply["error"]["what"], server=server, remedy=reply["error"]["remedy"])
    return reply["result"]
