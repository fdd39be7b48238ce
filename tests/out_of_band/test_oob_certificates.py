"""What the BMC may ask to be certified, and who it may be at each moment of a change. Pure."""

import hashlib
from ipaddress import ip_address
from ssl import DER_cert_to_PEM_cert
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from oob_support import Crashes, ModelAccount, ModelBmc

from freehold.model.status import BmcCertificate, Facts, PendingCertificate
from freehold.out_of_band.certificates import accepted_identity, request_certificate, requested_key
from freehold.out_of_band.errors import CsrRefused, NotSupported
from freehold.out_of_band.redfish import Credential, RedfishClient
from freehold.out_of_band.transport import spki_sha256_of

ADDRESS = "172.30.1.11"
EC, RSA = ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)


def csr(key: Any = EC, common_name: str | None = ADDRESS, names: list[x509.GeneralName] | None = None) -> str:
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "A Vendor Inc.")]
    attributes += [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize("key", [EC, RSA, ec.generate_private_key(ec.SECP384R1())], ids=["P-256", "RSA", "P-384"])
@pytest.mark.parametrize(
    "names",
    [None, [x509.IPAddress(ip_address(ADDRESS))], [x509.DNSName(ADDRESS)]],
    ids=["no SAN", "the address", "the address as a name"],
)
def test_the_key_of_a_right_request_is_used(key: Any, names: list[x509.GeneralName] | None) -> None:
    assert requested_key(csr(key, names=names), ADDRESS, "ab" * 32) == key.public_key()


@pytest.mark.parametrize(
    ("request_pem", "why"),
    [
        (csr(common_name="controller.example"), "is for controller.example"),
        (csr(common_name=None), "is for nobody"),
        (csr(names=[x509.IPAddress(ip_address("172.30.1.2"))]), "is for 172.30.1.11, 172.30.1.2"),
        (csr(names=[x509.IPAddress(ip_address(ADDRESS)), x509.DNSName("*")]), r"is for 172.30.1.11, 172.30.1.11, \*"),
        (csr(ed25519.Ed25519PrivateKey.generate()), "key of the kind"),
        (csr(rsa.generate_private_key(65537, 1024)), "key of 1024 bits"),
        (csr(ec.generate_private_key(ec.SECP224R1())), "key of 224 bits"),
        (csr()[:80] + csr()[90:], "cannot be read"),
        ("", "cannot be read"),
    ],
    ids=[
        "another name",
        "no name",
        "another address",
        "a wildcard",
        "Ed25519",
        "short RSA",
        "P-224",
        "junk",
        "nothing",
    ],
)
def test_any_other_request_is_refused(request_pem: str, why: str) -> None:
    with pytest.raises(CsrRefused, match=why) as caught:
        requested_key(request_pem, ADDRESS, None, server="server-1")
    assert "nothing was issued to it" in (caught.value.remedy or "")


def test_a_request_that_its_key_did_not_sign_is_refused() -> None:
    der = bytearray(x509.load_pem_x509_csr(csr().encode()).public_bytes(serialization.Encoding.DER))
    der[-2] ^= 1
    changed = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM).decode()
    with pytest.raises(CsrRefused, match="not signed by its own key"):
        requested_key(changed, ADDRESS, None)


def test_the_factorys_key_is_not_certified() -> None:
    with pytest.raises(CsrRefused, match="the factory's key"):
        requested_key(csr(), ADDRESS, spki_sha256_of(EC.public_key()))


SEEN, DECLARED = "ab" * 32, "CD" * 32
INSTALLED = BmcCertificate(serial="1", sha256="0" * 64, not_before=0.0, not_after=1.0)
PENDING = PendingCertificate(pem=DER_cert_to_PEM_cert(b"given"))


@pytest.mark.parametrize(
    ("facts", "declared", "wanted"),
    [
        ({}, None, None),
        ({}, DECLARED, None),
        ({"bmc_identity": SEEN}, None, (SEEN, None)),
        ({"bmc_identity": SEEN}, DECLARED, None),
        ({"bmc_identity": SEEN}, SEEN.upper(), (SEEN, None)),
        ({"bmc_identity": SEEN, "bmc_certificate_pending": PENDING}, DECLARED, None),
        ({"bmc_identity": SEEN, "bmc_certificate_pending": PENDING}, None, (SEEN, "ca")),
        ({"bmc_identity": SEEN, "bmc_certificate": INSTALLED}, None, (None, "ca")),
        ({"bmc_identity": SEEN, "bmc_certificate": INSTALLED}, DECLARED, (None, "ca")),
        ({"bmc_identity": SEEN, "bmc_certificate": INSTALLED, "bmc_certificate_pending": PENDING}, None, (None, "ca")),
    ],
    ids=[
        "never seen",
        "declared only",
        "pinned",
        "another declared",
        "the same",
        "another, changing",
        "changing",
        "installed",
        "and declared",
        "renewing",
    ],
)
def test_who_the_bmc_may_be(facts: dict[str, Any], declared: str | None, wanted: tuple[str | None, str | None]) -> None:
    identity = accepted_identity(Facts(**facts), declared, "ca", "crl")
    assert (identity and (identity.spki_sha256, identity.ca_pem)) == wanted
    assert identity is None or (identity.crl_pem is None) == (identity.ca_pem is None)
    given = {PENDING: hashlib.sha256(b"given").hexdigest(), INSTALLED: INSTALLED.sha256}
    held = {given[each] for each in facts.values() if each in given}
    assert identity is None or set(identity.certificates) == held


async def test_a_bmc_without_the_service_says_what_to_do() -> None:
    bmc = ModelBmc(Crashes(), {"1": ModelAccount("root", "x")})
    async with RedfishClient(bmc, Credential("root", "x"), server="server-1") as client:
        with pytest.raises(NotSupported, match="no CertificateService") as caught:
            await request_certificate(client, ADDRESS)
    assert caught.value.remedy == "update its firmware"
