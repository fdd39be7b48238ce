"""Vendors' signatures at import: real ones by gpg and openssl, in files, catalogues and cabinets; and forgeries."""

import base64
import contextlib
import gzip
import hashlib
import json
import random
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from asn1crypto import cms
from cabarchive import CabArchive, CabFile
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from freehold.root_of_trust.depot import jcat, vendor
from freehold.root_of_trust.depot.errors import DepotError, PackageRefused, VendorSignatureRefused
from freehold.root_of_trust.depot.package import Scheme

DATA = b"firmware by ACME\n" * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()
NAME = "firmware.bin"


@pytest.fixture
def file(tmp_path: Path) -> Iterator[BinaryIO]:
    path = tmp_path / "incoming"
    path.write_bytes(DATA)
    with path.open("rb") as opened:
        yield opened


def run(*command: object, data: bytes = b"", cwd: Path | None = None) -> bytes:
    return subprocess.run([str(word) for word in command], input=data, capture_output=True, check=True, cwd=cwd).stdout


class OpenPgp:
    """A key made by gpg in a home of its own."""

    def __init__(self, home: Path, user: str = "ACME <firmware@acme.example>") -> None:
        home.mkdir(mode=0o700)
        self._gpg = ("gpg", "--homedir", home, "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "")
        self._home = home
        run(*self._gpg, "--quick-generate-key", user, "ed25519", "sign", "never")
        listed = run(*self._gpg, "--with-colons", "--list-keys").decode()
        self.fingerprint = next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr")).lower()

    def sign(self, data: bytes, *more: str) -> bytes:
        return run(*self._gpg, *more, "--detach-sign", "--output", "-", data=data)

    def ring(self, *more: str) -> bytes:
        return run(*self._gpg, *more, "--export")

    def close(self) -> None:
        run("gpgconf", "--homedir", self._home, "--kill", "all")


@pytest.fixture(scope="module")
def pgp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenPgp]:
    made = OpenPgp(tmp_path_factory.mktemp("pgp") / "home")
    yield made
    made.close()


class Pki:
    """A vendor's CA and its code-signing certificate, as LVFS has them."""

    def __init__(self, directory: Path, not_after: datetime | None = None) -> None:
        now = datetime.now(UTC)
        self.directory = directory
        ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        self.ca = self._certificate("ACME CA", ca_key, "ACME CA", ca_key, now + timedelta(days=3650), True)
        self.leaf = self._certificate(
            "ACME firmware", key, "ACME CA", ca_key, not_after or now + timedelta(days=1), False
        )
        (directory / "key.pem").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        (directory / "leaf.pem").write_bytes(self.pem(self.leaf))

    @staticmethod
    def _certificate(
        name: str, key: ec.EllipticCurvePrivateKey, issuer: str, issuer_key: ec.EllipticCurvePrivateKey,
        until: datetime, ca: bool,
    ) -> x509.Certificate:  # fmt: skip
        builder = x509.CertificateBuilder(
            issuer_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]),
            subject_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]),
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=datetime(2015, 1, 1, tzinfo=UTC),
            not_valid_after=until,
        ).add_extension(x509.BasicConstraints(ca, None), critical=True)
        if not ca:
            usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])
            builder = builder.add_extension(usage, critical=False)
        return builder.sign(issuer_key, hashes.SHA256())

    @staticmethod
    def pem(certificate: x509.Certificate) -> bytes:
        return certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def fingerprint(self) -> str:
        return self.leaf.fingerprint(hashes.SHA256()).hex()

    def sign(self, data: bytes, form: str = "DER", *more: str) -> bytes:
        names = ("-signer", self.directory / "leaf.pem", "-inkey", self.directory / "key.pem")
        return run("openssl", "cms", "-sign", "-binary", *names, "-outform", form, *more, data=data)


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    (tmp_path / "pki").mkdir()
    return Pki(tmp_path / "pki")


def refused(words: str, *arguments: Any) -> None:
    with pytest.raises(VendorSignatureRefused, match=words) as error:
        vendor.verify(*arguments)
    assert error.value.remedy or error.value.expected


@pytest.mark.host
@pytest.mark.parametrize("armored", [False, True])
def test_a_detached_openpgp_signature(file: BinaryIO, pgp: OpenPgp, armored: bool) -> None:
    armor = ("--armor",) if armored else ()
    found = vendor.verify(file, DIGEST, NAME, pgp.sign(DATA, *armor), pgp.ring(*armor))
    assert found == (Scheme.PGP, pgp.fingerprint)


@pytest.mark.host
def test_openpgp_forgeries(file: BinaryIO, pgp: OpenPgp, tmp_path: Path) -> None:
    other = OpenPgp(tmp_path / "other")
    try:
        good, ring = pgp.sign(DATA), pgp.ring()
        refused("BAD signature", file, DIGEST, NAME, pgp.sign(DATA + b"!"), ring)
        refused("No public key", file, DIGEST, NAME, other.sign(DATA), ring)
        refused("No public key", file, DIGEST, NAME, good, other.ring())
        refused("No public key", file, DIGEST, NAME, good + other.sign(DATA), ring)
        refused("OpenPGP signature", file, DIGEST, NAME, good[:-10], ring)
        refused("OpenPGP signature", file, DIGEST, NAME, b"", ring)
        refused("OpenPGP signature", file, DIGEST, NAME, good, b"")
        refused("OpenPGP signature", file, DIGEST, NAME, good, b"garbage")
        refused("the keyring is not what it looks like", file, DIGEST, NAME, good,
                b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n!!!\n-----END PGP PUBLIC KEY BLOCK-----\n")  # fmt: skip
        refused("OpenPGP signature", file, DIGEST, NAME, pgp.sign(DATA, "--digest-algo", "SHA1"), ring)
    finally:
        other.close()


@pytest.mark.host
def test_a_signed_message_with_other_content_is_no_signature_of_the_file(
    file: BinaryIO, pgp: OpenPgp, tmp_path: Path
) -> None:
    message = run(*pgp._gpg, "--sign", "--output", "-", data=b"something else")
    refused("OpenPGP signature", file, DIGEST, NAME, message, pgp.ring())


@pytest.mark.host
def test_the_users_own_keyring_does_not_count(
    file: BinaryIO, pgp: OpenPgp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("trustedkeys.gpg", "pubring.gpg"):
        (tmp_path / "home/.gnupg").mkdir(parents=True, exist_ok=True)
        (tmp_path / "home/.gnupg" / name).write_bytes(pgp.ring())
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GNUPGHOME", str(tmp_path / "home/.gnupg"))
    refused("OpenPGP signature", file, DIGEST, NAME, pgp.sign(DATA), b"")


@pytest.mark.host
@pytest.mark.parametrize("form", ["DER", "PEM"])
@pytest.mark.parametrize("pinned", [False, True])
def test_a_detached_pkcs7_signature_by_a_ca_or_by_the_pinned_signer(
    file: BinaryIO, pki: Pki, form: str, pinned: bool
) -> None:
    trust = pki.pem(pki.leaf if pinned else pki.ca)
    assert vendor.verify(file, DIGEST, NAME, pki.sign(DATA, form), trust) == (Scheme.PKCS7, pki.fingerprint)


@pytest.mark.host
def test_pkcs7_forgeries(file: BinaryIO, pki: Pki, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Pki(tmp_path / "other")
    trust = pki.pem(pki.ca)
    refused("verification failure", file, DIGEST, NAME, pki.sign(DATA + b"!"), trust)
    refused("certificate verify error", file, DIGEST, NAME, other.sign(DATA), trust)
    refused("certificate verify error", file, DIGEST, NAME, pki.sign(DATA), other.pem(other.ca))
    refused("PKCS #7", file, DIGEST, NAME, pki.sign(DATA)[:-10], trust)
    refused("PKCS #7", file, DIGEST, NAME, b"", trust)
    refused("PKCS #7", file, DIGEST, NAME, pki.sign(DATA), b"-----BEGIN CERTIFICATE-----\n")
    # content that came along does not stand for the file
    refused("PKCS #7", file, DIGEST, NAME, pki.sign(DATA + b"!", "DER", "-nodetach"), trust)
    # nor do certificates without a signature
    bare = run("openssl", "crl2pkcs7", "-nocrl", "-certfile", pki.directory / "leaf.pem", "-outform", "DER")
    refused("PKCS #7", file, DIGEST, NAME, bare, trust)


@pytest.mark.host
@pytest.mark.parametrize("form", ["DER", "PEM"])
@pytest.mark.parametrize("digest", ["md5", "sha1", "sha224"])
@pytest.mark.slow
def test_a_pkcs7_signature_by_a_weak_digest(file: BinaryIO, tmp_path: Path, digest: str, form: str) -> None:
    """`openssl cms -verify` takes each of these for good."""
    names, trust = rsa_signer(tmp_path, 2048)
    for more in ((), ("-noattr",)):
        signed = run("openssl", "cms", "-sign", "-binary", *names, "-md", digest, *more, "-outform", form, data=DATA)
        refused(f"relies on {digest}", file, DIGEST, NAME, signed, trust)


@pytest.mark.host
def test_one_weak_signer_among_strong_ones(file: BinaryIO, pki: Pki) -> None:
    both, weak = (cms.ContentInfo.load(pki.sign(DATA, "DER", "-md", digest)) for digest in ("sha256", "sha1"))
    for name in ("digest_algorithms", "signer_infos"):
        both["content"][name].append(weak["content"][name][0])
    refused("relies on sha1", file, DIGEST, NAME, both.dump(force=True), pki.pem(pki.ca))


@pytest.mark.host
def test_the_signature_that_is_judged_is_the_one_that_openssl_verifies(file: BinaryIO, pki: Pki) -> None:
    """openssl skips blocks of PEM with other labels."""
    strong, weak = pki.sign(DATA, "PEM"), pki.sign(DATA, "PEM", "-md", "sha1")
    hidden = strong.replace(b" CMS-", b" X-") + weak
    refused("2 blocks of PEM", file, DIGEST, NAME, hidden, pki.pem(pki.ca))


def rsa_signer(directory: Path, bits: int) -> tuple[tuple[object, ...], bytes]:
    names = ("-signer", directory / "rsa.pem", "-inkey", directory / "rsa.key")
    run("openssl", "req", "-x509", "-newkey", f"rsa:{bits}", "-nodes", "-subj", "/CN=ACME", "-sha256",
        "-keyout", names[3], "-out", names[1])  # fmt: skip
    return names, (directory / "rsa.pem").read_bytes()


@pytest.mark.host
def test_a_pkcs7_signature_by_a_short_rsa_key(file: BinaryIO, tmp_path: Path) -> None:
    names, trust = rsa_signer(tmp_path, 1024)
    signature = run("openssl", "cms", "-sign", "-binary", *names, "-outform", "DER", data=DATA)
    refused("key too weak", file, DIGEST, NAME, signature, trust)


@pytest.mark.host
def test_a_pkcs7_signature_by_rsa(file: BinaryIO, tmp_path: Path) -> None:
    names, trust = rsa_signer(tmp_path, 2048)
    plain = ("openssl", "cms", "-sign", "-binary", *names, "-outform", "DER")
    pss = (*plain, "-keyopt", "rsa_padding_mode:pss")
    for command in (plain, pss):
        assert vendor.verify(file, DIGEST, NAME, run(*command, data=DATA), trust).scheme is Scheme.PKCS7
    weak = run(*pss, "-keyopt", "rsa_mgf1_md:sha1", data=DATA)
    refused("relies on sha1", file, DIGEST, NAME, weak, trust)


@pytest.mark.host
def test_a_damaged_pkcs7_signature_never_crashes(pki: Pki) -> None:
    made, chance = pki.sign(DATA), random.Random(5652)
    for _ in range(300):
        damaged = bytearray(made)
        damaged[chance.randrange(len(made))] = chance.randrange(256)
        with contextlib.suppress(VendorSignatureRefused):
            vendor._strong(bytes(damaged[: chance.choice((len(made), chance.randrange(len(made))))]))


@pytest.mark.host
def test_the_systems_cas_do_not_count(
    file: BinaryIO, pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    other = Pki(tmp_path / "other")
    (tmp_path / "cas.pem").write_bytes(pki.pem(pki.ca))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cas.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    refused("certificate verify error", file, DIGEST, NAME, pki.sign(DATA), other.pem(other.ca))


@pytest.mark.host
def test_a_certificate_that_has_expired_since_counts_as_of_a_day(file: BinaryIO, tmp_path: Path) -> None:
    """LVFS's own signing certificate of 2017 expired in 2019; what it signed is still theirs."""
    pki = Pki(tmp_path, not_after=datetime(2019, 8, 1, tzinfo=UTC))
    trust, signature = pki.pem(pki.ca), pki.sign(DATA)
    refused("certificate has expired", file, DIGEST, NAME, signature, trust)
    found = vendor.verify(file, DIGEST, NAME, signature, trust, datetime(2018, 6, 1, tzinfo=UTC))
    assert found.fingerprint == pki.fingerprint
    refused("certificate has expired", file, DIGEST, NAME, signature, trust, datetime(2019, 8, 2, tzinfo=UTC))


def catalogue(*blobs: tuple[int, bytes, int | None], name: str = NAME, **more: Any) -> bytes:
    """A jcat as libjcat writes it: text as text, everything else in base64."""
    items = []
    for kind, data, over in blobs:
        text = kind == 1 or data.startswith(b"-----")
        blob: dict[str, Any] = {"Kind": kind, "Flags": int(text), "AppstreamId": "com.acme", "Timestamp": 1583409962}
        blob["Data"] = data.decode() if text else base64.b64encode(data).decode()
        items.append(blob | ({"Target": over} if over is not None else {}))
    content = {"JcatVersionMajor": 0, "JcatVersionMinor": 1, "Items": [{"Id": name, "Blobs": items, **more}]}
    return gzip.compress(json.dumps(content).encode())


@pytest.mark.host
@pytest.mark.parametrize("over_digest", [False, True])
def test_a_catalogue_with_either_kind_of_signature(file: BinaryIO, pgp: OpenPgp, pki: Pki, over_digest: bool) -> None:
    signed, target = (DIGEST.encode(), 1) if over_digest else (DATA, None)
    made = catalogue(
        (1, DIGEST.encode(), None), (4, b"ab" * 20, None), (2, pgp.sign(signed, "--armor"), target),
        (3, pki.sign(signed), target),
    )  # fmt: skip
    trailing = made + bytes(8)  # as in fwupd's own test file
    assert vendor.verify(file, DIGEST, NAME, trailing, pgp.ring()) == (Scheme.JCAT_PGP, pgp.fingerprint)
    assert vendor.verify(file, DIGEST, NAME, made, pki.pem(pki.ca)) == (Scheme.JCAT_PKCS7, pki.fingerprint)


@pytest.mark.host
def test_one_good_signature_in_a_catalogue_is_enough(file: BinaryIO, pki: Pki, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Pki(tmp_path / "other")
    made = catalogue((3, other.sign(DATA), None), (3, pki.sign(DATA), None), name="x", AliasIds=[NAME])
    assert vendor.verify(file, DIGEST, NAME, made, pki.pem(pki.ca)).fingerprint == pki.fingerprint


@pytest.mark.host
def test_catalogues_that_do_not_vouch(file: BinaryIO, pki: Pki) -> None:
    trust, good = pki.pem(pki.ca), pki.sign(DATA)
    refused("it has none of that kind", file, DIGEST, NAME, catalogue((1, DIGEST.encode(), None)), trust)
    refused("it has none of that kind", file, DIGEST, NAME, catalogue((2, good, None)), trust)
    refused("verification failure", file, DIGEST, NAME, catalogue((3, good, 1)), trust)
    refused("verification failure", file, DIGEST, NAME, catalogue((3, pki.sign(DIGEST.encode()), None)), trust)
    refused("it has none of that kind", file, DIGEST, NAME, catalogue((3, good, 4)), trust)
    refused("another SHA-256", file, DIGEST, NAME, catalogue((1, b"ab" * 32, None), (3, good, None)), trust)
    refused("0 items named", file, DIGEST, NAME, catalogue((3, good, None), name="other.bin"), trust)


def twice() -> bytes:
    item = {"Id": NAME, "Blobs": []}
    return gzip.compress(json.dumps({"Items": [item, item]}).encode())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x1f\x8b", "cut"),
        (b"\x1f\x8b" + bytes(20), "cannot be read"),
        (gzip.compress(b"[]"), "cannot be read"),
        (gzip.compress(b'{"Items":[{"Id":"firmware.bin","Blobs":[{"Kind":1}]}]}'), "cannot be read"),
        (gzip.compress(b'{"Items":[{"Id":"firmware.bin","Blobs":[{"Kind":3,"Data":"!"}]}]}'), "cannot be read"),
        (gzip.compress(b'{"Items":[]}')[:-6], "cut"),
        (gzip.compress(bytes(64 << 20)), "more than 4 MiB"),
        (twice(), "2 items named"),
    ],
    ids=["short", "zeros", "no object", "blob", "base64", "cut", "bomb", "twice"],
)
def test_bad_catalogues_are_refused_and_bombs_are_not_unpacked(data: bytes, words: str) -> None:
    with pytest.raises(VendorSignatureRefused, match=words):
        jcat.signatures(data, NAME, DIGEST, jcat.PKCS7)


def cabinet(files: dict[str, bytes], compress: bool = True) -> bytes:
    archive = CabArchive()
    for name, data in files.items():
        archive[name] = CabFile(data)
    return archive.save(compress=compress)


@pytest.mark.host
@pytest.mark.parametrize("over_digest", [False, True])
def test_a_cabinet_and_a_catalogue_by_the_tools_that_vendors_use(
    file: BinaryIO, pki: Pki, tmp_path: Path, over_digest: bool
) -> None:
    """gcab and libjcat, not our reading of their formats."""
    (tmp_path / NAME).write_bytes(DATA)
    signer = (pki.directory / "leaf.pem", pki.directory / "key.pem")
    more = ("--target", "sha256") if over_digest else ()
    if over_digest:  # what is signed is the checksum, which has to be there first
        run("jcat-tool", "self-sign", "firmware.jcat", NAME, "--kind", "sha256", cwd=tmp_path)
    run("jcat-tool", "sign", "firmware.jcat", NAME, *signer, *more, cwd=tmp_path)
    run("gcab", "--create", "--zip", "acme.cab", NAME, "firmware.jcat", cwd=tmp_path)
    member = jcat.extract((tmp_path / "acme.cab").read_bytes(), NAME)
    assert member.data == DATA
    assert member.catalogue is not None
    assert vendor.verify(file, DIGEST, NAME, member.catalogue, pki.pem(pki.ca)) == (Scheme.JCAT_PKCS7, pki.fingerprint)
    (tmp_path / "changed").write_bytes(DATA + b"!")
    with (tmp_path / "changed").open("rb") as changed:
        digest = hashlib.sha256(DATA + b"!").hexdigest()
        why = "another SHA-256 than its catalogue says" if over_digest else "no signature in the catalogue"
        refused(why, changed, digest, NAME, member.catalogue, pki.pem(pki.ca))


@pytest.mark.parametrize("compress", [False, True])
def test_a_file_comes_out_of_a_cabinet_with_its_catalogue(compress: bool) -> None:
    made = cabinet({NAME: DATA, "firmware.jcat": b"catalogue", "firmware.metainfo.xml": b"<x/>"}, compress)
    assert jcat.is_cabinet(made[:4])
    assert jcat.extract(made, NAME) == (DATA, b"catalogue", ("firmware.jcat",))
    assert jcat.extract(cabinet({NAME: DATA}), NAME) == (DATA, None, ())
    two = jcat.extract(cabinet({NAME: DATA, "a.jcat": b"", "b.jcat": b""}), NAME)
    assert (two.catalogue, two.signed_by) == (None, ("a.jcat", "b.jcat"))
    with pytest.raises(PackageRefused, match=r"holds no x\.bin"):
        jcat.extract(made, "x.bin")


def test_a_cabinet_that_would_unpack_without_end_is_not_unpacked() -> None:
    bomb = bytearray(cabinet({NAME: DATA}))
    bomb[36 + 4 : 36 + 6] = b"\xff\xff"  # CFFOLDER.cCFData
    with pytest.raises(PackageRefused, match="more than 1 GiB"):
        jcat.extract(bytes(bomb), NAME)


@given(st.data())
def test_a_damaged_cabinet_is_refused_and_never_crashes(data: st.DataObject) -> None:
    made = bytearray(cabinet({NAME: DATA, "firmware.jcat": b"catalogue"}))
    for _ in range(data.draw(st.integers(1, 3))):
        made[data.draw(st.integers(0, len(made) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(made[: data.draw(st.integers(0, len(made)))])
    try:
        found = jcat.extract(cut, NAME)
    except PackageRefused:
        return
    assert isinstance(found.data, bytes)


def test_a_tool_that_is_missing_is_named(file: BinaryIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DepotError, match="gpgv is not installed") as error:
        vendor.verify(file, DIGEST, NAME, b"\x88", b"ring")
    assert error.value.remedy == "apt-get install gpgv"


@pytest.mark.host
def test_an_openpgp_key_that_has_expired(file: BinaryIO, tmp_path: Path) -> None:
    """gpgv itself takes it for good: whoever finds an old private key could sign with it."""
    home = tmp_path / "expired"
    home.mkdir(mode=0o700)
    gpg = ("gpg", "--homedir", home, "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "")
    then = ("--faked-system-time", "20200101T000000!")
    run(*gpg, *then, "--quick-generate-key", "ACME <old@acme.example>", "ed25519", "sign", "30d")
    signature = run(*gpg, *then, "--detach-sign", "--output", "-", data=DATA)
    ring = run(*gpg, "--export")
    run("gpgconf", "--homedir", home, "--kill", "all")
    refused("OpenPGP signature", file, DIGEST, NAME, signature, ring)
