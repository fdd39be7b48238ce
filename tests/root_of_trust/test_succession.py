"""A site key's successor: what it takes over, what ends at once, and that a crash anywhere leaves a site that opens."""

import shutil
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from pki_support import KEY, NOW, OOB, ROOT_KEY, a_root, forged, refused

from freehold.agent.errors import AgentError
from freehold.agent.manifest import verify_envelope
from freehold.evidence import dsse
from freehold.provisioning.images.manifest import PAYLOAD_TYPE, BootValues, Content, image_manifest
from freehold.root_of_trust import authorities, pki, succession
from freehold.root_of_trust.kek import FileKek
from freehold.root_of_trust.keys import SiteKeys, stored_key
from freehold.root_of_trust.succession import ReplacementRefused
from freehold.root_of_trust.vault import EmbeddedVault, Vault

sys.path.insert(0, str(Path(__file__).parents[1] / "evidence"))
from crash_points import run_until_crash

BOOT = BootValues(True, ("a" * 64,), "b" * 64, "c" * 64, "d" * 64, "e" * 64)
NAMES = ("agent-ca", "bmc-ca", "image")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = tmp_path_factory.mktemp("founded")
    vault = EmbeddedVault.create(state / "vault", FileKek.create(state / "vault.key"))
    SiteKeys.create(state, vault, "lab", ["172.30.1.2"], lambda: NOW, bmc_networks=["172.30.1.0/24"])
    return state


@pytest.fixture
def vault(made: Path, tmp_path: Path) -> EmbeddedVault:
    shutil.copytree(made, tmp_path / "state")
    return EmbeddedVault.open(tmp_path / "state/vault", FileKek.open(tmp_path / "state/vault.key"))


def keys(vault: EmbeddedVault) -> SiteKeys:
    return SiteKeys.load(vault.directory.parent, vault, lambda: NOW)


def replace(vault: EmbeddedVault, name: str, reason: str = "stolen") -> None:
    generation, replaces = succession.next_generation(vault, name)
    succession.replace(vault.directory.parent, vault, name, generation, replaces, reason, NOW)


def install_root(vault: EmbeddedVault) -> bytes:
    """The BMC CA under a root, as a first ceremony leaves it; the root's certificate."""
    root = pki.pem(a_root())
    request = x509.load_pem_x509_csr(authorities.request(vault, "bmc", OOB))
    issued = pki.issue_authority(request, x509.load_pem_x509_certificate(root), ROOT_KEY, NOW)
    authorities.install(vault.directory.parent, vault, "bmc", pki.pem(issued), root, NOW)
    return root


def next_under(vault: EmbeddedVault, root: bytes, *revoked: int) -> tuple[bytes, bytes]:
    """What a second ceremony brings back: the next BMC CA, and the root's list."""
    certificate = x509.load_pem_x509_certificate(root)
    request = x509.load_pem_x509_csr(succession.stage(vault, "bmc-ca", OOB, "stolen", NOW))
    issued = pki.issue_authority(request, certificate, ROOT_KEY, NOW)
    return pki.pem(issued), pki.pem(pki.revocation_list(certificate, ROOT_KEY, None, revoked, NOW))


def private_keys(vault: Vault) -> set[str]:
    paths = [each for each in vault.paths("site/keys") if each.rpartition("/")[2].startswith((*NAMES,))]
    return {(vault.get(path) or b"").decode() for path in paths}


def test_a_replaced_bmc_ca_has_another_name_and_key_and_the_old_key_is_gone(vault: EmbeddedVault) -> None:
    before, old = keys(vault).bmc_ca, stored_key(vault, "bmc-ca")
    replace(vault, "bmc-ca")
    after = keys(vault).bmc_ca
    assert before is not None
    assert after is not None
    assert after.certificate.subject.rfc4514_string() == "CN=lab BMC CA 2"
    assert pki.zone(after.certificate) == pki.zone(before.certificate)
    assert (vault.directory.parent / "keys/bmc-ca.pem").read_bytes() == after.certificate_pem
    assert not any(old.private_key in record for record in private_keys(vault))
    leaf = authorities.issue_bmc_certificate(vault, KEY.public_key(), "172.30.1.11", NOW)
    assert refused(after.certificate, leaf, "172.30.1.11") == ""
    assert refused(before.certificate, leaf, "172.30.1.11")
    by_thief = forged([x509.IPAddress(OOB[0][11])], before.certificate, before.private_key)
    assert refused(before.certificate, by_thief, "172.30.1.11") == ""
    assert refused(after.certificate, by_thief, "172.30.1.11")


def test_what_the_old_bmc_ca_revoked_stays_revoked_and_more_can_be(vault: EmbeddedVault) -> None:
    authorities.revoke(vault, [77], NOW)
    replace(vault, "bmc-ca")
    assert authorities.revoked(vault) == {77: NOW}
    replace(vault, "bmc-ca", "again")
    ca = authorities.bmc_ca(vault)
    crl = x509.load_pem_x509_crl(authorities.bmc_revocation_list(vault, NOW + timedelta(days=1)))
    assert pki.revoked_serials(crl, ca.certificate) == {77: NOW}
    authorities.revoke(vault, [78], NOW)
    assert set(authorities.revoked(vault)) == {77, 78}


def test_agents_of_before_know_the_controller_by_the_former_ca_until_that_is_finished(vault: EmbeddedVault) -> None:
    before = keys(vault)
    replace(vault, "agent-ca")
    after = keys(vault)
    assert (after.agent_ca.generation, after.agent_trust) == (2, (2, 1))
    assert refused(after.agent_ca.certificate, after.controller_tls.certificate, "172.30.1.2") == ""
    assert refused(before.agent_ca.certificate, after.controller_tls.certificate, "172.30.1.2")
    (former,) = after.former_tls
    assert former.generation == 1
    assert refused(before.agent_ca.certificate, former.certificate, "172.30.1.2") == ""
    then = NOW + timedelta(days=80)
    later = SiteKeys.load(vault.directory.parent, vault, lambda: then)
    assert later.former_tls[0].certificate != former.certificate
    assert refused(before.agent_ca.certificate, later.former_tls[0].certificate, "172.30.1.2", then) == ""
    old = stored_key(vault, "agent-ca-1")
    assert succession.finish(vault) == (1,)
    assert keys(vault).former_tls == ()
    assert not any(old.private_key in record for record in private_keys(vault))
    assert succession.finish(vault) == ()


@pytest.mark.slow
def test_an_end_of_the_former_agent_ca_that_is_cut_off_leaves_a_site_that_opens(
    vault: EmbeddedVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    for dies_at in range(100):
        replace(vault, "agent-ca", f"round {dies_at}")
        died = run_until_crash(monkeypatch, dies_at, lambda: succession.finish(vault))
        keys(vault)
        succession.finish(vault)
        assert [path for path in vault.paths("site/keys") if path.rpartition("-")[2].isdigit()] == []
        if not died:
            break
    assert 2 < dies_at < 99


def test_a_replaced_image_key_signs_and_the_old_one_is_gone(vault: EmbeddedVault) -> None:
    before, old = keys(vault), stored_key(vault, "image")
    replace(vault, "image")
    after = keys(vault)
    assert after.image.key_id != before.image.key_id
    assert after.agent_trust == (1, 2)
    assert (vault.directory.parent / "keys/image.pub").read_bytes() == after.image.public_key_pem
    assert not any(old.private_key in record for record in private_keys(vault))
    public = str(vault.directory.parent / "keys/image.pub")  # what an agent that is built now has
    payload = image_manifest("debian-12", "1", Content(4096, "aa" * 32, ("zero",)), BOOT).payload()
    for key, taken in ((before.image, False), (after.image, True)):
        envelope = dsse.sign(payload, PAYLOAD_TYPE, key).to_dict()
        if taken:
            assert verify_envelope(envelope, public)[1] == payload
        else:
            with pytest.raises(AgentError, match="no signature of this site's image key"):
                verify_envelope(envelope, public)


@pytest.mark.parametrize("name", NAMES)
def test_repeating_a_replacement_changes_nothing_and_an_older_one_is_refused(vault: EmbeddedVault, name: str) -> None:
    state, asked = vault.directory.parent, succession.next_generation(vault, name)
    first = succession.replace(state, vault, name, *asked, "stolen", NOW)
    assert succession.replace(state, vault, name, *asked, "stolen", NOW) == first
    replace(vault, name, "again")
    with pytest.raises(ReplacementRefused, match="is generation 3") as no:
        succession.replace(state, vault, name, *asked, "stolen", NOW)
    assert "ask anew" in str(no.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_cut_off_anywhere_it_leaves_a_site_that_opens_and_is_completed_by_repeating_it(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for dies_at in range(300):
        state = tmp_path / f"{dies_at}"
        shutil.copytree(made, state)
        vault = EmbeddedVault.open(state / "vault", FileKek.open(state / "vault.key"))
        asked = succession.next_generation(vault, name)

        def work(vault: EmbeddedVault = vault, asked: tuple[int, str] = asked) -> None:
            succession.replace(vault.directory.parent, vault, name, *asked, "stolen", NOW)

        died = run_until_crash(monkeypatch, dies_at, work)
        found = keys(vault)
        assert refused(found.agent_ca.certificate, found.controller_tls.certificate, "172.30.1.2") == ""
        work()
        again = keys(vault)
        assert stored_key(vault, name).generation == 2
        assert refused(again.agent_ca.certificate, again.controller_tls.certificate, "172.30.1.2") == ""
        assert len(again.former_tls) == (name == "agent-ca")
        shutil.rmtree(state)
        if not died:
            break
    assert 10 < dies_at < 299


def test_a_root_certifies_the_next_key_and_revokes_the_ca_that_goes(vault: EmbeddedVault) -> None:
    state, root = vault.directory.parent, install_root(vault)
    old = authorities.bmc_ca(vault)
    issued, empty = next_under(vault, root, 1)
    for crl in (None, empty):
        with pytest.raises(pki.CertificateError, match=f"does not revoke {old.certificate.serial_number:x}") as no:
            authorities.install(state, vault, "bmc", issued, root, NOW, crl)
        assert "freehold pki ceremony revoke root" in str(no.value)
    assert authorities.bmc_ca(vault).generation == 1
    issued, crl = next_under(vault, root, old.certificate.serial_number)
    authorities.install(state, vault, "bmc", issued, root, NOW, crl)
    assert authorities.bmc_ca(vault).certificate_pem == issued
    assert succession.staged(vault, "bmc-ca") is None
    assert (state / "keys/root.crl").read_bytes() == keys(vault).root_crl == crl
    said = [(each["event"], each.get("purpose", each.get("issuer"))) for each in authorities.unrecorded(vault)]
    assert ("replaced", "BMC CA") in said
    assert ("revoked", "root") in said
    forgetful = pki.pem(pki.revocation_list(x509.load_pem_x509_certificate(root), ROOT_KEY, None, [1], NOW))
    with pytest.raises(pki.CertificateError, match="does not revoke"):
        authorities.install(state, vault, "bmc", issued, root, NOW, forgetful)


def test_a_certificate_for_an_earlier_request_is_void(vault: EmbeddedVault) -> None:
    root = install_root(vault)
    serial = authorities.bmc_ca(vault).certificate.serial_number
    first, crl = next_under(vault, root, serial)
    next_under(vault, root, serial)
    with pytest.raises(pki.CertificateError, match="or of another key"):
        authorities.install(vault.directory.parent, vault, "bmc", first, root, NOW, crl)


def test_one_person_cannot_bring_a_root_of_their_own_for_another_key(vault: EmbeddedVault) -> None:
    root = pki.pem(a_root())
    issued, crl = next_under(vault, root)
    with pytest.raises(pki.CertificateError, match="the site has no root") as no:
        authorities.install(vault.directory.parent, vault, "bmc", issued, root, NOW, crl)
    assert "two operators approve it" in str(no.value)
    assert authorities.bmc_ca(vault).generation == 1


@pytest.mark.slow
def test_an_installation_of_the_next_key_that_is_cut_off_is_completed_by_repeating_it(
    vault: EmbeddedVault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = install_root(vault)
    issued, crl = next_under(vault, root, authorities.bmc_ca(vault).certificate.serial_number)
    for dies_at in range(300):
        shutil.copytree(vault.directory.parent, tmp_path / "copy")
        state = tmp_path / "copy"
        copy = EmbeddedVault.open(state / "vault", FileKek.open(state / "vault.key"))

        def work(copy: EmbeddedVault = copy) -> None:
            authorities.install(copy.directory.parent, copy, "bmc", issued, root, NOW, crl)

        died = run_until_crash(monkeypatch, dies_at, work)
        keys(copy)
        work()
        assert authorities.bmc_ca(copy).certificate_pem == issued
        assert succession.staged(copy, "bmc-ca") is None
        shutil.rmtree(state)
        if not died:
            break
    assert 10 < dies_at < 299
