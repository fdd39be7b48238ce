"""The CAs of the site: what they may speak for, what the root signs, what is revoked."""

import subprocess
from datetime import timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from pki_support import CA_KEY, KEY, NOW, OOB, ROOT_KEY, a_root, bmc_ca, forged, refused

from freehold.root_of_trust import pki

SPKI = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
rooted = pytest.mark.parametrize("rooted", [False, True], ids=["self-signed", "under a root"])


@rooted
def test_a_bmc_is_accepted_at_its_address_for_397_days(rooted: bool) -> None:
    ca = bmc_ca(rooted=rooted)
    leaf = pki.bmc_certificate(KEY.public_key(), ca, CA_KEY, "172.30.1.11", NOW)
    assert refused(ca, leaf, "172.30.1.11") == ""
    assert "no matching subjectAltName" in refused(ca, leaf, "172.30.1.12")
    assert leaf.not_valid_after_utc == NOW + timedelta(days=397)
    assert refused(ca, leaf, "172.30.1.11", NOW + timedelta(days=398))
    assert pki.needs_renewal(leaf, NOW + timedelta(days=266))
    assert not pki.needs_renewal(leaf, NOW + timedelta(days=263))


@rooted
@pytest.mark.parametrize(
    "names",
    [
        [x509.IPAddress(ip_address("10.0.0.1"))],
        [x509.IPAddress(ip_address("fd00::1"))],
        [x509.DNSName("bmc.example")],
        [x509.IPAddress(ip_address("172.30.1.11")), x509.DNSName("controller.example")],
    ],
    ids=["another network", "IPv6", "a DNS name", "a DNS name beside an address of the zone"],
)
def test_a_stolen_bmc_ca_speaks_for_nobody_outside_its_zone(rooted: bool, names: list[x509.GeneralName]) -> None:
    ca = bmc_ca(rooted=rooted)
    assert refused(ca, forged(names, ca, CA_KEY), "172.30.1.11" if len(names) > 1 else "10.0.0.1")
    with pytest.raises(pki.CertificateError, match=r"the BMC CA may not speak for 10\.0\.0\.1"):
        pki.bmc_certificate(KEY.public_key(), ca, CA_KEY, "10.0.0.1", NOW)


def test_an_issuing_ca_makes_no_other_ca() -> None:
    ca = bmc_ca()
    below = pki.issue_authority(
        pki.authority_request(KEY, x509.Name([]), [ip_network("172.30.1.0/25")]), ca, CA_KEY, NOW
    )
    leaf = pki.bmc_certificate(KEY.public_key(), below, KEY, "172.30.1.11", NOW)
    policy = x509.verification.PolicyBuilder().store(x509.verification.Store([ca])).time(NOW)
    with pytest.raises(x509.verification.VerificationError):
        policy.build_server_verifier(x509.IPAddress(ip_address("172.30.1.11"))).verify(leaf, [below])


def test_what_was_issued_before_the_ceremony_stays_valid_after_it() -> None:
    before, after = bmc_ca(), bmc_ca(rooted=True)
    leaf = pki.bmc_certificate(KEY.public_key(), before, CA_KEY, "172.30.1.11", NOW)
    assert refused(after, leaf, "172.30.1.11") == ""
    assert pki.is_self_signed(before)
    assert not pki.is_self_signed(after)
    after.verify_directly_issued_by(a_root())
    assert pki.zone(after) == tuple(OOB)


def test_a_certificate_never_outlives_its_ca() -> None:
    late = NOW + timedelta(days=3600)
    leaf = pki.bmc_certificate(KEY.public_key(), bmc_ca(), CA_KEY, "172.30.1.11", late)
    assert leaf.not_valid_after_utc == bmc_ca().not_valid_after_utc


@rooted
def test_an_agent_is_a_client_for_a_day_at_most_and_never_a_server(rooted: bool, tmp_path: Path) -> None:
    ca = bmc_ca(rooted=rooted)  # of the agent CA nothing differs but the name
    for asked, granted in ((timedelta(hours=1), timedelta(hours=1)), (timedelta(days=7), timedelta(hours=24))):
        leaf = pki.agent_certificate(KEY.public_key(), ca, CA_KEY, "server-1", "5e55", NOW, asked)
        assert (leaf.not_valid_before_utc, leaf.not_valid_after_utc) == (NOW, NOW + granted)
    assert refused(ca, leaf, "172.30.1.11")
    for name, certificate in (("ca", ca), ("leaf", leaf)):
        (tmp_path / f"{name}.pem").write_bytes(pki.pem(certificate))

    def openssl(purpose: str, at: timedelta = timedelta(0)) -> bool:
        command = ["openssl", "verify", "-partial_chain", "-trusted", tmp_path / "ca.pem", "-purpose", purpose]
        command += ["-attime", str(int((NOW + at).timestamp())), tmp_path / "leaf.pem"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    assert openssl("sslclient")
    assert not openssl("sslserver")
    assert not openssl("sslclient", timedelta(hours=25))


@pytest.mark.parametrize(
    "der",
    [
        b"",
        b"no key",
        ec.generate_private_key(ec.SECP384R1()).public_key().public_bytes(*SPKI),
        ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(*SPKI),
    ],
    ids=["nothing", "no key", "P-384", "Ed25519"],
)
def test_an_agent_s_key_is_of_p_256(der: bytes) -> None:
    assert pki.agent_key(KEY.public_key().public_bytes(*SPKI)) == KEY.public_key()
    with pytest.raises(pki.CertificateError, match="not one of P-256"):
        pki.agent_key(der)


def request(**changes: object) -> x509.CertificateSigningRequest:
    options = {"key": CA_KEY, "networks": OOB, "excluded": [x509.DNSName("")], "more": []} | changes
    builder = x509.CertificateSigningRequestBuilder().subject_name(bmc_ca().subject)
    if options["networks"] is not None:
        permitted = [x509.IPAddress(network) for network in options["networks"]]
        constraints = x509.NameConstraints(permitted or None, options["excluded"])
        builder = builder.add_extension(constraints, critical=True)
    for extension in options["more"]:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(options["key"], hashes.SHA256())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"networks": None}, "something else than IP networks"),
        ({"networks": [ip_network("0.0.0.0/0")]}, "asks to speak for 0.0.0.0/0"),
        ({"networks": [*OOB, ip_network("8.0.0.0/7")]}, "asks to speak for 8.0.0.0/7"),
        ({"excluded": None}, "something else than IP networks"),
        ({"networks": []}, "needs a zone"),
        ({"more": [x509.SubjectAlternativeName([x509.DNSName("x")])]}, "something else than IP networks"),
        ({"key": rsa.generate_private_key(65537, 2048)}, "not an EC key"),
    ],
    ids=["no zone", "the whole world", "a network too wide", "DNS names too", "an empty zone", "a SAN", "RSA"],
)
def test_the_root_does_not_sign_what_it_must_not(changes: dict[str, object], why: str) -> None:
    with pytest.raises(pki.CertificateError, match=why):
        pki.issue_authority(request(**changes), a_root(), ROOT_KEY, NOW)


def test_a_request_that_was_changed_on_the_way_is_refused() -> None:
    der = bytearray(request().public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    with pytest.raises(pki.CertificateError, match="signature does not verify"):
        pki.requested_zone(x509.load_der_x509_csr(bytes(der)))


def test_an_issuing_ca_is_held_against_its_root() -> None:
    pki.require_authority(bmc_ca(rooted=True), a_root(), NOW)
    foreign = pki.root_ca(ec.generate_private_key(ec.SECP384R1()), "lab", NOW)
    leaf = pki.bmc_certificate(KEY.public_key(), a_root_that_signs_leaves(), ROOT_KEY, "172.30.1.11", NOW)
    for issued, root, now in (
        (bmc_ca(rooted=True), foreign, NOW),
        (bmc_ca(), a_root(), NOW),
        (leaf, a_root(), NOW),
        (a_root(), a_root(), NOW),
        (bmc_ca(rooted=True), a_root(), NOW + timedelta(days=4000)),
    ):
        with pytest.raises(pki.CertificateError, match="is not an issuing CA of"):
            pki.require_authority(issued, root, now)


def a_root_that_signs_leaves() -> x509.Certificate:
    return pki.bmc_ca(ROOT_KEY, "lab root", OOB, NOW)


def test_the_revocation_list_grows_and_forgets_nothing() -> None:
    ca = bmc_ca()
    first = pki.revocation_list(ca, CA_KEY, None, [], NOW)
    second = pki.revocation_list(ca, CA_KEY, first, [7, 9], NOW + timedelta(days=1))
    third = pki.revocation_list(ca, CA_KEY, second, [7], NOW + timedelta(days=20))
    assert pki.revoked_serials(first, ca) == {}
    assert pki.revoked_serials(third, ca) == {7: NOW + timedelta(days=1), 9: NOW + timedelta(days=1)}
    numbers = [
        crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number for crl in (first, second, third)
    ]
    assert numbers == [1, 2, 3]
    assert not pki.is_stale(third, NOW + timedelta(days=34))
    assert pki.is_stale(third, NOW + timedelta(days=36))


def test_a_revocation_list_of_somebody_else_is_refused() -> None:
    ca, other = bmc_ca(), ec.generate_private_key(ec.SECP256R1())
    theirs = pki.revocation_list(pki.bmc_ca(other, "lab", OOB, NOW), other, None, [7], NOW)
    with pytest.raises(pki.CertificateError, match="is not of CN=lab BMC CA"):
        pki.revoked_serials(theirs, ca)
    with pytest.raises(pki.CertificateError):
        pki.revocation_list(ca, CA_KEY, theirs, [], NOW)


@settings(max_examples=30, deadline=None)
@given(batches=st.lists(st.lists(st.integers(1, 1 << 150), max_size=3), max_size=5))
def test_every_list_holds_all_that_was_ever_revoked(batches: list[list[int]]) -> None:
    ca, last = bmc_ca(), None
    for days, batch in enumerate(batches):
        last = pki.revocation_list(ca, CA_KEY, last, batch, NOW + timedelta(days=days))
        assert set(pki.revoked_serials(last, ca)) == {serial for each in batches[: days + 1] for serial in each}


def test_a_claim_says_what_was_issued() -> None:
    leaf = pki.bmc_certificate(KEY.public_key(), bmc_ca(), CA_KEY, "172.30.1.11", NOW)
    said = pki.claim(leaf, "BMC", root="none")
    assert (said["event"], said["purpose"], said["root"]) == ("issued", "BMC", "none")
    assert int(said["serial"], 16) == leaf.serial_number
    assert said["addresses"] == ["172.30.1.11"]
    assert said["sha256"] == pki.sha256(leaf)
    assert said["issuer"] == "CN=lab BMC CA"


@pytest.mark.host
def test_openssl_agrees_on_the_zone_and_on_the_revocation(tmp_path: Path) -> None:
    ca, now = pki.bmc_ca(CA_KEY, "lab", OOB, pki.utc_now()), pki.utc_now()
    inside = pki.bmc_certificate(KEY.public_key(), ca, CA_KEY, "172.30.1.11", now)
    outside = forged([x509.IPAddress(ip_address("10.0.0.1"))], ca, CA_KEY)
    crl = pki.revocation_list(ca, CA_KEY, None, [], now)
    listed = pki.revocation_list(ca, CA_KEY, crl, [inside.serial_number], now)
    items = {"ca": ca, "inside": inside, "outside": outside, "crl": crl, "listed": listed}
    for name, item in items.items():
        (tmp_path / f"{name}.pem").write_bytes(pki.pem(item))
    for crl_name, leaf, word in (
        ("crl", "inside", "OK"),
        ("crl", "outside", "permitted subtree violation"),
        ("listed", "inside", "certificate revoked"),
    ):
        command = ["openssl", "verify", "-x509_strict", "-partial_chain", "-crl_check", "-purpose", "sslserver"]
        command += ["-trusted", "ca.pem", "-CRLfile", f"{crl_name}.pem", f"{leaf}.pem"]
        done = subprocess.run(command, cwd=tmp_path, check=False, text=True, capture_output=True)
        assert word in done.stdout + done.stderr, (crl_name, leaf, done.stdout, done.stderr)


def test_a_forged_root_does_not_verify() -> None:
    with pytest.raises(InvalidSignature):
        bmc_ca(rooted=True).verify_directly_issued_by(pki.root_ca(ec.generate_private_key(ec.SECP384R1()), "lab", NOW))
