"""What the BMC remembers over a restart: one JSON file in its state directory, replaced atomically."""

import os
from pathlib import Path

import msgspec


class Account(msgspec.Struct):
    """`locked_until` is a UNIX time; 0 is not locked, -1 is locked until an administrator unlocks."""

    id: str
    user_name: str
    role: str
    password_hash: str
    enabled: bool = True
    password_change_required: bool = False
    failures: int = 0
    last_failure: float = 0.0
    locked_until: float = 0.0


class AccountPolicy(msgspec.Struct):
    """Seconds and characters; a lockout threshold of 0 means no lockout, a duration of 0 a lockout without end."""

    lockout_threshold: int = 5
    lockout_duration: int = 300
    lockout_counter_reset_after: int = 60
    min_password_length: int = 8
    max_password_length: int = 40
    directory: bool = False  # LDAP users may log in; the lab has no directory, so none can


class NetworkService(msgspec.Struct):
    enabled: bool
    port: int


class Snmp(msgspec.Struct):
    """As shipped: the old versions on, with the community that everybody knows."""

    v1: bool = True
    v2c: bool = True
    v3: bool = True
    community: str = "public"


class HostInterface(msgspec.Struct):
    """The network between the server's OS and the BMC. As shipped: root in the OS may have an account made."""

    enabled: bool = True
    bootstrapping: bool = True
    after_reset: bool = True


class Subscription(msgspec.Struct):
    id: str
    destination: str
    context: str = ""
    registry_prefixes: list[str] = []
    resource_types: list[str] = []
    headers: dict[str, str] = {}


class LogRecord(msgspec.Struct):
    id: int
    created: str
    severity: str
    message_id: str
    message: str
    arguments: list[str]
    origin: str = ""


def _factory_protocols() -> dict[str, NetworkService]:
    """As shipped: everything on, cipher-0 IPMI and SNMP included. To turn it off is the operator's work."""
    return {
        "HTTP": NetworkService(False, 80),
        "HTTPS": NetworkService(True, 443),
        "IPMI": NetworkService(True, 623),
        "SSH": NetworkService(True, 22),
        "SNMP": NetworkService(True, 161),
        "Telnet": NetworkService(False, 23),
        "KVMIP": NetworkService(True, 5900),
        "VirtualMedia": NetworkService(True, 5120),
        "SSDP": NetworkService(True, 1900),
        "NTP": NetworkService(False, 123),
    }


class Remembered(msgspec.Struct):
    accounts: dict[str, Account] = {}
    policy: AccountPolicy = msgspec.field(default_factory=AccountPolicy)
    session_timeout: int = 1800
    protocols: dict[str, NetworkService] = msgspec.field(default_factory=_factory_protocols)
    snmp: Snmp = msgspec.field(default_factory=Snmp)
    host_interface: HostInterface = msgspec.field(default_factory=HostInterface)
    subscriptions: dict[str, Subscription] = {}
    logs: dict[str, list[LogRecord]] = {}
    next_id: int = 1
    service_uuid: str = ""
    host_name: str = ""
    asset_tag: str | None = None
    indicator: bool = False
    ntp_servers: list[str] = []
    media_uri: str = ""
    bmc_version: str = ""  # what was installed; "": as shipped
    update_certificates: dict[str, str] = {}  # id -> PEM: whom it believes when it fetches firmware
    verify_update_server: bool = False


class Store:
    """Holds `Remembered` and writes it. The file has password hashes: mode 0600."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "bmc.json"
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        exists = self.path.exists()
        self.data = msgspec.json.decode(self.path.read_bytes(), type=Remembered) if exists else Remembered()

    def save(self) -> None:
        replace_file(self.path, msgspec.json.format(msgspec.json.encode(self.data)))

    def new_id(self) -> int:
        """A number never used before by this BMC."""
        number = self.data.next_id
        self.data.next_id += 1
        return number


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` so that a crash leaves the old file or the new one, never half of one."""
    partial = path.with_suffix(path.suffix + ".new")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
