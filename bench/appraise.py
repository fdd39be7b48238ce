#!/usr/bin/env python3
"""Processor time of one complete attestation on the controller's side: one JSON line.

    bench/appraise.py [--runs 300]

EK certificate and its chain to a pinned root, credential secret, quote, replay of the event log in both of its banks,
and policy over every event. The log is the one of a real machine in tests/fixtures (61 events, 73 KB); it has SHA-1
digests only, so those of SHA-256 and SHA-384 are made here. Signing the quote, which a TPM does, is not counted.
*Uncached* reads the files of tpm-roots anew; *cached* has their certificates in memory.
"""

import argparse
import hashlib
import json
import statistics
import struct
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from freehold.agent.endorsement import EK_TEMPLATE
from freehold.agent.tpm import AK_TEMPLATE, ENDORSEMENT
from freehold.root_of_trust.attestation import session
from freehold.root_of_trust.attestation.appraise import Policy, appraise
from freehold.root_of_trust.attestation.ek import load_roots, verify_ek
from freehold.root_of_trust.attestation.event_log import EventLog, parse_event_log, replay
from freehold.root_of_trust.attestation.predict import ExpectedEvent
from freehold.root_of_trust.attestation.reference import PCRS, ReferenceValues
from freehold.root_of_trust.attestation.structures import parse_public

FIXTURES = Path(__file__).resolve().parent.parent / "tests/fixtures/attestation.tar.xz"
LOG = "attestation/eventlogs/option_rom.bin"
CACHED_MS, UNCACHED_MS = 5.0, 15.0
SESSION_KEY = b"the agent's, which nothing here parses"
TLS = b"the controller's certificate"


def fixtures() -> dict[str, bytes]:
    files = {}
    with tarfile.open(FIXTURES) as archive:
        for member in archive.getmembers():
            if member.isfile() and (file := archive.extractfile(member)) is not None:
                files[member.name] = file.read()
    return files


def two_banks(legacy: EventLog) -> bytes:
    """The same events in the crypto-agile form, as firmware with SHA-256 and SHA-384 banks writes them."""
    specification = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, 2)
    specification += struct.pack("<HHHHB", 0x0B, 32, 0x0C, 48, 0)
    out = struct.pack("<II20sI", 0, 3, bytes(20), len(specification)) + specification
    for event in legacy.events:
        banks = struct.pack("<H", 0x0B) + hashlib.sha256(event.data).digest()
        banks += struct.pack("<H", 0x0C) + hashlib.sha384(event.data).digest()
        out += struct.pack("<III", event.pcr, event.type, 2) + banks + struct.pack("<I", len(event.data)) + event.data
    return out


class Server:
    """The evidence of one server: keys, an EK certificate under a vendor's root and intermediate, a log, and quotes."""

    def __init__(self, roots: Path) -> None:
        files = fixtures()
        for name, data in files.items():
            if "/certificates/" in name:
                (roots / Path(name).name).write_bytes(data)
        self.roots, self.now = roots, datetime.now(UTC)
        endorsement, self.key = rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256R1())
        modulus = endorsement.public_key().public_numbers().n.to_bytes(256, "big")
        numbers = self.key.public_key().public_numbers()
        point = b"".join(struct.pack(">H", 32) + n.to_bytes(32, "big") for n in (numbers.x, numbers.y))
        self.ek, self.ak = EK_TEMPLATE[:-256] + modulus, AK_TEMPLATE[:-4] + point
        self.certificate = self._certify(endorsement.public_key())
        self.log = two_banks(parse_event_log(files[LOG]))
        self.challenge = session.new_challenge(self.ek, self.ak, now=self.now)
        self.policy = self._policy()

    def _certify(self, key: rsa.RSAPublicKey) -> bytes:
        """Root and intermediate of 4096 bits go into the folder of roots."""
        root, issuing = (rsa.generate_private_key(65537, 4096) for _ in range(2))
        names = "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign"
        usage = dict.fromkeys(f"{names} crl_sign encipher_only decipher_only".split(), False)

        def issue(subject: str, key: Any, issuer: str, by: rsa.RSAPrivateKey, ca: bool) -> x509.Certificate:
            names = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in (issuer, subject))
            builder = x509.CertificateBuilder(*names, key, x509.random_serial_number())
            builder = builder.not_valid_before(self.now - timedelta(days=1))
            builder = builder.not_valid_after(self.now + timedelta(days=1))
            allowed = usage | {"key_cert_sign" if ca else "key_encipherment": True}
            builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True)
            builder = builder.add_extension(x509.KeyUsage(**allowed), critical=True)
            if not ca:
                purpose = x509.ExtendedKeyUsage([x509.ObjectIdentifier("2.23.133.8.1")])
                builder = builder.add_extension(purpose, critical=False)
            return builder.sign(by, hashes.SHA256())

        made = [("Root", root, root), ("Issuing", issuing, root)]
        for subject, own, by in made:
            certificate = issue(subject, own.public_key(), "Root", by, ca=True)
            (self.roots / f"{subject}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        return issue("TPM", key, "Issuing", issuing, ca=False).public_bytes(Encoding.DER)

    def _policy(self) -> Policy:
        """What this log must be held to: every event of PCR 0, 2, 4 and 7."""
        log = parse_event_log(self.log)

        def expected(pcr: int) -> tuple[ExpectedEvent, ...]:
            return tuple(ExpectedEvent(digest=one.digests["sha256"], label="event") for one in log.of_pcr(pcr))

        digests = {str(pcr): tuple(one.digests["sha256"].hex() for one in log.of_pcr(pcr)) for pcr in PCRS}
        return Policy(
            id="bench",
            ek_identity=hashlib.sha256(self.ek).hexdigest(),
            pcr4=expected(4),
            pcr7=expected(7),
            pcr11=(replay(log, "sha256")[11],),
            reference=(ReferenceValues(vendor="V", model="M", version="1", digests=digests),),
            untouched=(),  # this machine ran BitLocker
        )

    def answer(self) -> session.Response:
        """A quote over both banks; the secret is the one whose hash the challenge keeps."""
        log, name = parse_event_log(self.log), parse_public(self.ak).name
        banks, joined = b"", b""
        for number, bank, active in ((0x0B, "sha256", True), (0x0C, "sha384", True), (0x0D, "", False), (4, "", False)):
            bits = sum(1 << pcr for pcr in session.PCRS) if active else 0
            banks += struct.pack(">HB", number, 3) + bits.to_bytes(3, "little")
            joined += b"".join(replay(log, bank)[pcr] for pcr in session.PCRS) if active else b""
        qualified = name[:2] + hashlib.sha256(struct.pack(">I", ENDORSEMENT) + name).digest()
        data = session.qualifying_data(self.challenge.nonce, self.challenge.session, TLS, SESSION_KEY)
        attest = struct.pack(">IHH", 0xFF544347, 0x8018, len(qualified)) + qualified
        attest += (
            struct.pack(">H", len(data)) + data + struct.pack(">QIIBQ", 9, 1, 0, 1, 7) + struct.pack(">I", 4) + banks
        )
        attest += struct.pack(">H", 32) + hashlib.sha256(joined).digest()
        r, s = utils.decode_dss_signature(self.key.sign(attest, ec.ECDSA(hashes.SHA256())))
        parts = b"".join(struct.pack(">H", 32) + n.to_bytes(32, "big") for n in (r, s))
        signature = struct.pack(">HH", 0x18, 0x0B) + parts
        return session.Response(
            secret=b"s" * 32, quote=attest, signature=signature, event_log=self.log, public_key=SESSION_KEY
        )


def milliseconds(action: Callable[[], object], runs: int) -> float:
    """Median processor time."""
    action()
    spent = []
    for _ in range(runs):
        begun = time.process_time()
        action()
        spent.append(time.process_time() - begun)
    return round(statistics.median(spent) * 1000, 2)


def measure(runs: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        challenge = replace(server.challenge, secret_hash=hashlib.sha256(b"s" * 32).digest())
        response, roots = server.answer(), load_roots(server.roots)

        def chain(known: Any) -> None:
            verify_ek(server.certificate, parse_public(server.ek), known, now=server.now)

        def quote() -> Any:
            return session.verify_response(challenge, response, tls_certificate=TLS, now=server.now)

        evidence = quote()

        def policy() -> None:
            verdict = appraise(evidence, server.policy, server.now)
            assert verdict.trusted, verdict.reasons

        def whole(known: Callable[[], Any]) -> None:
            chain(known())
            policy_of = appraise(quote(), server.policy, server.now)
            assert policy_of.trusted

        return {
            "bench": "appraise",
            "runs": runs,
            "log_bytes": len(server.log),
            "events": len(evidence.log.events),
            "roots": len(roots.certificates),
            "cached_ms": milliseconds(lambda: whole(lambda: roots), runs),
            "uncached_ms": milliseconds(lambda: whole(lambda: load_roots(server.roots)), runs),
            "target_cached_ms": CACHED_MS,
            "target_uncached_ms": UNCACHED_MS,
            "parts_ms": {
                "challenge": milliseconds(lambda: session.new_challenge(server.ek, server.ak, now=server.now), runs),
                "load_roots": milliseconds(lambda: load_roots(server.roots), runs),
                "ek_chain": milliseconds(lambda: chain(roots), runs),
                "quote_and_replay": milliseconds(quote, runs),
                "policy": milliseconds(policy, runs),
            },
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300)
    options = parser.parse_args()
    result = measure(options.runs)
    print(json.dumps(result))
    sys.exit(result["cached_ms"] > CACHED_MS or result["uncached_ms"] > UNCACHED_MS)
