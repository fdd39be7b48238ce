"""Dead Simple Signing Envelope v1, read strictly: every byte of an envelope is either signed or has one spelling.

    envelope = sign(b'{"a":1}', "application/json", signer)
    payload = verify(envelope.to_bytes(), "application/json", public_key)

Rules of `verify`, in order: canonical JSON, exactly the members of the DSSE v1.0 envelope, the payload type that the
caller expects, exactly one signature, by the key that the caller trusts, over PAE(type, payload).
"""

import msgspec

from freehold.evidence import canonical
from freehold.evidence.signer import PublicKey, Signer
from freehold.model.errors import FreeholdError


class EnvelopeRefused(FreeholdError):
    """An envelope that is malformed, of another type, or not signed by the expected key."""


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """`payload` as bytes; `key_id` is 64 hex digits; `signature` 64 bytes."""

    payload: bytes
    payload_type: str
    key_id: str
    signature: bytes

    def to_dict(self) -> dict[str, object]:
        """The JSON object of DSSE v1.0, envelope.md."""
        return {
            "payload": canonical.b64encode(self.payload),
            "payloadType": self.payload_type,
            "signatures": [{"keyid": self.key_id, "sig": canonical.b64encode(self.signature)}],
        }

    def to_bytes(self) -> bytes:
        """Canonical JSON without a trailing newline."""
        return canonical.dumps(self.to_dict())

    @classmethod
    def from_bytes(cls, data: bytes) -> "Envelope":
        """Decodes without verifying the signature. Raises `EnvelopeRefused` unless `to_bytes` gives `data` again."""
        try:
            wire = msgspec.convert(canonical.loads_strictly(data), _WireEnvelope)
            if len(wire.signatures) != 1:
                raise EnvelopeRefused(f"the envelope has {len(wire.signatures)} signatures", expected="exactly one")
            return cls(
                payload=canonical.b64decode(wire.payload),
                payload_type=wire.payloadType,
                key_id=wire.signatures[0].keyid,
                signature=canonical.b64decode(wire.signatures[0].sig),
            )
        except (canonical.NotCanonicalError, msgspec.ValidationError) as error:
            raise EnvelopeRefused(f"this is not a DSSE envelope: {error}") from error


class _WireSignature(msgspec.Struct, forbid_unknown_fields=True):
    keyid: str
    sig: str


class _WireEnvelope(msgspec.Struct, forbid_unknown_fields=True):
    payload: str
    payloadType: str  # noqa: N815 - the name on the wire
    signatures: list[_WireSignature]


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """What is signed: `"DSSEv1" SP LEN(type) SP type SP LEN(payload) SP payload` (DSSE v1.0, protocol.md)."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(payload: bytes, payload_type: str, signer: Signer) -> Envelope:
    """Wraps `payload` with one signature."""
    signature = signer.sign(pre_authentication_encoding(payload_type, payload))
    return Envelope(payload=payload, payload_type=payload_type, key_id=signer.key_id, signature=signature)


def verify(data: bytes, payload_type: str, key: PublicKey) -> bytes:
    """The payload of the envelope in `data`, or `EnvelopeRefused`."""
    envelope = Envelope.from_bytes(data)
    if envelope.payload_type != payload_type:
        raise EnvelopeRefused(f"the envelope holds {envelope.payload_type!r}", expected=payload_type)
    if envelope.key_id != key.key_id:
        raise EnvelopeRefused(f"the envelope is signed by key {envelope.key_id}", expected=f"key {key.key_id}")
    if not key.verifies(envelope.signature, pre_authentication_encoding(payload_type, envelope.payload)):
        raise EnvelopeRefused("the signature does not match the payload", expected=f"a signature of key {key.key_id}")
    return envelope.payload
