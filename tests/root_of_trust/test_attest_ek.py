"""The EK certificate's rules, on certificates made here and on those that vendors really made."""

import base64
import struct
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from der_support import element, elements, inside, muddled_name, reissue

from freehold.agent.endorsement import TEMPLATES
from freehold.root_of_trust.attestation import ek
from freehold.root_of_trust.attestation.certificate import MOST_BYTES, Certificate, name_text, read_certificate
from freehold.root_of_trust.attestation.credential import make_credential
from freehold.root_of_trust.attestation.errors import EndorsementKeyError, MalformedEvidenceError
from freehold.root_of_trust.attestation.structures import Public, parse_public

NOW = datetime(2026, 11, 23, tzinfo=UTC)
ARCHIVE = Path(__file__).parents[1] / "fixtures/attestation.tar.xz"
CA_KEY, MIDDLE_KEY = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
RSA_KEYS = {bits: rsa.generate_private_key(65537, bits) for bits in (2048, 3072)}
EC_KEYS = {curve.name: ec.generate_private_key(curve) for curve in (ec.SECP256R1(), ec.SECP384R1())}


def public(template: bytes, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> Public:
    """The TPMT_PUBLIC of this key, made from a template."""
    if isinstance(key, rsa.RSAPrivateKey):
        size = key.key_size // 8
        unique = struct.pack(">H", size) + key.public_key().public_numbers().n.to_bytes(size, "big")
        return parse_public(template[: template.rindex(struct.pack(">HI", key.key_size, 0)) + 6] + unique)
    size, numbers = key.key_size // 8, key.public_key().public_numbers()
    unique = b"".join(struct.pack(">H", size) + n.to_bytes(size, "big") for n in (numbers.x, numbers.y))
    curve = struct.pack(">HHH", 0x10, 3 if size == 32 else 4, 0x10)
    return parse_public(template[: template.rindex(curve) + 6] + unique)


L1, L2, H1, H2, H3, H6, _ = TEMPLATES.values()
EK = public(L1, RSA_KEYS[2048])


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def issue(
    subject: str, key: object, issuer: str, issuer_key: ec.EllipticCurvePrivateKey, *extensions: x509.ExtensionType,
    days: int = 9,
) -> x509.Certificate:  # fmt: skip
    builder = x509.CertificateBuilder(name(issuer), name(subject), key, 0x7001)  # type: ignore[arg-type]
    builder = builder.not_valid_before(NOW - timedelta(days=20)).not_valid_after(NOW + timedelta(days=days))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(issuer_key, hashes.SHA256())


def usage(**on: bool) -> x509.KeyUsage:
    names = "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign"
    bits = dict.fromkeys(f"{names} crl_sign encipher_only decipher_only".split(), False) | on
    return x509.KeyUsage(**bits)


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


CA, LEAF = x509.BasicConstraints(True, None), x509.BasicConstraints(False, None)
EK_USAGE, ENCIPHER = (
    x509.ExtendedKeyUsage([x509.ObjectIdentifier(ek.EK_CERTIFICATE_USAGE)]),
    usage(key_encipherment=True),
)
SIGNS = usage(key_cert_sign=True)
ROOT = issue("Root", CA_KEY.public_key(), "Root", CA_KEY, CA, SIGNS)
MIDDLE = issue("Middle", MIDDLE_KEY.public_key(), "Root", CA_KEY, CA, SIGNS)


def leaf(*extensions: x509.ExtensionType, days: int = 9, key: object = None) -> x509.Certificate:
    whole = extensions or (LEAF, EK_USAGE, ENCIPHER)
    return issue("TPM", key or RSA_KEYS[2048].public_key(), "Middle", MIDDLE_KEY, *whole, days=days)


def roots(*certificates: x509.Certificate | bytes) -> ek.TpmRoots:
    raw = [one if isinstance(one, bytes) else der(one) for one in certificates or (ROOT, MIDDLE)]
    return ek.TpmRoots(certificates=tuple(map(read_certificate, raw)))


def verify(
    certificate: x509.Certificate | bytes, *trusted: x509.Certificate | bytes, of: Public = EK, **changes: bool
) -> ek.EkIdentity:
    raw = certificate if isinstance(certificate, bytes) else der(certificate)
    return ek.verify_ek(raw, of, roots(*trusted), now=NOW, **changes)


# ---- the chain


def test_a_chain_through_an_intermediate_is_accepted() -> None:
    identity = verify(leaf())
    assert identity.issuers == ("CN=Middle", "CN=Root")
    assert identity.identity == ek.ek_identity(EK.raw)


def test_an_unknown_vendor_is_named_with_what_to_do() -> None:
    with pytest.raises(EndorsementKeyError, match="unknown EK issuer CN=Middle") as refused:
        verify(leaf(), ROOT)
    assert "tpm-roots" in str(refused.value)
    with pytest.raises(EndorsementKeyError, match="unknown EK issuer CN=Root"):
        verify(leaf(), MIDDLE)  # the intermediate alone is no anchor, as nothing says who made it


def test_a_root_of_the_same_name_with_another_key_is_unknown() -> None:
    impostor = issue("Root", MIDDLE_KEY.public_key(), "Root", MIDDLE_KEY, CA, SIGNS)
    with pytest.raises(EndorsementKeyError, match="unknown EK issuer CN=Root"):
        verify(leaf(), impostor, MIDDLE)


def test_a_root_that_is_also_cross_signed_by_somebody_unknown_is_still_the_root() -> None:
    crossed = issue("Root", CA_KEY.public_key(), "Elsewhere", MIDDLE_KEY, CA, SIGNS)
    for trusted in ((crossed, ROOT, MIDDLE), (ROOT, crossed, MIDDLE)):
        assert verify(leaf(), *trusted).issuers == ("CN=Middle", "CN=Root")


def test_certificates_that_issue_each_other_end_the_search() -> None:
    one = issue("A", CA_KEY.public_key(), "B", MIDDLE_KEY, CA, SIGNS)
    two = issue("B", MIDDLE_KEY.public_key(), "A", CA_KEY, CA, SIGNS)
    ring = issue("TPM", RSA_KEYS[2048].public_key(), "A", CA_KEY, LEAF, EK_USAGE, ENCIPHER)
    with pytest.raises(EndorsementKeyError, match="unknown EK issuer"):
        verify(ring, one, two)


@pytest.mark.parametrize("extensions", [(), (LEAF,), (CA, usage(digital_signature=True))])
def test_who_may_not_issue_is_no_issuer(extensions: tuple[x509.ExtensionType, ...]) -> None:
    weak = issue("Middle", MIDDLE_KEY.public_key(), "Root", CA_KEY, *extensions)
    with pytest.raises(EndorsementKeyError, match="CN=Middle may not issue certificates"):
        verify(leaf(), ROOT, weak)


def test_a_ca_stands_above_no_more_cas_than_it_may() -> None:
    short = issue("Root", CA_KEY.public_key(), "Root", CA_KEY, x509.BasicConstraints(True, 0), SIGNS)
    with pytest.raises(EndorsementKeyError, match="CN=Root may stand above 0 other CAs, not above 1"):
        verify(leaf(), short, MIDDLE)
    enough = issue("Root", CA_KEY.public_key(), "Root", CA_KEY, x509.BasicConstraints(True, 1), SIGNS)
    assert verify(leaf(), enough, MIDDLE).issuers[-1] == "CN=Root"


def test_critical_extensions_that_nobody_checks_are_refused() -> None:
    limits = x509.NameConstraints(permitted_subtrees=[x509.DNSName("example.com")], excluded_subtrees=None)
    limited = issue("Middle", MIDDLE_KEY.public_key(), "Root", CA_KEY, CA, SIGNS, limits)
    with pytest.raises(EndorsementKeyError, match=r"CN=Middle has critical extensions .* understands: 2\.5\.29\.30"):
        verify(leaf(), ROOT, limited)
    odd = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0")
    with pytest.raises(EndorsementKeyError, match=r"CN=TPM has critical extensions .*1\.2\.3\.4"):
        verify(leaf(LEAF, EK_USAGE, ENCIPHER, odd))


def test_a_lapsed_certificate_is_forgiven_only_if_policy_says_so() -> None:
    with pytest.raises(EndorsementKeyError, match="CN=TPM is valid from"):
        verify(leaf(days=-1))
    forgiven = verify(leaf(days=-1), allow_expired=True)
    assert (forgiven.issuers[-1], forgiven.lapsed) == ("CN=Root", True)
    assert not verify(leaf(), allow_expired=True).lapsed
    lapsed = issue("Middle", MIDDLE_KEY.public_key(), "Root", CA_KEY, CA, SIGNS, days=-1)
    with pytest.raises(EndorsementKeyError, match="CN=Middle is valid from"):
        verify(leaf(), ROOT, lapsed, allow_expired=True)


# ---- the certificate itself


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


def test_a_certificate_of_another_key_is_refused() -> None:
    other = rsa.generate_private_key(65537, 2048)
    with pytest.raises(EndorsementKeyError, match="of another key than the TPM's endorsement key"):
        verify(leaf(key=other.public_key()))


def test_a_changed_certificate_is_by_nobody() -> None:
    good = der(leaf())
    with pytest.raises(EndorsementKeyError, match="unknown EK issuer CN=Middle"):
        verify(good[:-1] + bytes([good[-1] ^ 1]))
    for at in range(0, len(good), 7):
        with pytest.raises(EndorsementKeyError):
            verify(good[:at] + bytes([good[at] ^ 0x40]) + good[at + 1 :])


@pytest.mark.parametrize("garbage", [b"", b"\x30\x03abc", b"\x30\x80", b"\x30\x84\0\0\0\1a", b"\xff" * 1600, b"{}"])
def test_garbage_is_no_certificate(garbage: bytes) -> None:
    with pytest.raises(EndorsementKeyError, match="cannot be read"):
        verify(garbage)


def test_a_large_one_is_not_read_at_all() -> None:
    with pytest.raises(MalformedEvidenceError, match="at most 8192"):
        read_certificate(bytes(MOST_BYTES + 1))


# ---- certificates that break DER


@pytest.mark.parametrize("padding", [b"\0" * 430, b"\xff" * 430, b"\xde\xad"])
def test_padding_of_the_nv_index_is_cut(padding: bytes) -> None:
    """An NV index of 1,600 bytes with a certificate of 1,170 in it is what a ThinkPad's TPM has."""
    assert verify(der(leaf()) + padding).issuers == ("CN=Middle", "CN=Root")


@pytest.mark.parametrize(
    "serial", [b"\xf1\x22", b"\0", b"\0\0\0\6", b"\x80" + bytes(19)], ids=["negative", "zero", "not minimal", "least"]
)
def test_a_serial_number_that_breaks_der_says_nothing_about_trust(serial: bytes) -> None:
    made = reissue(leaf(), MIDDLE_KEY, serial=element(2, serial))
    assert verify(made).issuers == ("CN=Middle", "CN=Root")
    assert read_certificate(made).serial == serial.hex()


def test_names_whose_sets_are_out_of_order_are_compared_as_sets() -> None:
    authority = reissue(MIDDLE, CA_KEY, subject=muddled_name("EK CA 01"))
    made = reissue(leaf(), MIDDLE_KEY, issuer=muddled_name("EK CA 01"))
    assert verify(made, ROOT, authority).issuers == ("C=TW+CN=EK CA 01+O=Vendor", "CN=Root")
    with pytest.raises(ValueError, match="InvalidSetOrdering"):
        x509.load_der_x509_certificate(made)
    with pytest.raises(EndorsementKeyError, match=r"unknown EK issuer C=TW\+CN=EK CA 02"):
        verify(reissue(leaf(), MIDDLE_KEY, issuer=muddled_name("EK CA 02")), ROOT, authority)


def test_a_spelled_out_default_is_no_authority() -> None:
    constraints = element(0x30, bytes.fromhex("0603551d13"), bytes.fromhex("0101ff"), element(4, b"\x30\3\1\1\0"))
    others = [one for one in elements(inside(inside(_part(leaf(), "extensions")))) if b"\x55\x1d\x13" not in one]
    made = reissue(leaf(), MIDDLE_KEY, extensions=element(0xA3, element(0x30, constraints, *others)))
    assert verify(made).issuers == ("CN=Middle", "CN=Root")
    twice = element(0xA3, element(0x30, constraints, constraints, *others))
    with pytest.raises(EndorsementKeyError, match=r"2\.5\.29\.19 stands there twice"):
        verify(reissue(leaf(), MIDDLE_KEY, extensions=twice))


def test_an_algorithm_with_a_null_parameter_is_the_same_algorithm() -> None:
    nulled = element(0x30, element(6, bytes.fromhex("2a8648ce3d040302")), b"\5\0")
    assert verify(reissue(leaf(), MIDDLE_KEY, algorithm=nulled)).issuers == ("CN=Middle", "CN=Root")


def test_an_oaep_key_is_compared_by_its_bits() -> None:
    bits = elements(inside(_part(leaf(), "key")))[1]
    oaep = element(0x30, element(0x30, element(6, bytes.fromhex("2a864886f70d010107"))), bits)
    assert verify(reissue(leaf(), MIDDLE_KEY, key=oaep)).issuers == ("CN=Middle", "CN=Root")


def _part(certificate: x509.Certificate, which: str) -> bytes:
    from der_support import PARTS

    return elements(inside(elements(inside(der(certificate)))[0]))[PARTS.index(which)]


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("outer", element(0x30, element(6, bytes.fromhex("2a8648ce3d040304")))),  # another algorithm than inside
        ("validity", element(0x30, element(0x17, b"261301000000Z"), element(0x17, b"270101000000Z"))),
        ("validity", element(0x30, element(0x17, b"2601010000Z"), element(0x17, b"270101000000Z"))),
        ("validity", element(0x30, element(0x04, b"26"), element(0x04, b"27"))),
        ("issuer", element(0x30, element(0x31, element(0x30, element(6, b"\x55" * 40), element(12, b"x"))))),
        ("issuer", element(0x30, element(0x31, element(0x30, element(6, b""), element(12, b"x"))))),
        ("extensions", element(0xA3, element(0x30)) + b"\0\0"),
    ],
)
def test_what_makes_no_sense_is_refused(part: str, value: bytes) -> None:
    with pytest.raises(EndorsementKeyError):
        verify(reissue(leaf(), MIDDLE_KEY, **{part: value}))


# ---- certificates of real vendors


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attestation")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "attestation/certificates"


def test_every_vendors_ca_is_read(real: Path) -> None:
    """cryptography refuses three of these: Nuvoton's for the order in their names, Intel's for a NULL."""
    loaded = ek.load_roots(real)
    assert loaded.unreadable == ()
    assert len(loaded.certificates) == 12
    subjects = {name_text(one.subject) for one in loaded.certificates if one.is_authority}
    assert "C=TW+CN=NTC TPM EK Root CA 01+O=Nuvoton Technology Corporation" in subjects
    refused = 0
    for path in [*real.glob("N*.pem"), *real.glob("intel*")]:
        try:
            x509.load_pem_x509_certificate(path.read_bytes())
        except ValueError:
            refused += 1
    assert refused == 3


def test_a_real_leaf_leads_to_its_vendors_root(real: Path) -> None:
    leaf_ = read_certificate((real / "stm-leaf.cer").read_bytes())
    chain = ek._chain(leaf_, ek.load_roots(real))
    assert [name_text(one.subject)[:29] for one in chain] == [
        "CN=STM TPM EK Intermediate CA 02"[:29], "CN=STM TPM EK Root CA,O=STMicro"[:29],
        "CN=GlobalSign Trusted Platform M"[:29],
    ]  # fmt: skip
    for below, authority in enumerate(chain):
        ek._check_authority(authority, below)


def test_a_real_padded_leaf_of_a_vendor_that_is_not_trusted_is_named(real: Path) -> None:
    leaf_ = read_certificate((real / "nuvoton-leaf-padded.cer").read_bytes())
    with pytest.raises(EndorsementKeyError, match=r"unknown EK issuer C=TW\+CN=Nuvoton TPM Root CA 2010"):
        ek._chain(leaf_, ek.load_roots(real))


def test_an_authority_may_be_signed_over_sha_1_but_a_leaf_may_not(real: Path) -> None:
    """Infineon's and VeriSign's old CAs are. Each is a file that the operator chose; nothing rests on its signature."""
    loaded = {path.name: read_certificate(_der_of(path)) for path in real.iterdir()}
    old = loaded["IFX_RSA_01I.pem"]
    assert old.uses_sha1
    assert old.is_issued_by(loaded["IFX_RSA_RT.pem"])
    ek._check_authority(old, 0)
    sha1 = element(0x30, element(6, bytes.fromhex("2a864886f70d010105")), b"\5\0")
    with pytest.raises(EndorsementKeyError, match="signed over SHA-1"):
        verify(reissue(leaf(), MIDDLE_KEY, algorithm=sha1))


def _der_of(path: Path) -> bytes:
    data = path.read_bytes()
    found = ek.PEM.search(data)
    return base64.b64decode(found[1]) if found else data


def test_roots_are_read_from_pem_bundles_and_der_and_damaged_files_are_named(tmp_path: Path) -> None:
    pem = ROOT.public_bytes(Encoding.PEM) + MIDDLE.public_bytes(Encoding.PEM)
    (tmp_path / "bundle.pem").write_bytes(b"# Root\n" + pem)
    (tmp_path / "middle.cer").write_bytes(der(MIDDLE))
    (tmp_path / "damaged.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    (tmp_path / "damaged.der").write_bytes(b"\x30\x80")
    (tmp_path / "notes.txt").write_text("not looked at")
    loaded = ek.load_roots(tmp_path)
    assert len(loaded.certificates) == 3
    assert loaded.unreadable == ("damaged.der", "damaged.pem")
    assert isinstance(loaded.certificates[0], Certificate)
    other = issue("TPM", RSA_KEYS[2048].public_key(), "Other", CA_KEY, LEAF, EK_USAGE, ENCIPHER)
    with pytest.raises(EndorsementKeyError, match=r"unknown EK issuer CN=Other(?s:.*)damaged\.der, damaged\.pem"):
        ek.verify_ek(der(other), EK, loaded, now=NOW)


def test_a_root_that_came_or_was_taken_away_counts_at_once_and_nothing_is_read_twice(tmp_path: Path) -> None:
    roots = ek.RootsDirectory(tmp_path)
    assert roots().certificates == ()
    (tmp_path / "root.cer").write_bytes(der(ROOT))
    one = roots()
    assert len(one.certificates) == 1
    assert roots() is one
    (tmp_path / "root.cer").write_bytes(b"\x30\x80")
    assert roots().unreadable == ("root.cer",)
    (tmp_path / "root.cer").unlink()
    assert roots().certificates == ()


# ---- templates


KINDS = [
    (L1, RSA_KEYS[2048]), (L2, EC_KEYS["secp256r1"]), (H1, RSA_KEYS[2048]), (H2, EC_KEYS["secp256r1"]),
    (H3, EC_KEYS["secp384r1"]), (H6, RSA_KEYS[3072]),
]  # fmt: skip


@pytest.mark.parametrize(("template", "key"), KINDS, ids=["L-1", "L-2", "H-1", "H-2", "H-3", "H-6"])
def test_an_ek_of_each_template_is_accepted_with_a_certificate_that_fits(
    template: bytes, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
) -> None:
    of = public(template, key)
    allows = ENCIPHER if isinstance(key, rsa.RSAPrivateKey) else usage(key_agreement=True)
    identity = verify(leaf(LEAF, EK_USAGE, allows, key=key.public_key()), of=of)
    assert identity.identity == ek.ek_identity(of.raw)
    make_credential(of, b"\0\x0b" + bytes(32), bytes(32))
    wrong = usage(key_agreement=True) if isinstance(key, rsa.RSAPrivateKey) else ENCIPHER
    with pytest.raises(EndorsementKeyError, match="does not allow key"):
        verify(leaf(LEAF, EK_USAGE, wrong, key=key.public_key()), of=of)


@pytest.mark.parametrize(("template", "key"), KINDS, ids=["L-1", "L-2", "H-1", "H-2", "H-3", "H-6"])
@pytest.mark.parametrize("bit", [1, 4, 5, 6, 7, 10, 16, 17, 18])
def test_an_ek_with_any_other_attribute_is_refused(
    template: bytes, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, bit: int
) -> None:
    """sign would let it sign what looks like a quote; userWithAuth without the high range's policy is a password."""
    raw = public(template, key).raw
    changed = (int.from_bytes(raw[4:8], "big") ^ 1 << bit).to_bytes(4, "big")
    with pytest.raises(EndorsementKeyError, match=r"differs from template .-. in its attributes|in its policy"):
        ek.check_ek_template(parse_public(raw[:4] + changed + raw[8:]))


def test_an_ek_of_a_size_or_policy_that_no_template_has_is_refused() -> None:
    policy = EK.raw.replace(ek.POLICY_A, bytes(32))
    with pytest.raises(EndorsementKeyError, match="differs from template L-1 in its policy"):
        ek.check_ek_template(parse_public(policy))
    larger = L1.replace(struct.pack(">HI", 2048, 0), struct.pack(">HI", 3072, 0))
    with pytest.raises(EndorsementKeyError, match="template H-6 in its name algorithm, attributes"):
        ek.check_ek_template(public(larger, RSA_KEYS[3072]))


@pytest.mark.parametrize("tag", [0x30, 0x31, 0xA0, 0x24])
def test_recursive_structures_a_certificate_nested_2000_deep_is_refused_and_overflows_no_stack(tag: int) -> None:
    nested = b""
    while len(nested) + 8 < MOST_BYTES:
        nested = element(tag, nested)
    with pytest.raises(EndorsementKeyError, match="cannot be read"):
        verify(nested)
    inside_of_it = element(0xA3, element(0x30, element(0x30, nested[: MOST_BYTES // 2])))
    with pytest.raises(EndorsementKeyError):
        verify(reissue(leaf(), MIDDLE_KEY, extensions=inside_of_it))
