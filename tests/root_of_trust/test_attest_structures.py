"""Parsers of TPM structures and the EK certificate's rules, on keys and certificates made here; no TPM needed."""

import struct
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.agent.tpm import AK_TEMPLATE, EK_TEMPLATE
from freehold.root_of_trust.attestation import ek
from freehold.root_of_trust.attestation.credential import make_credential
from freehold.root_of_trust.attestation.errors import AttestationError, EndorsementKeyError, MalformedEvidenceError
from freehold.root_of_trust.attestation.structures import (
    Attributes,
    parse_attest,
    parse_public,
    parse_signature,
)

NOW = datetime(2026, 11, 23, tzinfo=UTC)
CA_KEY, MIDDLE_KEY = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
EK_KEY = rsa.generate_private_key(65537, 2048)
EK_PUBLIC = EK_TEMPLATE[:-256] + EK_KEY.public_key().public_numbers().n.to_bytes(256, "big")
POINT = ec.generate_private_key(ec.SECP256R1()).public_key().public_numbers()
AK_PUBLIC = AK_TEMPLATE[:-4] + b"".join(struct.pack(">H", 32) + n.to_bytes(32, "big") for n in (POINT.x, POINT.y))
ATTEST = (
    struct.pack(">IHHH", 0xFF544347, 0x8018, 0, 4) + b"data" + struct.pack(">QIIBQ", 7, 3, 2, 1, 5)
    + struct.pack(">IHB", 1, 0x0B, 3) + b"\x81\0\0" + struct.pack(">H", 32) + bytes(32)
)  # fmt: skip
SIGNATURE = struct.pack(">HH", 0x18, 0x0B) + (struct.pack(">H", 32) + b"\1" * 32) * 2


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def issue(
    subject: str,
    key: object,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    *extensions: x509.ExtensionType,
    days: int = 9,
) -> x509.Certificate:
    builder = x509.CertificateBuilder(name(issuer), name(subject), key, 1)  # type: ignore[arg-type]
    builder = builder.not_valid_before(NOW - timedelta(days=20)).not_valid_after(NOW + timedelta(days=days))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(issuer_key, hashes.SHA256())


def usage(**on: bool) -> x509.KeyUsage:
    names = "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign"
    bits = dict.fromkeys(f"{names} crl_sign encipher_only decipher_only".split(), False) | on
    return x509.KeyUsage(**bits)


CA, LEAF = x509.BasicConstraints(True, None), x509.BasicConstraints(False, None)
EK_USAGE, ENCIPHER = x509.ExtendedKeyUsage([ek.EK_CERTIFICATE_USAGE]), usage(key_encipherment=True)
SIGNS = usage(key_cert_sign=True)
ROOT = issue("Root", CA_KEY.public_key(), "Root", CA_KEY, CA, SIGNS)
MIDDLE = issue("Middle", MIDDLE_KEY.public_key(), "Root", CA_KEY, CA, SIGNS)


def leaf(*extensions: x509.ExtensionType, days: int = 9) -> bytes:
    made = issue(
        "TPM", EK_KEY.public_key(), "Middle", MIDDLE_KEY, *(extensions or (LEAF, EK_USAGE, ENCIPHER)), days=days
    )
    return made.public_bytes(Encoding.DER)


def verify(certificate: bytes, *roots: x509.Certificate, **changes: bool) -> ek.EkIdentity:
    trusted = ek.TpmRoots(certificates=roots or (ROOT, MIDDLE))
    return ek.verify_ek(certificate, parse_public(EK_PUBLIC), trusted, now=NOW, **changes)


def test_a_chain_through_an_intermediate_is_accepted() -> None:
    identity = verify(leaf())
    assert identity.issuers == ("CN=Middle", "CN=Root")
    assert identity.identity == ek.ek_identity(EK_PUBLIC)


def test_a_root_of_the_same_name_with_another_key_is_unknown() -> None:
    impostor = issue("Root", MIDDLE_KEY.public_key(), "Root", MIDDLE_KEY, CA, SIGNS)
    with pytest.raises(EndorsementKeyError, match="unknown EK issuer CN=Root"):
        verify(leaf(), impostor, MIDDLE)


@pytest.mark.parametrize(
    ("extensions", "words"),
    [
        ((LEAF, ENCIPHER), "2.23.133.8.1 is missing"),
        ((LEAF, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), ENCIPHER), "2.23.133.8.1 is missing"),
        ((CA, EK_USAGE, ENCIPHER), "is a CA certificate"),
        ((LEAF, EK_USAGE), "key encipherment"),
        ((LEAF, EK_USAGE, usage(digital_signature=True)), "key encipherment"),
    ],
)
def test_a_certificate_of_another_kind_is_refused(extensions: tuple[x509.ExtensionType, ...], words: str) -> None:
    with pytest.raises(EndorsementKeyError, match=words):
        verify(leaf(*extensions))


@pytest.mark.parametrize("extensions", [(), (LEAF,), (CA, usage(digital_signature=True))])
def test_who_may_not_issue_is_no_issuer(extensions: tuple[x509.ExtensionType, ...]) -> None:
    weak = issue("Middle", MIDDLE_KEY.public_key(), "Root", CA_KEY, *extensions)
    with pytest.raises(EndorsementKeyError, match=r"CN=Middle may not issue|unknown EK issuer CN=Middle"):
        verify(leaf(), ROOT, weak)


def test_a_lapsed_certificate_is_forgiven_only_if_policy_says_so() -> None:
    with pytest.raises(EndorsementKeyError, match="CN=TPM is valid from"):
        verify(leaf(days=-1))
    assert verify(leaf(days=-1), allow_expired=True).issuers[-1] == "CN=Root"
    lapsed = issue("Middle", MIDDLE_KEY.public_key(), "Root", CA_KEY, CA, SIGNS, days=-1)
    with pytest.raises(EndorsementKeyError, match="CN=Middle is valid from"):
        verify(leaf(), ROOT, lapsed, allow_expired=True)


def test_certificates_that_issue_each_other_end_the_search() -> None:
    one = issue("A", CA_KEY.public_key(), "B", MIDDLE_KEY, CA, SIGNS)
    two = issue("B", MIDDLE_KEY.public_key(), "A", CA_KEY, CA, SIGNS)
    ring = issue("TPM", EK_KEY.public_key(), "A", CA_KEY, LEAF, EK_USAGE, ENCIPHER).public_bytes(Encoding.DER)
    with pytest.raises(EndorsementKeyError, match="unknown EK issuer"):
        verify(ring, one, two)


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


def test_a_credential_is_for_an_rsa_ek_and_32_bytes() -> None:
    name = parse_public(AK_PUBLIC).name
    made = make_credential(parse_public(EK_PUBLIC), name, bytes(32))
    assert (len(made.blob), len(made.encrypted_secret)) == (2 + 34 + 34, 2 + 256)
    for public, secret in ((EK_PUBLIC, bytes(33)), (AK_PUBLIC, bytes(32))):
        with pytest.raises(EndorsementKeyError, match="template L-1"):
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
