"""`freehold pki`, from the ceremony to the revocation, as people type it."""

from datetime import timedelta
from pathlib import Path

import pytest
from cli_support import Answer, Shell
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from freehold.evidence import Predicate, Statement, Subject, dsse
from freehold.orchestration.issuance import record_certificates
from freehold.orchestration.opening import open_log, open_vault
from freehold.root_of_trust import authorities, ceremony, custodians, pki
from freehold.root_of_trust.keys import SiteKeys

PEOPLE = ("alice", "bob", "carol")


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ceremony that takes no half a second for each passphrase."""
    for rite in (ceremony.make_root, ceremony.reshare):
        monkeypatch.setitem(rite.__kwdefaults__, "cost", 2)


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """`--passphrase-file` for each of the custodians."""
    options = []
    for name in PEOPLE:
        (tmp_path / f"{name}.txt").write_text(f"the passphrase of {name}\n")
        options += ["--passphrase-file", f"{name}={tmp_path / name}.txt"]
    return options


@pytest.fixture
def root(site: Shell, tmp_path: Path, words: list[str]) -> Path:
    custodians = [word for name in PEOPLE for word in ("--custodian", name)]
    made = site("pki", "ceremony", "init", tmp_path / "root", "--site", "lab", *custodians, *words)
    assert made.code == 0, made
    certificate = x509.load_pem_x509_certificate((tmp_path / "root/root.pem").read_bytes())
    assert f"SHA-256 {pki.sha256(certificate)}" in made.out
    assert "alice takes" in made.out
    return tmp_path / "root"


def issue(site: Shell, root: Path, request: Path, out: Path, words: list[str], *who: str) -> Answer:
    shares = [word for name in who for word in ("--share", root / f"{name}.share")]
    return site("pki", "ceremony", "issue", root, request, *shares, "--out", out, *words)


def test_a_ceremony_from_the_request_to_the_installation(
    site: Shell, root: Path, tmp_path: Path, words: list[str]
) -> None:
    certificate = x509.load_pem_x509_certificate((root / "root.pem").read_bytes())
    for role, zone in (("bmc", "172.30.1.0/24"), ("agent", "172.30.2.2/32")):
        asked = site("pki", "request", role, "--out", tmp_path / f"{role}.csr")
        assert asked.code == 0, asked
        assert f"asks to speak for {zone}" in asked.out
        issued = issue(site, root, tmp_path / f"{role}.csr", tmp_path / f"{role}.pem", words, "alice", "carol")
        assert issued.code == 0, issued
        assert "for no DNS name, and make no other CA" in issued.err
        done = site("pki", "install", role, tmp_path / f"{role}.pem", "--root", root / "root.pem")
        assert done.code == 0, done
        assert f"root SHA-256 {pki.sha256(certificate)}" in done.out
    keys = SiteKeys.load(site.state, open_vault(site.state))
    assert keys.bmc_ca is not None
    for ca in (keys.bmc_ca, keys.agent_ca):
        assert not pki.is_self_signed(ca.certificate)
    assert keys.root == (root / "root.pem").read_bytes()


def test_one_custodian_alone_issues_nothing(site: Shell, root: Path, tmp_path: Path, words: list[str]) -> None:
    site("pki", "request", "bmc", "--out", tmp_path / "bmc.csr")
    for who in (("alice",), ("alice", "alice")):
        refused = issue(site, root, tmp_path / "bmc.csr", tmp_path / "bmc.pem", words, *who)
        assert refused.code == 1
        assert "the shares are of alice" in refused.err
    (tmp_path / "bob.txt").write_text("not the passphrase of bob")
    refused = issue(site, root, tmp_path / "bmc.csr", tmp_path / "bmc.pem", words, "alice", "bob")
    assert "the passphrase of bob is wrong" in refused.err
    assert not (tmp_path / "bmc.pem").exists()


def test_a_custodian_leaves(site: Shell, root: Path, tmp_path: Path, words: list[str]) -> None:
    shares = ["--share", root / "alice.share", "--share", root / "bob.share"]
    (tmp_path / "dave.txt").write_text("the passphrase of dave")
    people = ["--custodian", "alice", "--custodian", "bob", "--custodian", "dave"]
    words += ["--passphrase-file", f"dave={tmp_path / 'dave.txt'}"]
    done = site("pki", "ceremony", "reshare", root, tmp_path / "root-2", *shares, *people, *words)
    assert done.code == 0, done
    assert "dave takes" in done.out
    site("pki", "request", "bmc", "--out", tmp_path / "bmc.csr")
    again = issue(site, tmp_path / "root-2", tmp_path / "bmc.csr", tmp_path / "bmc.pem", words, "bob", "dave")
    assert again.code == 0, again


def test_what_is_no_request_is_not_signed(site: Shell, root: Path, tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "junk").write_text("junk")
    refused = issue(site, root, tmp_path / "junk", tmp_path / "out.pem", words, "alice", "bob")
    assert (refused.code, "is not a certificate request" in refused.err) == (1, True)
    junk = site("pki", "install", "bmc", tmp_path / "junk", "--root", root / "root.pem")
    assert (junk.code, "there is no vault" in junk.err) == (1, True)
    site("pki", "request", "bmc", "--out", tmp_path / "bmc.csr")
    junk = site("pki", "install", "bmc", tmp_path / "junk", "--root", root / "root.pem")
    assert (junk.code, "this is not a certificate" in junk.err) == (1, True)


@pytest.fixture
async def issued(site: Shell) -> str:
    """A site with a log, in which server-1's BMC has a certificate; its serial number."""
    vault = open_vault(site.state)
    keys = SiteKeys.create(site.state, vault, "lab", ["172.30.2.2"], bmc_networks=["172.30.1.0/24"])
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    leaf = authorities.issue_bmc_certificate(vault, key, "172.30.1.11", pki.utc_now())
    with open_log(site.state, "lab", keys) as log:
        await record_certificates(vault, log)
        size = log.size
        await record_certificates(vault, log)
        assert log.size == size == 3
        facts = {"server": "server-1", **pki.claim(leaf, "BMC")}
        log.append(Statement.claim(Predicate.CERTIFICATE, [Subject.of_name("server/server-1")], facts))
    return f"{leaf.serial_number:x}"


def test_the_list_shows_of_agents_only_what_has_not_ended(site: Shell, issued: str) -> None:
    keys = SiteKeys.load(site.state, open_vault(site.state))
    ca, key, now = keys.agent_ca, ec.generate_private_key(ec.SECP256R1()).public_key(), pki.utc_now()
    with open_log(site.state, "lab", keys) as log:
        for session, at in (("old", now - timedelta(days=2)), ("new", now)):
            lifetime = timedelta(hours=24)
            leaf = pki.agent_certificate(key, ca.certificate, ca.private_key, "server-1", session, at, lifetime)
            facts = {"server": "server-1", **pki.claim(leaf, "agent", session=session)}
            log.append(Statement.claim(Predicate.CERTIFICATE, [Subject.of_name("server/server-1")], facts))
    items = site("pki", "list", "-o", "json").json()["items"]
    assert [each["session"] for each in items if each["purpose"] == "agent"] == ["new"]


def test_list_and_revoke(site: Shell, issued: str, tmp_path: Path) -> None:
    items = site("pki", "list", "-o", "json").json()["items"]
    assert [(each["purpose"], each.get("root"), each["state"]) for each in items] == [
        ("agent CA", "none", "valid"),
        ("BMC CA", "none", "valid"),
        ("controller", None, "valid"),
        ("BMC", None, "valid"),
    ]
    unknown = site("pki", "revoke", "abc")
    assert (unknown.code, "has issued no certificate abc" in unknown.err) == (1, True)
    done = site("pki", "revoke", issued.upper())
    assert done.out == f"revoked {issued} of server-1; it counts from the next contact on\n"
    assert "revoked" in site("pki", "list").out
    assert site("pki", "crl", "--out", tmp_path / "bmc-ca.crl").out.endswith("1 revoked\n")
    crl = x509.load_pem_x509_crl((tmp_path / "bmc-ca.crl").read_bytes())
    assert crl.get_revoked_certificate_by_serial_number(int(issued, 16)) is not None


async def test_a_revocation_reaches_the_log(site: Shell, issued: str) -> None:
    vault = open_vault(site.state)
    authorities.revoke(vault, [int(issued, 16)], pki.utc_now())
    with open_log(site.state, "lab", SiteKeys.load(site.state, vault)) as log:
        await record_certificates(vault, log)
        last = Statement.from_bytes(dsse.Envelope.from_bytes(log.entry(log.size - 1).envelope).payload)
    assert (last.predicate["event"], last.predicate["serial"]) == ("revoked", issued)
    assert last.subject[0].name == f"certificate/{issued}"


def test_a_passphrase_is_asked_when_no_file_is_given(
    site: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["the passphrase of alice", "the passphrase of bob", "short"])
    monkeypatch.setattr("click.prompt", lambda *_, **__: next(answers))
    words = [word for name in PEOPLE for word in ("--custodian", name)]
    refused = site("pki", "ceremony", "init", tmp_path / "root", "--site", "lab", *words)
    assert refused.code == 1
    assert f"expected: {custodians.SHORTEST_PASSPHRASE} characters or more" in refused.err
    assert not (tmp_path / "root").exists()
