import ipaddress
import os
import socket
import ssl
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from freehold.root_of_trust import authorities, pki
from freehold.root_of_trust.kek import FileKek
from freehold.root_of_trust.keys import SiteKeys, SiteKeysError
from freehold.root_of_trust.vault import EmbeddedVault

sys.path.insert(0, str(Path(__file__).parents[1] / "evidence"))
from crash_points import run_until_crash

NOW = datetime(2026, 11, 23, tzinfo=UTC)
ADDRESSES = ["172.30.1.2", "127.0.0.1"]
OOB = ["172.30.1.0/24"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for the disk, and two RSA keys in turn instead of a search for primes each time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(rsa, "generate_private_key", lambda **_: RSA_KEYS.append(RSA_KEYS.pop(0)) or RSA_KEYS[-1])


RSA_KEYS = [rsa.generate_private_key(65537, 2048) for _ in range(3)]


@pytest.fixture
def vault(tmp_path: Path) -> EmbeddedVault:
    return EmbeddedVault.create(tmp_path / "vault", FileKek.create(tmp_path / "vault.key"))


def create(vault: EmbeddedVault, now: datetime = NOW) -> SiteKeys:
    return SiteKeys.create(vault.directory.parent, vault, "lab", ADDRESSES, lambda: now, bmc_networks=OOB)


def test_creating_twice_and_loading_give_the_same_keys(vault: EmbeddedVault) -> None:
    made = create(vault)
    again = create(vault)
    loaded = SiteKeys.load(vault.directory.parent, vault, lambda: NOW)
    assert made.public_files() == again.public_files() == loaded.public_files()
    assert made.controller_tls.certificate_pem == loaded.controller_tls.certificate_pem
    files = {path.name: path.read_bytes() for path in (vault.directory.parent / "keys").iterdir()}
    assert files == made.public_files()
    assert sorted(files) == [
        "agent-ca.pem", "bmc-ca.pem", "db.pem", "evidence.pub", "image.pub", "kek.pem", "owner-guid", "pk.pem",
    ]  # fmt: skip
    assert b"PRIVATE" not in b"".join(files.values())
    assert "PRIVATE" not in repr(made) + repr(made.agent_ca) + repr(vars(made))


def test_names_say_whose_keys_they_are(vault: EmbeddedVault) -> None:
    keys = create(vault)
    names = {role: key.certificate.subject.rfc4514_string() for role, key in keys.secure_boot.items()}
    assert names == {"pk": "CN=lab Secure Boot PK", "kek": "CN=lab Secure Boot KEK", "db": "CN=lab Secure Boot db"}
    assert isinstance(keys.secure_boot["db"].certificate.public_key(), rsa.RSAPublicKey)
    assert keys.secure_boot["db"].certificate.public_key().key_size == 2048
    assert list(keys.signature_lists()) == ["PK", "KEK", "db"]
    for name, data in keys.signature_lists().items():
        assert data.endswith(keys.secure_boot[name.lower()].certificate_der)


def test_every_crash_point_of_the_creation_is_completed_and_nothing_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kek = FileKek.create(tmp_path / "vault.key")
    for dies_at in range(0, 400, 7):
        state = tmp_path / str(dies_at)
        vault = EmbeddedVault.create(state / "vault", kek)
        died = run_until_crash(monkeypatch, dies_at, lambda vault=vault: create(vault))
        there = {path: vault.get(path) for path in vault.paths()}
        keys = create(vault)
        assert len(vault.paths()) == 9
        assert all(vault.get(path) == secret for path, secret in there.items())
        assert keys.public_files() == SiteKeys.load(state, vault, lambda: NOW).public_files()
        if not died:
            break
    assert 60 < dies_at < 393


def test_loading_an_incomplete_set_says_what_is_missing(vault: EmbeddedVault) -> None:
    with pytest.raises(SiteKeysError, match="lacks the site's identity key"):
        SiteKeys.load(vault.directory.parent, vault)
    create(vault)
    vault.destroy("site/keys/db")
    with pytest.raises(SiteKeysError, match="lacks the site's db key"):
        SiteKeys.load(vault.directory.parent, vault, lambda: NOW)


def test_a_vault_that_is_older_than_the_bmc_ca_still_loads_and_is_completed(vault: EmbeddedVault) -> None:
    made = create(vault)
    vault.destroy("site/keys/bmc-ca")
    (vault.directory.parent / "keys/bmc-ca.pem").unlink()
    old = SiteKeys.load(vault.directory.parent, vault, lambda: NOW)
    assert old.bmc_ca is None
    assert old.agent_ca.certificate_pem == made.agent_ca.certificate_pem
    completed = create(vault)
    assert completed.bmc_ca is not None
    assert completed.evidence.key_id == made.evidence.key_id


def test_a_public_file_that_was_changed_is_an_error_and_a_missing_one_is_written_again(vault: EmbeddedVault) -> None:
    create(vault)
    file = vault.directory.parent / "keys/db.pem"
    good = file.read_bytes()
    file.write_bytes(b"another certificate")
    with pytest.raises(SiteKeysError, match=r"db\.pem is not the public half"):
        create(vault)
    assert file.read_bytes() == b"another certificate"
    file.unlink()
    create(vault)
    assert file.read_bytes() == good


@pytest.mark.parametrize(("site", "addresses"), [("other", ADDRESSES), ("lab", ["172.30.1.3"])])
def test_keys_of_another_site_or_address_are_not_replaced(
    vault: EmbeddedVault, site: str, addresses: list[str]
) -> None:
    create(vault)
    with pytest.raises(SiteKeysError, match=r"holds the keys of site 'lab' at 172\.30\.1\.2"):
        SiteKeys.create(vault.directory.parent, vault, site, addresses, bmc_networks=OOB)


@pytest.mark.parametrize("addresses", [[], ["controller.example"], ["172.30.1.300"], ["10.0.0.0/8"]])
def test_a_malformed_address_is_refused_before_anything_is_made(vault: EmbeddedVault, addresses: list[str]) -> None:
    with pytest.raises(pki.CertificateError, match="address"):
        SiteKeys.create(vault.directory.parent, vault, "lab", addresses, bmc_networks=OOB)
    assert vault.paths() == []


def test_the_controllers_certificate_is_renewed_in_its_last_third(vault: EmbeddedVault) -> None:
    made = create(vault)
    same = SiteKeys.load(vault.directory.parent, vault, lambda: NOW + timedelta(days=58))
    assert same.controller_tls.certificate_pem == made.controller_tls.certificate_pem
    renewed = SiteKeys.load(vault.directory.parent, vault, lambda: NOW + timedelta(days=62))
    assert renewed.controller_tls.certificate.serial_number != made.controller_tls.certificate.serial_number
    assert renewed.agent_ca.certificate_pem == made.agent_ca.certificate_pem
    renewed.controller_tls.certificate.verify_directly_issued_by(made.agent_ca.certificate)


def test_the_agent_ca_issues_for_its_addresses_only() -> None:
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca = pki.agent_ca(ca_key, "lab", pki.addresses(ADDRESSES), NOW)
    with pytest.raises(pki.CertificateError, match=r"may not speak for 10\.0\.0\.1"):
        pki.controller_certificate(key, ca, ca_key, "lab", pki.addresses(["10.0.0.1"]), NOW)
    one, two = (pki.controller_certificate(key, ca, ca_key, "lab", pki.addresses(ADDRESSES), NOW) for _ in range(2))
    assert one.serial_number != two.serial_number
    assert one.serial_number.bit_length() > 64
    assert pki.served_addresses(one) == tuple(map(ipaddress.ip_address, ADDRESSES))
    assert one.not_valid_before_utc < NOW - timedelta(hours=14)
    with pytest.raises(pki.CertificateError, match="too long"):
        pki.agent_ca(ca_key, "x" * 64, pki.addresses(ADDRESSES), NOW)


def handshake(server_key: bytes, server_certificate: bytes, ca: bytes, name: str, folder: Path) -> None:
    """A TLS handshake on loopback with the agent's settings; raises ssl.SSLError on the client's side."""
    (folder / "server.pem").write_bytes(server_key + server_certificate)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.pem")
    client = ssl.create_default_context(cadata=ca.decode())
    client.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client.wrap_socket(ours, server_hostname=name).close()
    finally:
        ours.close()
        thread.join()


def test_an_agent_accepts_the_controller_at_its_addresses_only(tmp_path: Path) -> None:
    vault = EmbeddedVault.create(tmp_path / "vault", FileKek.create(tmp_path / "vault.key"))
    keys = create(vault, pki.utc_now())
    server = keys.controller_tls
    handshake(server.private_pem, server.certificate_pem, keys.agent_ca.certificate_pem, "172.30.1.2", tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
        handshake(server.private_pem, server.certificate_pem, keys.agent_ca.certificate_pem, "172.30.1.3", tmp_path)
    other = pki.agent_ca(ec.generate_private_key(ec.SECP256R1()), "lab", pki.addresses(ADDRESSES), pki.utc_now())
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server.private_pem, server.certificate_pem, pki.pem(other), "172.30.1.2", tmp_path)


def test_an_agent_accepts_a_controller_whose_ca_a_root_certified(tmp_path: Path) -> None:
    vault = EmbeddedVault.create(tmp_path / "vault", FileKek.create(tmp_path / "vault.key"))
    now, root_key = pki.utc_now(), ec.generate_private_key(ec.SECP384R1())
    before, root = create(vault, now), pki.root_ca(root_key, "lab", now)
    zone = pki.networks(ADDRESSES)
    request = x509.load_pem_x509_csr(authorities.request(vault, "agent", zone))
    issued = pki.issue_authority(request, root, root_key, now)
    authorities.install(tmp_path, vault, "agent", pki.pem(issued), pki.pem(root), now)
    after = SiteKeys.load(tmp_path, vault, lambda: now)
    server = after.controller_tls
    for ca in (before.agent_ca, after.agent_ca):  # an agent that was built before the ceremony, and one built after it
        handshake(server.private_pem, server.certificate_pem, ca.certificate_pem, "172.30.1.2", tmp_path)
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(server.private_pem, server.certificate_pem, ca.certificate_pem, "172.30.1.3", tmp_path)


@pytest.mark.parametrize("name", [x509.IPAddress(ipaddress.ip_address("10.9.9.9")), x509.DNSName("bmc.example")])
def test_a_stolen_agent_ca_cannot_speak_for_anyone_else(tmp_path: Path, name: x509.GeneralName) -> None:
    from cryptography.hazmat.primitives import hashes, serialization

    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    now = pki.utc_now()
    ca = pki.agent_ca(ca_key, "lab", pki.addresses(ADDRESSES), now)
    forged = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "forged")]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([name]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(ssl.SSLCertVerificationError, match=r"permitted subtree|excluded subtree"):
        handshake(private, pki.pem(forged), pki.pem(ca), str(name.value), tmp_path)


@pytest.mark.host
def test_openssl_accepts_the_chain(tmp_path: Path) -> None:
    vault = EmbeddedVault.create(tmp_path / "vault", FileKek.create(tmp_path / "vault.key"))
    keys = create(vault, pki.utc_now())
    (tmp_path / "leaf.pem").write_bytes(keys.controller_tls.certificate_pem)
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", "keys/agent-ca.pem"]
    for address, code in (("172.30.1.2", 0), ("172.30.1.9", 2)):
        done = subprocess.run([*command, "-verify_ip", address, "leaf.pem"], cwd=tmp_path, check=False, text=True,
                              capture_output=True)  # fmt: skip
        assert done.returncode == code, done.stderr
