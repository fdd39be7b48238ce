"""The agents that were let in, by the certificate that each of them speaks with. In memory: a restart ends them all."""

import time
from dataclasses import dataclass

from cryptography import x509

from freehold.provisioning.agent_messages import Admission
from freehold.root_of_trust import pki


@dataclass(frozen=True)
class Admitted:
    """`until`: when the certificate ends, UNIX seconds. TLS looks at that only as a connection begins."""

    server: str
    session: str
    mode: str
    until: float

    @property
    def takes_orders(self) -> bool:
        """Only our own ramdisk does what changes or certifies a server. In the installed OS the tenant is root: what it
        says about an erase is worth nothing."""
        return self.mode == "ramdisk"


class AdmittedAgents:
    """A server has one agent: the next one that is let in ends the session of the last."""

    def __init__(self) -> None:
        self._by_certificate: dict[str, Admitted] = {}  # SHA-256 of the DER, hex

    def add(self, certificate: x509.Certificate, server: str, session: str, mode: str) -> Admission:
        until = certificate.not_valid_after_utc.timestamp()
        kept = {key: each for key, each in self._by_certificate.items() if each.server != server}
        self._by_certificate = kept | {pki.sha256(certificate): Admitted(server, session, mode, until)}
        return Admission(certificate=pki.pem(certificate).decode(), valid_for=until - time.time())

    def find(self, certificate: str) -> Admitted | None:
        """Who speaks with the certificate of this SHA-256 (hex), until it ends."""
        known = self._by_certificate.get(certificate)
        return known if known is not None and time.time() < known.until else None

    def drop(self, certificate: str) -> None:
        self._by_certificate.pop(certificate, None)
