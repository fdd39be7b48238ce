"""The site's issuing CAs over the years: self-signed, certified by a root, revoking; and what the log must hear of."""

import shutil
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from pki_support import KEY, NOW, OOB, ROOT_KEY, a_root, refused

from freehold.root_of_trust import authorities, pki
from freehold.root_of_trust.kek import FileKek
from freehold.root_of_trust.keys import SiteKeys
from freehold.root_of_trust.vault import EmbeddedVault, Vault

sys.path.insert(0, str(Path(__file__).parents[1] / "evidence"))
from crash_points import run_until_crash


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = tmp_path_factory.mktemp("founded")
    vault = EmbeddedVault.create(state / "vault", FileKek.create(state / "vault.key"))
    SiteKeys.create(state, vault, "lab", ["172.30.1.2"], lambda: NOW, bmc_networks=["172.30.1.0/24"])
    return state


@pytest.fixture
def vault(made: Path, tmp_path: Path) -> Vault:
    shutil.copytree(made, tmp_path / "state")
    return EmbeddedVault.open(tmp_path / "state/vault", FileKek.open(tmp_path / "state/vault.key"))


def keys(vault: Vault) -> SiteKeys:
    return SiteKeys.load(vault.directory.parent, vault, lambda: NOW)


def certify(vault: Vault, role: str, zone: list[pki.Network]) -> bytes:
    request = x509.load_pem_x509_csr(authorities.request(vault, role, zone))
    issued = pki.pem(pki.issue_authority(request, a_root(), ROOT_KEY, NOW))
    authorities.install(vault.directory.parent, vault, role, issued, pki.pem(root_of(vault)), NOW)
    return issued


def root_of(vault: Vault) -> x509.Certificate:
    known = keys(vault).root
    return x509.load_pem_x509_certificate(known) if known else a_root()


def controller_zone() -> list[pki.Network]:
    return list(pki.networks(["172.30.1.2/32"]))


def test_a_root_takes_over_both_issuing_cas_and_nothing_that_they_issued_is_lost(vault: Vault) -> None:
    before = keys(vault)
    assert before.bmc_ca is not None
    bmc = authorities.issue_bmc_certificate(vault, KEY.public_key(), "172.30.1.11", NOW)
    root = pki.pem(a_root())
    for role, zone in (("bmc", list(OOB)), ("agent", controller_zone())):
        request = x509.load_pem_x509_csr(authorities.request(vault, role, zone))
        issued = pki.pem(pki.issue_authority(request, x509.load_pem_x509_certificate(root), ROOT_KEY, NOW))
        authorities.install(vault.directory.parent, vault, role, issued, root, NOW)
    after = keys(vault)
    assert after.bmc_ca is not None
    assert after.root == root
    for old, new in ((before.bmc_ca, after.bmc_ca), (before.agent_ca, after.agent_ca)):
        assert new.private_pem == old.private_pem
        assert not pki.is_self_signed(new.certificate)
    assert refused(after.bmc_ca.certificate, bmc, "172.30.1.11") == ""
    assert refused(after.agent_ca.certificate, after.controller_tls.certificate, "172.30.1.2") == ""
    assert refused(before.agent_ca.certificate, after.controller_tls.certificate, "172.30.1.2") == ""
    files = vault.directory.parent / "keys"
    assert (files / "root.pem").read_bytes() == root
    assert (files / "bmc-ca.pem").read_bytes() == after.bmc_ca.certificate_pem


def test_only_our_own_ca_of_our_own_root_is_installed(vault: Vault) -> None:
    state, root = vault.directory.parent, pki.pem(a_root())
    request = x509.load_pem_x509_csr(authorities.request(vault, "bmc", OOB))
    issued = pki.issue_authority(request, a_root(), ROOT_KEY, NOW)
    other_key = pki.authority_request(KEY, request.subject, OOB)
    other_root_key = ec.generate_private_key(ec.SECP384R1())
    other_root = pki.root_ca(other_root_key, "lab", NOW)
    for role, certificate, of, why in (
        ("bmc", pki.issue_authority(other_key, a_root(), ROOT_KEY, NOW), root, "or of another key"),
        ("agent", issued, root, "or of another key"),
        ("bmc", issued, pki.pem(other_root), "is not an issuing CA of"),
    ):
        with pytest.raises(pki.CertificateError, match=why):
            authorities.install(state, vault, role, pki.pem(certificate), of, NOW)
    assert keys(vault).root is None
    authorities.install(state, vault, "bmc", pki.pem(issued), root, NOW)
    again = pki.issue_authority(request, other_root, other_root_key, NOW)
    with pytest.raises(pki.CertificateError, match="the site has another root"):
        authorities.install(state, vault, "bmc", pki.pem(again), pki.pem(other_root), NOW)


def test_an_agent_ca_that_could_not_speak_for_the_controller_is_refused(vault: Vault) -> None:
    with pytest.raises(pki.CertificateError, match=r"the agent CA may not speak for 172\.30\.1\.2"):
        certify(vault, "agent", list(pki.networks(["172.30.9.0/24"])))


def test_an_installation_that_is_cut_off_anywhere_leaves_a_site_that_opens(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    for dies_at in range(200):
        died = run_until_crash(monkeypatch, dies_at, lambda: certify(vault, "bmc", list(OOB)))
        after = keys(vault)
        assert after.bmc_ca is not None
        assert (vault.directory.parent / "keys/bmc-ca.pem").read_bytes() == after.bmc_ca.certificate_pem
        if not died:
            break
    assert 10 < dies_at < 199
    assert not pki.is_self_signed(after.bmc_ca.certificate)


def test_the_list_is_signed_anew_in_time_and_keeps_what_was_revoked(vault: Vault) -> None:
    first = authorities.bmc_revocation_list(vault, NOW)
    assert authorities.bmc_revocation_list(vault, NOW + timedelta(days=14)) == first
    authorities.revoke(vault, [77], NOW + timedelta(days=14))
    later = authorities.bmc_revocation_list(vault, NOW + timedelta(days=60))
    crl = x509.load_pem_x509_crl(later)
    assert crl.next_update_utc == NOW + timedelta(days=90)
    assert list(authorities.revoked(vault)) == [77]


def test_what_the_log_lacks_is_said_once(vault: Vault) -> None:
    def said() -> list[tuple[str, str]]:
        found = authorities.unrecorded(vault)
        for claim in found:
            authorities.mark_recorded(vault, claim)
        return [(claim["event"], claim.get("purpose", claim["serial"])) for claim in found]

    assert authorities.unrecorded(vault)[1]["root"] == "none"
    assert said() == [("issued", "agent CA"), ("issued", "BMC CA"), ("issued", "controller")]
    assert said() == []
    authorities.revoke(vault, [255], NOW)
    certify(vault, "bmc", list(OOB))
    found = authorities.unrecorded(vault)
    assert found[1]["root"] == pki.sha256(root_of(vault))
    assert found[1]["zone"] == ["172.30.1.0/24"]
    assert said() == [("issued", "root"), ("issued", "BMC CA"), ("revoked", "ff")]
    assert said() == []
