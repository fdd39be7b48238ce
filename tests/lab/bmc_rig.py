"""What the tests of the BMC share: a service on loopback, a clock that they set, a certificate authority."""

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from freehold_lab.bmc.context import BmcConfig
from freehold_lab.bmc.memory import MemoryHardware
from freehold_lab.bmc.service import create_app

ROOT = "/redfish/v1"
SYSTEM = f"{ROOT}/Systems/1"
PASSWORD = "factory-pass"


_FACTORY_PEM: list[bytes] = []


@dataclass
class Clock:
    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Rig:
    """A BMC on loopback without TLS. `get` and so on return (status, decoded body or {})."""

    client: TestClient[Any, Any]
    hardware: MemoryHardware
    clock: Clock
    headers: Mapping[str, str] = field(default_factory=dict)
    auth: str | None = field(default_factory=lambda: login("root", PASSWORD))

    async def send(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, **rest: Any
    ) -> tuple[int, dict[str, Any]]:
        auth = rest.pop("auth", self.auth)
        options = {"headers": {**(headers or {}), **({"Authorization": auth} if auth else {})}, **rest}
        if body is not None:
            options["json"] = body
        async with self.client.request(method, path, **options) as answer:
            self.headers = answer.headers
            text = await answer.text()
            return answer.status, (await answer.json()) if text else {}

    async def get(self, path: str, **rest: Any) -> tuple[int, dict[str, Any]]:
        return await self.send("GET", path, **rest)

    async def post(self, path: str, body: Any = None, **rest: Any) -> tuple[int, dict[str, Any]]:
        return await self.send("POST", path, {} if body is None else body, **rest)

    async def patch(self, path: str, body: Any, **rest: Any) -> tuple[int, dict[str, Any]]:
        return await self.send("PATCH", path, body, **rest)

    async def delete(self, path: str, **rest: Any) -> tuple[int, dict[str, Any]]:
        return await self.send("DELETE", path, **rest)

    async def log(self, uri: str = f"{ROOT}/Managers/1/LogServices/AuditLog") -> list[str]:
        """The message keys of a log, oldest first."""
        _, body = await self.get(f"{uri}/Entries")
        return [entry["MessageId"].rsplit(".", 1)[-1] for entry in body["Members"]]

    async def reset(self, kind: str) -> int:
        return (await self.post(f"{SYSTEM}/Actions/ComputerSystem.Reset", {"ResetType": kind}))[0]


def login(user_name: str, password: str) -> str:
    return aiohttp.encode_basic_auth(user_name, password)


def error_key(body: dict[str, Any]) -> str:
    """The message key of an error body, whose form is checked on the way."""
    info = body["error"]["@Message.ExtendedInfo"][0]
    assert body["error"]["code"] == info["MessageId"]
    assert info["MessageId"].startswith("Base.1.")
    assert info["Message"]
    return str(info["MessageId"].rsplit(".", 1)[-1])


@asynccontextmanager
async def running(state_dir: Path, hardware: MemoryHardware | None = None, **config: Any) -> AsyncIterator[Rig]:
    hardware = hardware or MemoryHardware()
    clock = Clock()
    state_dir.mkdir(exist_ok=True)
    factory = state_dir / "https.pem"
    if _FACTORY_PEM and not factory.exists():
        factory.write_bytes(_FACTORY_PEM[0])  # an RSA key costs more than all else in a test
    app = create_app(hardware, BmcConfig(factory_password=PASSWORD, state_dir=state_dir, **config), clock=clock)
    _FACTORY_PEM[:] = [factory.read_bytes()]
    async with TestClient(TestServer(app)) as client:
        yield Rig(client, hardware, clock)


def port_of(runner: web.AppRunner) -> int:
    return int(runner.addresses[0][1])


def served(port: int) -> x509.Certificate:
    return x509.load_pem_x509_certificate(ssl.get_server_certificate(("127.0.0.1", port)).encode())


async def request(port: int, trusted: x509.Certificate, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """A request that trusts `trusted` alone; names are not checked, factory certificates have none."""
    context = ssl.create_default_context(cadata=pem(trusted))
    context.check_hostname = False
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    headers = {"Authorization": login("root", PASSWORD)}
    async with aiohttp.ClientSession(f"https://127.0.0.1:{port}", headers=headers) as session:
        async with session.request(method, path, json=body, ssl=context) as answer:
            text = await answer.text()
            return answer.status, (await answer.json()) if text else {}


def certificate(
    name: str, key: ec.EllipticCurvePrivateKey | None = None, issuer: "Authority | None" = None, public: Any = None
) -> x509.Certificate:
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(public or key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .sign(issuer.key if issuer else key, hashes.SHA256())
    )


class Authority:
    """A certificate authority of the operator."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = certificate("Test CA", self.key)

    def sign(self, request: str) -> str:
        csr = x509.load_pem_x509_csr(request.encode())
        assert csr.is_signature_valid
        name = csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        return pem(certificate(str(name), issuer=self, public=csr.public_key()))


def pem(item: x509.Certificate) -> str:
    return item.public_bytes(serialization.Encoding.PEM).decode()


def der(item: x509.Certificate) -> bytes:
    return item.public_bytes(serialization.Encoding.DER)
