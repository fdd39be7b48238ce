"""HTTP/1.1 client for two servers of our own: the agent API (TLS) and the boot server (plain).

`http.client` would pull in the `email` package and double the agent's import time, which a slow machine feels.
This one knows what those servers send: a `Content-Length` body, no chunked encoding, no redirects.
"""

import io
import socket
from collections.abc import Mapping

from freehold.agent.errors import AgentError

TYPE_CHECKING = False  # `typing` itself is expensive to import
if TYPE_CHECKING:
    import ssl

MAX_HEADER_BYTES = 65536


class WireError(OSError):
    """The connection broke or the peer does not speak HTTP; trying again may help."""


class Response:
    """Status, lower-case headers, and the body as a stream of exactly `length` bytes."""

    def __init__(self, status: int, headers: Mapping[str, str], body: io.BufferedIOBase, length: int) -> None:
        self.status, self.headers, self.length = status, headers, length
        self._body, self._left = body, length

    def readinto(self, view: memoryview) -> int:
        """Fill as much of the view as one read gives; 0 at the end of the body. A body cut short raises WireError."""
        wanted = view[: self._left]
        if not wanted:
            return 0
        got: int = self._body.readinto(wanted)
        if got == 0:
            raise WireError(f"connection closed with {self._left} bytes of the body missing")
        self._left -= got
        return got

    def read(self) -> bytes:
        """What is left of the body."""
        data = bytearray(self._left)
        view, at = memoryview(data), 0
        while got := self.readinto(view[at:]):
            at += got
        return bytes(data)


class Connection:
    """One keep-alive connection to `http://host:port` or `https://host:port`, opened by the first request."""

    def __init__(self, url: str, context: "ssl.SSLContext | None" = None, *, timeout: float = 30.0) -> None:
        self.secure, self.host, self.port = parse_origin(url)
        if self.secure and context is None:
            raise AgentError(
                f"{url} needs TLS, but no CA was given", remedy="put ca.pem into the agent's configuration"
            )
        self._context, self._timeout = context, timeout
        self._socket: socket.socket | None = None
        self._file: io.BufferedIOBase | None = None

    def request(
        self,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        timeout: float | None = None,
    ) -> Response:
        """Send and read the head of the answer. An OSError (WireError, SSLError, timeout) closes it."""
        try:
            self._open()
            assert self._socket is not None
            self._socket.settimeout(timeout or self._timeout)
            lines = [f"{method} {target} HTTP/1.1", f"Host: {self.host}:{self.port}", f"Content-Length: {len(body)}"]
            lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
            self._socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode() + body)
            return self._head(method)
        except OSError:
            self.close()
            raise

    def peer_certificate(self) -> bytes:
        """DER of the certificate that the server showed on this very connection; opens it if need be."""
        self._open()
        der: bytes | None = self._socket.getpeercert(binary_form=True)  # type: ignore[union-attr]
        if not der:
            raise WireError("the server showed no certificate")
        return der

    def close(self) -> None:
        """Drop the connection; the next request opens a new one."""
        for part in (self._file, self._socket):
            if part is not None:
                part.close()
        self._file = self._socket = None

    def _open(self) -> None:
        if self._socket is not None:
            return
        raw = socket.create_connection((self.host, self.port), self._timeout)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._socket = self._context.wrap_socket(raw, server_hostname=self.host) if self._context else raw
        except OSError:
            raw.close()
            raise
        self._file = io.BufferedReader(socket.SocketIO(self._socket, "r"), 1 << 17)

    def _head(self, method: str) -> Response:
        status_line = self._line()
        parts = status_line.split(" ", 2)
        if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].isdecimal():
            raise WireError(f"not an HTTP answer: {status_line[:80]!r}")
        headers: dict[str, str] = {}
        size = 0
        while line := self._line():
            size += len(line)
            if size > MAX_HEADER_BYTES:
                raise WireError("HTTP header too large")
            name, colon, value = line.partition(":")
            if not colon:
                raise WireError(f"not an HTTP header: {line[:80]!r}")
            headers[name.strip().lower()] = value.strip()
        status = int(parts[1])
        length = headers.get("content-length", "0")
        if not length.isdecimal() or "transfer-encoding" in headers:
            raise WireError(f"the answer to {method} has no usable Content-Length")
        empty = method == "HEAD" or status in (204, 304)
        assert self._file is not None
        return Response(status, headers, self._file, 0 if empty else int(length))

    def _line(self) -> str:
        assert self._file is not None
        line = self._file.readline(MAX_HEADER_BYTES)
        if not line.endswith(b"\n"):
            raise WireError("connection closed before the answer was complete")
        return line.rstrip(b"\r\n").decode("latin-1")


def parse_origin(url: str) -> tuple[bool, str, int]:
    """(is it TLS, host, port) of `http[s]://host[:port][/…]`; IPv6 literals in brackets."""
    scheme, _, rest = url.partition("://")
    authority = rest.split("/", 1)[0]
    host, bracket, port = authority.partition("]:") if authority.startswith("[") else authority.partition(":")
    host = host.strip("[]")
    if scheme not in ("http", "https") or not host or (bracket and not port.isdecimal()):
        raise AgentError(f"{url!r} is not an http(s) address", remedy="correct the address that the controller sends")
    secure = scheme == "https"
    return secure, host, int(port) if port else (443 if secure else 80)


def target_of(url: str) -> str:
    """The request target: path and query of an absolute URL."""
    return "/" + url.partition("://")[2].partition("/")[2]
