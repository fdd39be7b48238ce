"""What the agent says and hears, decoded strictly, and the errors that the backend answers with.

Binary values are standard base64 on the wire and `bytes` here (msgspec does both). Limits are those of honest machines.
"""

from typing import Annotated, Any, Literal

import msgspec

from freehold.model.errors import FreeholdError

MAX_EVENT_LOG_BYTES = 1 << 20

Name = Annotated[str, msgspec.Meta(max_length=256)]
Blob = Annotated[bytes, msgspec.Meta(min_length=1, max_length=4096)]
Secret = Annotated[bytes, msgspec.Meta(min_length=1, max_length=64)]
Mac = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{2}:){5}[0-9a-f]{2}$")]


class Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all messages: an unknown field is an error."""


class Smbios(Strict, frozen=True):
    """Claims about the machine; attributes, never its identity."""

    uuid: Name | None
    serial: Name | None
    vendor: Name | None
    product: Name | None


class Hello(Strict, frozen=True):
    """`*_public` are TPMT_PUBLIC; both None when the server has no usable TPM."""

    protocol: Literal[2]
    mode: Literal["ramdisk", "os"]
    boot_id: Name
    smbios: Smbios
    macs: Annotated[list[Mac], msgspec.Meta(max_length=64)]
    ek_public: Blob | None
    ek_certificate: Annotated[bytes, msgspec.Meta(max_length=8192)] | None
    ak_public: Blob | None


class Challenge(Strict, frozen=True):
    """TPM2B_ID_OBJECT, TPM2B_ENCRYPTED_SECRET, a fresh 32-byte nonce, and the PCRs to quote by bank."""

    session: str
    credential_blob: bytes
    encrypted_secret: bytes
    nonce: bytes
    pcrs: dict[str, list[int]]


class Evidence(Strict, frozen=True):
    """The answer to a challenge: activated secret, TPMS_ATTEST, TPMT_SIGNATURE, TCG event log, and the public key of
    the session (SubjectPublicKeyInfo, DER)."""

    session: Name
    secret: Secret
    quote: Blob
    signature: Blob
    event_log: Annotated[bytes, msgspec.Meta(max_length=MAX_EVENT_LOG_BYTES)]
    public_key: Annotated[bytes, msgspec.Meta(min_length=1, max_length=256)]


class Entry(Strict, frozen=True):
    """From a machine without a TPM: the ticket that this boot was given, and the public key of the session."""

    protocol: Literal[2]
    mode: Literal["ramdisk", "os"]
    boot_id: Name
    smbios: Smbios
    macs: Annotated[list[Mac], msgspec.Meta(max_length=64)]
    ticket: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    public_key: Annotated[bytes, msgspec.Meta(min_length=1, max_length=256)]


class Admission(Strict, frozen=True):
    """A client certificate (PEM) for the key of the session, and for how many seconds it is good."""

    certificate: str
    valid_for: float


class Order(Strict, frozen=True):
    """One thing to do; `id` is the idempotency key."""

    id: str
    kind: str
    args: dict[str, Any]


class Progress(Strict, frozen=True):
    done: Annotated[int, msgspec.Meta(ge=0)]
    total: Annotated[int, msgspec.Meta(ge=0)]
    unit: Literal["bytes"]
    phase: Name


class Failure(Strict, frozen=True):
    what: Annotated[str, msgspec.Meta(max_length=8192)]
    remedy: Annotated[str, msgspec.Meta(max_length=8192)]


class Result(Strict, frozen=True):
    """`error` is set exactly when `ok` is false."""

    ok: bool
    result: dict[str, Any]
    error: Failure | None

    def __post_init__(self) -> None:
        if self.ok == (self.error is not None):
            raise ValueError("error must be set exactly when ok is false")


class Ready(Strict, frozen=True):
    """What the installed OS says of itself."""

    hostname: Name
    ssh_active: bool
    secure_boot: bool
    addresses: Annotated[list[Name], msgspec.Meta(max_length=256)]


class AgentRefusedError(FreeholdError):
    """403: the server is not trusted, in words; the agent prints them on its console."""

    status = 403


class UnknownCertificateError(FreeholdError):
    """401: no live session has this certificate; the agent attests again."""

    status = 401


class UnknownOrderError(FreeholdError):
    """404: the order is gone or not this server's; the agent drops its result."""

    status = 404


class ConflictError(FreeholdError):
    """409: the order already has another result."""

    status = 409
