"""HTTPS to one BMC. The identity of the BMC is verified before a single byte of a request is written.

Two ways to know a BMC: the SHA-256 of its public key (SPKI, RFC 7469), pinned at first contact, or a certificate of the
operator's CA for its address. `unrecognised` decides; it is pure. `fetch_identity` looks at the certificate and sends
nothing, so that policy can decide whether to pin it.
"""

import asyncio
import hashlib
import hmac
import ssl
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, Protocol
from urllib.parse import urlsplit

import aiohttp
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import verification

from freehold.out_of_band.errors import BmcAnswerUnreadable, BmcIdentityChanged, BmcUnreachable

MAX_ANSWER_BYTES = 8 << 20
"""HPE's largest resource (the BIOS attribute registry) is about 2 MB."""

_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE"})  # RFC 9110, 9.2.2
_TRANSIENT = frozenset({500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 307, 308})
_ATTEMPTS = 5
_BACK_OFF_SECONDS = 0.25


class ServerIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """What a BMC showed in the TLS handshake. Times are ISO 8601, UTC; `spki_sha256` is lower-case hex."""

    spki_sha256: str
    certificate_pem: str
    subject: str
    issuer: str
    not_before: str
    not_after: str


class BmcIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """How a BMC is recognised: by its pinned key (hex SHA-256 of the SPKI), by a certificate of the operator's issuing
    CA (PEM) for its address, or, while the one takes the place of the other, by either. `crl_pem`: what the CA has
    revoked. `certificates` (hex SHA-256 of the DER) count whoever issued them, as long as they are valid: when the CA
    was replaced, the BMC still serves one of the CA before, which vouches for nobody else any more."""

    spki_sha256: str | None = None
    ca_pem: str | None = None
    crl_pem: str | None = None
    certificates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.spki_sha256 is None and self.ca_pem is None:
            raise ValueError("a BMC is known by its pinned key, by a CA, or by both")
        if self.spki_sha256 is not None and len(bytes.fromhex(self.spki_sha256)) != 32:
            raise ValueError("spki_sha256 must be 64 hex digits")

    @property
    def words(self) -> str:
        """What is expected, for people."""
        pinned = f"key {self.spki_sha256}" if self.spki_sha256 is not None else ""
        issued = "a certificate of the operator's BMC CA for this address" if self.ca_pem is not None else ""
        return " or ".join(filter(None, (pinned, issued)))


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One request. `timeout` (seconds) bounds the call as a whole, retries included, so that a lease can outlast it."""

    method: str
    path: str
    body: dict[str, Any] | None = None
    content: bytes | None = None  # a body that is no JSON; its Content-Type is in `headers`
    headers: dict[str, str] = {}
    timeout: float = 30.0


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """`body` is the decoded JSON object, None when there is none. Header names are lower case."""

    status: int
    headers: dict[str, str] = {}
    body: dict[str, Any] | None = None


class Transport(Protocol):
    """Carries calls to one BMC. HTTP errors are answers.

    Raises `BmcUnreachable`, `BmcIdentityChanged` or `BmcAnswerUnreadable`.
    """

    async def request(self, call: Call) -> Answer: ...
    async def close(self) -> None: ...


def spki_sha256(certificate_der: bytes) -> str:
    """Hex SHA-256 of the certificate's SubjectPublicKeyInfo: stays the same when a BMC renews its certificate."""
    return spki_sha256_of(x509.load_der_x509_certificate(certificate_der).public_key())


def spki_sha256_of(key: CertificatePublicKeyTypes) -> str:
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def describe_certificate(certificate_der: bytes) -> ServerIdentity:
    certificate = x509.load_der_x509_certificate(certificate_der)
    return ServerIdentity(
        spki_sha256=spki_sha256(certificate_der),
        certificate_pem=certificate.public_bytes(Encoding.PEM).decode(),
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        not_before=certificate.not_valid_before_utc.isoformat(),
        not_after=certificate.not_valid_after_utc.isoformat(),
    )


async def fetch_identity(address: str, *, server: str | None = None, timeout: float = 15.0) -> ServerIdentity:
    """The certificate of the BMC at `address` (`host` or `host:port`). No request and no credential is sent."""
    host, port = split_address(address)
    # The handshake proves that the peer holds the key of the certificate it shows. Whether that key is the right one
    # is what the caller decides next, so no chain is checked here, and no list of CAs is read for it.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
    except (OSError, TimeoutError) as error:
        raise BmcUnreachable(
            f"no TLS connection to the BMC at {address}: {_words(error)}",
            server=server,
            remedy="check the address, the out-of-band cable and that the BMC serves HTTPS",
        ) from error
    certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    if not certificate:
        raise BmcUnreachable(f"the BMC at {address} shows no certificate", server=server)
    return describe_certificate(certificate)


def split_address(address: str) -> tuple[str, int]:
    """`host`, `host:port` or `[v6]:port`; the port is 443 if absent."""
    parts = urlsplit(f"//{address}")
    if not parts.hostname or parts.path or parts.username:
        raise ValueError(f"not a BMC address: {address!r} (expected host or host:port)")
    return parts.hostname, parts.port or 443


def unrecognised(certificate_der: bytes, identity: BmcIdentity, host: str, now: datetime) -> str | None:
    """Why this is not the certificate of the BMC at `host`; None: it is. What cannot be verified is not."""
    try:
        seen = spki_sha256(certificate_der)
    except Exception:
        return "it shows no certificate that can be read"
    if identity.spki_sha256 is not None and hmac.compare_digest(seen, identity.spki_sha256):
        return None
    if identity.ca_pem is None:
        return f"it shows another key ({seen}) than the pinned one"
    try:
        ca, certificate = map(_load, (identity.ca_pem.encode(), certificate_der))
        kept = hashlib.sha256(certificate_der).hexdigest() in identity.certificates
        why = _out_of_date(certificate, now) if kept else _not_issued(certificate, ca, host, now)
        why = why or _revoked(certificate, ca, identity.crl_pem, now)
    except Exception as error:
        why = str(error) or type(error).__name__
    return why and f"its certificate (key {seen}) does not verify: {why}"


def _load(data: bytes) -> x509.Certificate:
    return (x509.load_pem_x509_certificate if data.startswith(b"-----") else x509.load_der_x509_certificate)(data)


def _not_issued(certificate: x509.Certificate, ca: x509.Certificate, host: str, now: datetime) -> str | None:
    """Path length, name constraints and key usage of the CA are part of the path validation (RFC 5280, 6.1). Raises
    what the verifier raises."""
    policy = verification.PolicyBuilder().store(verification.Store([ca])).time(now)
    policy.build_server_verifier(x509.IPAddress(ip_address(host))).verify(certificate, [])
    return None


def _out_of_date(certificate: x509.Certificate, now: datetime) -> str | None:
    if certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        return None
    return f"it is not valid since {certificate.not_valid_after_utc}"


def _revoked(certificate: x509.Certificate, ca: x509.Certificate, crl_pem: str | None, now: datetime) -> str | None:
    if crl_pem is None:
        return None
    crl, key = x509.load_pem_x509_crl(crl_pem.encode()), ca.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or crl.issuer != ca.subject or not crl.is_signature_valid(key):
        return "the revocation list is not of the CA"
    if crl.next_update_utc is None or crl.next_update_utc < now:
        return f"the revocation list is out of date since {crl.next_update_utc}"
    if crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
        return f"certificate {certificate.serial_number:x} is revoked"
    return None


class _Recognition(aiohttp.Fingerprint):
    """The BMC's identity, checked by aiohttp's connector between the end of the handshake and the first byte of the
    request.

    With this object OpenSSL builds no chain: factory certificates are self-signed, often expired, and name no address.
    The handshake proves that the peer has the key of the certificate; `unrecognised` says whether it is the right one.
    """

    def __init__(self, identity: BmcIdentity, host: str) -> None:
        super().__init__(bytes(32))  # aiohttp's own comparison is not used
        self.identity, self.host = identity, host
        self.why: str | None = None

    def check(self, transport: asyncio.Transport) -> None:
        tls = transport.get_extra_info("ssl_object")
        certificate = tls.getpeercert(binary_form=True) if tls is not None else None
        now = datetime.now(UTC)
        self.why = unrecognised(certificate or b"", self.identity, self.host, now)
        if self.why is not None:
            # aiohttp closes the connection on this very type.
            raise aiohttp.ServerFingerprintMismatch(self.fingerprint, b"", self.host, 0)


class HttpsTransport:
    """The real `Transport`: no proxy, no cookies; redirects are followed for GET only, and within the same BMC."""

    def __init__(
        self,
        address: str,
        identity: BmcIdentity,
        *,
        server: str | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        host, port = split_address(address)
        self.address, self.server, self._sleep = address, server, sleep
        self._origin = f"https://{f'[{host}]' if ':' in host else host}:{port}"
        self._recognition = _Recognition(identity, host)
        self._kept: aiohttp.ClientSession | None = None
        self._fresh: aiohttp.ClientSession | None = None

    def _session(self, method: str) -> aiohttp.ClientSession:
        """Reads share kept connections. A write gets a fresh one: it could not be repeated if a stale one broke."""
        if self._kept is None or self._fresh is None:
            check = self._recognition
            options: dict[str, Any] = {"cookie_jar": aiohttp.DummyCookieJar(), "auto_decompress": True}
            self._kept = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=check, limit=4), **options)
            self._fresh = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=check, limit=4, force_close=True), **options
            )
        return self._kept if method in _IDEMPOTENT else self._fresh

    async def close(self) -> None:
        for session in (self._kept, self._fresh):
            if session is not None:
                await session.close()
        self._kept = self._fresh = None

    async def request(self, call: Call) -> Answer:
        """Send `call`. Broken connections and 5xx are retried with back-off, but never for POST and PATCH."""
        attempts = _ATTEMPTS if call.method in _IDEMPOTENT else 1
        last = "no answer"
        try:
            async with asyncio.timeout(call.timeout):
                for attempt in range(attempts):
                    final = attempt == attempts - 1
                    try:
                        answer = await self._once(call)
                    except (aiohttp.ClientError, OSError) as error:
                        last = _words(error)
                        if final:
                            raise self._unreachable(call, last) from error
                    else:
                        if final or answer.status not in _TRANSIENT:
                            return answer
                        last = f"HTTP {answer.status}"
                    await self._sleep(_BACK_OFF_SECONDS * 2**attempt)
        except TimeoutError as error:
            raise self._unreachable(call, f"{last} within {call.timeout:g} s") from error
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _once(self, call: Call) -> Answer:
        try:
            answer, location = await self._exchange(call, call.path)
            if location is not None and call.method == "GET":
                answer, _ = await self._exchange(call, location)
            return answer
        except aiohttp.ServerFingerprintMismatch as error:
            raise BmcIdentityChanged(
                f"the BMC at {self.address} is not recognised: {self._recognition.why}; nothing was sent to it",
                server=self.server,
                expected=self._recognition.identity.words,
                remedy="find out who replaced the certificate or the BMC; if it was you, accept the new key:"
                f" `freehold release {self.server or 'SERVER'} --accept-bmc-key KEY`",
            ) from error

    async def _exchange(self, call: Call, path: str) -> tuple[Answer, str | None]:
        # Some BMCs turn the ETag of a compressed answer into another one, so nothing is asked to be compressed.
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "OData-Version": "4.0", **call.headers}
        data = call.content
        if call.body is not None:
            data, headers["Content-Type"] = msgspec.json.encode(call.body), "application/json"
        async with self._session(call.method).request(
            call.method, self._origin + path, data=data, headers=headers, allow_redirects=False, timeout=_NO_TIMEOUT
        ) as response:
            raw = await self._read_capped(call, response)
            names = {name.lower(): value for name, value in response.headers.items()}
            if response.status in _REDIRECTS:
                return Answer(status=response.status, headers=names), self._same_bmc(names.get("location", ""))
            body = self._decode(call, response.status, names, raw)
            return Answer(status=response.status, headers=names, body=body), None

    async def _read_capped(self, call: Call, response: aiohttp.ClientResponse) -> bytes:
        """The body; the cap counts decompressed bytes, so a compression bomb stops here too."""
        raw = bytearray()
        async for chunk in response.content.iter_chunked(64 << 10):
            raw += chunk
            if len(raw) > MAX_ANSWER_BYTES:
                raise BmcAnswerUnreadable(
                    f"{call.method} {call.path}: the answer is larger than {MAX_ANSWER_BYTES >> 20} MiB",
                    server=self.server,
                    remedy="check that this address is a BMC",
                )
        return bytes(raw)

    def _decode(self, call: Call, status: int, headers: Mapping[str, str], raw: bytes) -> dict[str, Any] | None:
        if not raw.strip():
            return None
        kind = headers.get("content-type", "").split(";")[0].strip() or "no content type"
        try:
            body = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            body = None
        if isinstance(body, dict):
            return body
        if status >= 400:
            return None  # the status says enough; many BMCs add an HTML page to a 401 or 503
        looks = "an HTML page" if raw.lstrip()[:1] == b"<" else f"{len(raw)} bytes that are not a JSON object"
        raise BmcAnswerUnreadable(
            f"{call.method} {call.path}: HTTP {status} with {looks} ({kind}) instead of Redfish JSON",
            server=self.server,
            remedy="check that this address is a BMC and no proxy; a BMC that is still starting does this too",
        )

    def _same_bmc(self, location: str) -> str | None:
        """The path of a redirect, if it stays on this BMC: a token must not follow a redirect elsewhere."""
        if location.startswith("/") and not location.startswith("//"):
            return location
        return location.removeprefix(self._origin) if location.startswith(self._origin + "/") else None

    def _unreachable(self, call: Call, why: str) -> BmcUnreachable:
        unknown = "" if call.method in _IDEMPOTENT else "; whether it took effect is unknown"
        return BmcUnreachable(
            f"{call.method} {call.path} at {self.address}: {why}{unknown}",
            server=self.server,
            remedy="check the out-of-band network and the BMC; the call was not repeated" if unknown else None,
        )


_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)  # `Call.timeout` bounds the call as a whole


def _words(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    return str(error) or type(error).__name__
