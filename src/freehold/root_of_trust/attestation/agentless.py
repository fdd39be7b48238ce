"""A quote that came without an agent: the BMC asked the TPM for it (DSP0268, TPMGetSignedMeasurements).

Its form is TPM2B_ATTEST followed by TPMT_SIGNATURE. Two things may be made of it:

- `prove`: the key is the attestation key that credential activation tied to the server's EK. Then it is a quote like
  any other, and `appraise` judges it. Nothing ties it to a TLS connection, so it says what the TPM measured, not who
  speaks on the network.
- `observe`: it is another key, of which there is only a certificate. A certificate does not say that the key is
  restricted, so it may sign what no TPM has measured. What stands in it is recorded, and nothing rests on it.
"""

import hmac
import struct
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from freehold.root_of_trust.attestation.appraise import Evidence
from freehold.root_of_trust.attestation.event_log import parse_event_log
from freehold.root_of_trust.attestation.predict import BOOT_PHASES
from freehold.root_of_trust.attestation.quote import check_quote, verify_signature
from freehold.root_of_trust.attestation.reader import Reader, printable
from freehold.root_of_trust.attestation.session import evidence_of
from freehold.root_of_trust.attestation.structures import HASHES, Public, parse_attest, parse_signature

Selection = Mapping[str, Sequence[int]]


def pcr_selection(selection: Selection) -> bytes:
    """TPML_PCR_SELECTION (Part 2, 10.9.7) with 24 PCRs a bank."""
    numbers = {name: number for number, name in HASHES.items()}
    banks = [
        struct.pack(">HB", numbers[bank], 3) + sum(1 << index for index in indices).to_bytes(3, "little")
        for bank, indices in selection.items()
    ]
    return struct.pack(">I", len(banks)) + b"".join(banks)


def prove(
    signed: bytes,
    event_log: bytes,
    ak: Public,
    *,
    ek_identity: str,
    nonce: bytes,
    selection: Selection,
    now: datetime,
    phases: Iterable[str] = BOOT_PHASES,
) -> Evidence:
    """Evidence, or an AttestationError: the quote is `ak`'s, over this nonce and exactly these PCRs, and the log
    replays to it."""
    attest, signature = _split(signed)
    quote = check_quote(ak, attest, signature, qualifying_data=nonce, selection=selection)
    return evidence_of(ak, ek_identity, nonce, quote, parse_event_log(event_log), now, tuple(phases))


def observe(signed: bytes, certificate: x509.Certificate, nonce: bytes) -> dict[str, Any]:
    """What stands in a quote by the key of `certificate`. Raises AttestationError for a signature that is not its, and
    for what is no quote."""
    attest, signature = _split(signed)
    verify_signature(_key_of(certificate), attest, parse_signature(signature))
    quote = parse_attest(attest)
    return {
        "relied_on": False,
        "signed_by": printable(certificate.subject.rfc4514_string()),
        "nonce_is_ours": hmac.compare_digest(quote.extra_data, nonce),
        "pcrs": {bank: list(indices) for bank, indices in quote.selection.items()},
        "pcr_digest": quote.pcr_digest.hex(),
        "reset_count": quote.clock.reset_count,
        "restart_count": quote.clock.restart_count,
    }


def is_of(certificate: x509.Certificate, ak: Public) -> bool:
    """Whether the certificate is of this attestation key."""
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return certificate.public_key().public_bytes(*form) == ak.key.public_bytes(*form)


def _key_of(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey | None:
    key = certificate.public_key()
    return key if isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey) else None


def _split(signed: bytes) -> tuple[bytes, bytes]:
    reader = Reader(signed, "signed measurements", "big")
    attest = reader.sized(most=4096)
    return attest, reader.take(reader.left)
