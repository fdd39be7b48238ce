# See blockdev.py for why os and not pathlib.
"""The TPM as the server's identity: open it, or say clearly that there is none."""

import os
from hashlib import sha256

from freehold.agent.tpm import DeviceTransport, Tpm

EVENT_LOG = "sys/kernel/security/tpm0/binary_bios_measurements"
MAX_EVENT_LOG_BYTES = 1 << 20


def tpm_device(root: str = "/") -> str | None:
    """The resource manager's device, else the raw one, else None."""
    for name in ("tpmrm0", "tpm0"):
        path = os.path.join(root, "dev", name)
        if os.path.exists(path):
            return path
    return None


def open_tpm(root: str = "/") -> Tpm:
    """TpmError when there is none or it is busy."""
    return Tpm(DeviceTransport(tpm_device(root) or os.path.join(root, "dev/tpm0")))


def event_log(root: str = "/") -> bytes:
    """The firmware's measurement log, b"" if the kernel has none. A longer one than the protocol bears is cut off,
    and then fails the verifier's replay instead of the transport."""
    try:
        with open(os.path.join(root, EVENT_LOG), "rb") as file:
            return file.read(MAX_EVENT_LOG_BYTES)
    except OSError:
        return b""


def qualifying_data(nonce: bytes, session: str, tls_certificate: bytes, public_key: bytes) -> bytes:
    """SHA-256(nonce || session || SHA-256(DER of the controller's certificate as seen here) || SHA-256(the session's
    SubjectPublicKeyInfo)): a relayed quote fails, and so does one that vouches for somebody else's key."""
    bound = sha256(tls_certificate).digest() + sha256(public_key).digest()
    return sha256(nonce + session.encode() + bound).digest()
