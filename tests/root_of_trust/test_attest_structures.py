"""Parsers of TPM structures, on keys made here; no TPM needed."""

import struct

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.agent.endorsement import EK_TEMPLATE
from freehold.agent.tpm import AK_TEMPLATE
from freehold.root_of_trust.attestation import ek
from freehold.root_of_trust.attestation.credential import make_credential
from freehold.root_of_trust.attestation.errors import AttestationError, EndorsementKeyError, MalformedEvidenceError
from freehold.root_of_trust.attestation.structures import (
    Attributes,
    parse_attest,
    parse_public,
    parse_signature,
)

EK_KEY = rsa.generate_private_key(65537, 2048)
EK_PUBLIC = EK_TEMPLATE[:-256] + EK_KEY.public_key().public_numbers().n.to_bytes(256, "big")
POINT = ec.generate_private_key(ec.SECP256R1()).public_key().public_numbers()
AK_PUBLIC = AK_TEMPLATE[:-4] + b"".join(struct.pack(">H", 32) + n.to_bytes(32, "big") for n in (POINT.x, POINT.y))
ATTEST = (
    struct.pack(">IHHH", 0xFF544347, 0x8018, 0, 4) + b"data" + struct.pack(">QIIBQ", 7, 3, 2, 1, 5)
    + struct.pack(">IHB", 1, 0x0B, 3) + b"\x81\0\0" + struct.pack(">H", 32) + bytes(32)
)  # fmt: skip
SIGNATURE = struct.pack(">HH", 0x18, 0x0B) + (struct.pack(">H", 32) + b"\1" * 32) * 2


def test_structures_are_read() -> None:
    ak, endorsement = parse_public(AK_PUBLIC), parse_public(EK_PUBLIC)
    assert ak.scheme == (0x18, "sha256")
    assert Attributes.RESTRICTED in ak.attributes
    assert ak.name[:2] == b"\0\x0b"
    ek.check_ek_template(endorsement)
    attest = parse_attest(ATTEST)
    assert (attest.extra_data, attest.selection, attest.clock.reset_count) == (b"data", {"sha256": (0, 7)}, 3)
    assert parse_signature(SIGNATURE).value == (int.from_bytes(b"\1" * 32, "big"),) * 2


@pytest.mark.parametrize(
    ("parse", "data", "words"),
    [
        (parse_public, AK_PUBLIC + b"\0", "too many"),
        (parse_public, AK_PUBLIC[:-1], "past the end"),
        (parse_public, struct.pack(">H", len(AK_PUBLIC)) + AK_PUBLIC, "unknown"),  # a TPM2B_PUBLIC
        (parse_public, AK_PUBLIC[:4] + b"\x80" + AK_PUBLIC[5:], "reserved"),
        (parse_public, AK_PUBLIC[:-1] + bytes([AK_PUBLIC[-1] ^ 1]), "not on its curve"),
        (parse_public, b"\0\x08" + AK_PUBLIC[2:], "neither RSA nor ECC"),
        (parse_public, EK_PUBLIC[:-256] + bytes(256), "RSA key"),
        (parse_attest, ATTEST.replace(struct.pack(">IHB", 1, 11, 3), struct.pack(">IHB", 9, 11, 3)), "9 PCR banks"),
        (parse_attest, ATTEST[:30] + b"\2" + ATTEST[31:], "safe is 2"),
        (parse_signature, b"\0\x1a" + SIGNATURE[2:], "not RSASSA"),
        (parse_signature, SIGNATURE + b"\0", "too many"),
    ],
    ids=range(11),
)
def test_what_breaks_the_specification_is_refused(parse: object, data: bytes, words: str) -> None:
    with pytest.raises(MalformedEvidenceError, match=words):
        parse(data)  # type: ignore[operator]


def test_one_bank_twice_in_a_selection_is_refused() -> None:
    once = struct.pack(">HB", 0x0B, 3) + b"\x81\0\0"
    doubled = ATTEST.replace(struct.pack(">I", 1) + once, struct.pack(">I", 2) + once * 2)
    with pytest.raises(MalformedEvidenceError, match="twice"):
        parse_attest(doubled)


def test_a_credential_is_for_an_ek_and_32_bytes() -> None:
    name = parse_public(AK_PUBLIC).name
    made = make_credential(parse_public(EK_PUBLIC), name, bytes(32))
    assert (len(made.blob), len(made.encrypted_secret)) == (2 + 34 + 34, 2 + 256)
    for public, secret in ((EK_PUBLIC, bytes(33)), (AK_PUBLIC, bytes(32))):
        with pytest.raises(EndorsementKeyError, match="a standard template"):
            make_credential(parse_public(public), name, secret)


@settings(max_examples=200, deadline=1000)
@given(data=st.data())
def test_mutated_structures_are_read_or_refused(data: st.DataObject) -> None:
    wholes = [
        (parse_public, AK_PUBLIC),
        (parse_public, EK_PUBLIC),
        (parse_attest, ATTEST),
        (parse_signature, SIGNATURE),
    ]
    parse, whole = data.draw(st.sampled_from(wholes))
    raw = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw)))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        parse(bytes(raw))
    except AttestationError:
        return
