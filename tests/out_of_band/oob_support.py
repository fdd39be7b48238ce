"""What the tests share: TLS servers on loopback that log what reaches them, the real trees, a BMC in memory."""

import asyncio
import json
import ssl
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from freehold.out_of_band.credential_slots import StagedCredential, keeping, superseded
from freehold.out_of_band.errors import BmcUnreachable
from freehold.out_of_band.redfish import Credential
from freehold.out_of_band.transport import Answer, Call
from freehold.root_of_trust import pki

FIXTURE = Path(__file__).parents[1] / "fixtures" / "redfish.tar.xz"
TREES = ("hpe-dl365-gen10plus", "dmtf-public-rackmount1")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Ca:
    """The operator's BMC CA, for `zone`."""

    zone: str = "127.0.0.0/8"
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        made = datetime.now(UTC) - timedelta(days=500)
        self.certificate = pki.bmc_ca(self.key, "lab", [ip_network(self.zone)], made)
        self.pem = pki.pem(self.certificate).decode()

    def issue(self, key: ec.EllipticCurvePrivateKey, address: str, now: datetime) -> x509.Certificate:
        return pki.bmc_certificate(key.public_key(), self.certificate, self.key, address, now)

    def crl(self, *revoked: x509.Certificate, now: datetime | None = None) -> str:
        serials = [each.serial_number for each in revoked]
        made = pki.revocation_list(self.certificate, self.key, None, serials, now or datetime.now(UTC))
        return pki.pem(made).decode()


@dataclass
class Keys:
    """A key and a certificate for 127.0.0.1: self-signed, as a factory makes it, or what `ca` issued."""

    directory: Path
    name: str
    expired: bool = False
    ca: "Ca | None" = None
    address: str = "127.0.0.1"
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        if self.ca is not None:
            now = datetime.now(UTC) - timedelta(days=400 if self.expired else 0)
            self.certificate = self.ca.issue(self.key, self.address, now)
        else:
            self.certificate = self._self_signed()
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def _self_signed(self) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        now = datetime.now(UTC) - timedelta(days=400 if self.expired else 1)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now)
            .not_valid_after(now + timedelta(days=90))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )

    def context(self) -> ssl.SSLContext:
        file = self.directory / f"{self.name}.pem"
        private = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        file.write_bytes(private + self.pem.encode())
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(file)
        return context


@dataclass
class Running:
    """`log` holds (method, path, headers) of every request that got through TLS."""

    address: str
    log: list[tuple[str, str, dict[str, str]]]

    def methods(self, path: str) -> list[str]:
        return [method for method, seen, _ in self.log if seen == path]


@asynccontextmanager
async def running(keys: Keys, handler: Handler, port: int = 0, host: str = "127.0.0.1") -> AsyncIterator[Running]:
    log: list[tuple[str, str, dict[str, str]]] = []

    async def logged(request: web.Request) -> web.StreamResponse:
        log.append((request.method, request.path_qs, dict(request.headers)))
        return await handler(request)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", logged)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, host, port, ssl_context=keys.context())
    await site.start()
    try:
        yield Running(f"{host}:{site.port}", log)
    finally:
        await runner.cleanup()


def unpack_trees(directory: Path) -> Path:
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(directory, filter="data")
    return directory / "redfish"


def tree_handler(root: Path) -> Handler:
    """A real tree as its BMC would serve it: sessions, then every resource. Paths are not case-sensitive, as on iLO."""
    files = {
        "/redfish/v1" + ("/" + str(file.parent.relative_to(root)) if file.parent != root else ""): file
        for file in root.rglob("index.json")
    }
    files = {uri.lower(): file for uri, file in files.items()}

    async def handle(request: web.Request) -> web.StreamResponse:
        path = request.path.rstrip("/").lower()
        if request.method == "POST" and path == "/redfish/v1/sessionservice/sessions":
            headers = {"X-Auth-Token": "t0ken", "Location": "/redfish/v1/SessionService/Sessions/me"}
            return web.json_response({}, status=201, headers=headers)
        if path != "/redfish/v1" and request.headers.get("X-Auth-Token") != "t0ken":
            return web.json_response({"error": {"message": "no token"}}, status=401)
        if request.method == "DELETE":
            return web.Response(status=204)
        if path not in files:
            return web.json_response({"error": {"message": "no such resource"}}, status=404)
        return web.Response(body=files[path].read_bytes(), content_type="application/json")

    return handle


class Crash(BaseException):
    """The controller dies here."""


@dataclass
class Crashes:
    """Dies at the `at`-th point that is passed; never if None. Every effect has a point before and one after it."""

    at: int | None = None
    passed: int = 0

    def point(self) -> None:
        self.passed += 1
        if self.at is not None and self.passed >= self.at:
            raise Crash


@dataclass
class MemorySlots:
    """The vault's slots; what is in them outlives a crash."""

    crashes: Crashes
    now: Credential | None
    next: StagedCredential | None = None
    before: tuple[StagedCredential, ...] = ()

    async def current(self) -> Credential | None:
        return self.now

    async def pending(self) -> StagedCredential | None:
        return self.next

    async def kept(self) -> tuple[StagedCredential, ...]:
        return self.before

    async def stage(self, staged: StagedCredential) -> None:
        self.crashes.point()
        assert self.next is None or self.next.credential == staged.credential
        self.next = staged
        self.crashes.point()

    async def commit(self, staged: StagedCredential) -> None:
        self.crashes.point()
        assert self.next is not None
        assert self.next.credential == staged.credential
        self.before = keeping(self.before, *superseded(self.now, staged))
        self.now, self.next = staged.credential, None
        self.crashes.point()

    async def discard(self, staged: StagedCredential) -> None:
        self.crashes.point()
        self.before, self.next = keeping(self.before, staged), None
        self.crashes.point()

    async def count(self, kept: StagedCredential) -> None:
        self.crashes.point()
        self.before = tuple(kept if each.credential == kept.credential else each for each in self.before)
        self.crashes.point()


@dataclass
class ModelAccount:
    username: str
    password: str
    role: str = "Administrator"
    enabled: bool = True
    must_change: bool = False
    failures: int = 0
    last_failure: float = 0.0
    locked_until: float = 0.0


LATER = 30.0


@dataclass
class ModelBmc:
    """AccountService and SessionService in memory, as a `Transport`. `ever_locked` and `attempts` are for asserts.

    `slow` says how it takes the next changes of a password: `at once`, as a `task`, as a task that `fails`; or it lets
    the caller run into his timeout, and makes the change later (`late`) or never (`dropped`); or says that it is done
    and does it later (`says so`). Later is `LATER` seconds of its clock. `no_repeats`: it says no to a password that
    the account has already.
    """

    crashes: Crashes
    accounts: dict[str, ModelAccount]
    can_add: bool = True
    threshold: int | None = 5
    window: float = 60.0
    longest: int | None = None
    retirable: bool = True
    clock: float = 1_000_000.0
    tokens: dict[str, str] = field(default_factory=dict)
    ever_locked: list[str] = field(default_factory=list)
    attempts: list[tuple[str, str, bool]] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)
    ends_sessions: bool = False
    no_repeats: bool = False
    _due: list[tuple[float, str, str, str, dict[str, Any]]] = field(default_factory=list)
    _failed: set[str] = field(default_factory=set)
    _issued: int = 0

    async def close(self) -> None:
        return None

    async def request(self, call: Call) -> Answer:
        self.crashes.point()
        answer = self._answer(call)
        self.crashes.point()
        return answer

    def works(self, credential: Credential) -> bool:
        return any(
            a.enabled and a.username == credential.username and a.password == credential.password
            for a in self.accounts.values()
        )

    def _answer(self, call: Call) -> Answer:
        self._carry_out_what_is_due()
        path, body = call.path.rstrip("/"), call.body or {}
        if path == "/redfish/v1":
            sessions = {"Sessions": {"@odata.id": "/redfish/v1/S"}}
            return _ok({"Links": sessions, "AccountService": {"@odata.id": "/redfish/v1/A"}})
        if path == "/redfish/v1/S":
            return self._login(body)
        if path.startswith("/redfish/v1/T/"):
            running = any(path == task for _, task, *_ in self._due)
            state = "Running" if running else "Exception" if path in self._failed else "Completed"
            if call.headers.get("X-Auth-Token", "") in self.tokens:
                return Answer(status=202 if running else 200, body={"TaskState": state})
        number = self.tokens.get(call.headers.get("X-Auth-Token", ""))
        if number is None:
            return Answer(status=401)
        if call.method == "DELETE" and path.startswith("/redfish/v1/S/"):
            return Answer(status=204)
        own = f"/redfish/v1/A/A/{number}"
        if self.accounts[number].must_change and path != own:
            return Answer(status=403, body=_must_change(own))
        if "Password" in body and self.slow and (how := self.slow.pop(0)) != "at once":
            return self._slowly(how, call.method, path, body)
        return self._account_service(call.method, path, body)

    def _slowly(self, how: str, method: str, path: str, body: dict[str, Any]) -> Answer:
        self._issued += 1
        task = f"/redfish/v1/T/{self._issued}"
        if how == "fails":
            self._failed.add(task)
        if how in ("late", "task", "says so"):
            self._due.append((self.clock + LATER, task, method, path, body))
        if how in ("late", "dropped"):
            raise BmcUnreachable("timed out; whether it took effect is unknown")
        return Answer(status=204) if how == "says so" else Answer(status=202, headers={"location": task})

    def _carry_out_what_is_due(self) -> None:
        now = [each for each in self._due if each[0] <= self.clock]
        self._due = [each for each in self._due if each[0] > self.clock]
        for _, _, *change in now:
            self._account_service(*change)

    def _account_service(self, method: str, path: str, body: dict[str, Any]) -> Answer:
        if path == "/redfish/v1/A":
            service: dict[str, Any] = {"Accounts": {"@odata.id": "/redfish/v1/A/A"}, "MinPasswordLength": 8}
            service |= {"AccountLockoutThreshold": self.threshold, "AccountLockoutCounterResetAfter": self.window}
            return _ok({**service, "MaxPasswordLength": self.longest})
        if path == "/redfish/v1/A/A":
            if method == "POST":
                if not self.can_add:
                    return Answer(status=405)
                if any(a.username == body["UserName"] for a in self.accounts.values()):
                    return Answer(status=400)
                self.accounts[str(len(self.accounts) + 1)] = ModelAccount(body["UserName"], body["Password"])
                return Answer(status=201)
            return _ok({"Members": [{"@odata.id": f"/redfish/v1/A/A/{number}"} for number in self.accounts]})
        account = self.accounts.get(path.rsplit("/", 1)[-1])
        if account is None:
            return Answer(status=404)
        if method == "PATCH":
            if "Enabled" in body and not body["Enabled"] and not self.retirable:
                return Answer(status=400)
            if self.no_repeats and body.get("Password") == account.password:
                return Answer(status=400)
            account.username = body.get("UserName", account.username)
            account.password = body.get("Password", account.password)
            account.must_change = account.must_change and "Password" not in body
            if "Password" in body and self.ends_sessions:
                self.tokens.clear()
            account.enabled = body.get("Enabled", account.enabled)
            if body.get("Locked") is False:
                account.failures, account.locked_until = 0, 0.0
            return Answer(status=204)
        if method == "DELETE":
            return Answer(status=405)
        return _ok(
            {
                "@odata.id": path,
                "UserName": account.username,
                "RoleId": account.role,
                "Enabled": account.enabled,
                "Locked": account.locked_until > self.clock,
            }
        )

    def _login(self, body: dict[str, Any]) -> Answer:
        for number, account in self.accounts.items():
            if account.username == body["UserName"] and account.enabled:
                right = account.password == body["Password"] and account.locked_until <= self.clock
                self.attempts.append((account.username, body["Password"], right))
                if right:
                    account.failures = 0
                    self._issued += 1
                    self.tokens[f"t{self._issued}"] = number
                    headers = {"x-auth-token": f"t{self._issued}", "location": f"/redfish/v1/S/{self._issued}"}
                    own = f"/redfish/v1/A/A/{number}"
                    return Answer(status=201, headers=headers, body=_must_change(own) if account.must_change else {})
                if self.clock - account.last_failure > self.window:
                    account.failures = 0
                account.failures, account.last_failure = account.failures + 1, self.clock
                if self.threshold and account.failures >= self.threshold:
                    account.locked_until = self.clock + 300
                    self.ever_locked.append(account.username)
        return Answer(status=401)


def _ok(body: dict[str, Any]) -> Answer:
    return Answer(status=200, body=json.loads(json.dumps(body)))


def _must_change(account: str) -> dict[str, Any]:
    message = {"MessageId": "Base.1.18.PasswordChangeRequired", "MessageArgs": [account]}
    return {"@Message.ExtendedInfo": [message]}


async def no_sleep(_: float) -> None:
    await asyncio.sleep(0)
