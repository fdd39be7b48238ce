"""`freehold pki replace` and `freehold image replace-key`, as people type them."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import Answer, Shell
from cryptography import x509

from freehold.evidence import Predicate
from freehold.model.status import Facts, ImageFact, ServerState, ServerStatus
from freehold.orchestration.opening import open_vault
from freehold.root_of_trust import ceremony, pki
from freehold.root_of_trust.keys import SiteKeys, stored_key

PEOPLE = ("ann", "bob")
CUSTODIANS = ("alice", "bob", "carol")


@pytest.fixture
def founded(site: Shell, tmp_path: Path) -> Shell:
    """A site with its keys and two operators."""
    addresses = ["172.30.2.2", "172.30.1.2"]
    SiteKeys.create(site.state, open_vault(site.state), "lab", addresses, bmc_networks=["172.30.1.0/24"])
    for name in PEOPLE:
        assert site("operator", "keygen", tmp_path / f"{name}.key", "--no-passphrase").code == 0
    assert site("operator", "found", *(f"{name}={tmp_path / name}.key.pub" for name in PEOPLE)).code == 0
    return site


@pytest.fixture
def sign(founded: Shell, tmp_path: Path) -> Callable[[str], None]:
    def both(request: str) -> None:
        for name in PEOPLE:
            assert founded("approval", "sign", request, "--key", tmp_path / f"{name}.key").code == 0

    return both


def generation(site: Shell, name: str) -> int:
    return stored_key(open_vault(site.state), name).generation


@pytest.mark.parametrize(
    ("words", "name", "then"),
    [
        (("pki", "replace", "bmc"), "bmc-ca", "every BMC gets a certificate of the new CA now"),
        (("pki", "replace", "agent"), "agent-ca", "restart `freehold serve` now: it ends every session"),
        (("image", "replace-key"), "image", "restart `freehold serve` now: it signs the images anew"),
    ],
)
@pytest.mark.slow
def test_two_operators_replace_a_key(
    founded: Shell, sign: Callable[[str], None], words: tuple[str, ...], name: str, then: str
) -> None:
    asked = founded(*words, "--reason", "it was stolen")
    assert asked.code == 0, asked
    request = asked.out.partition(":")[0]
    assert f"then: freehold {' '.join(words)} --approved {request}" in asked.out
    early = founded(*words, "--approved", request)
    assert (early.code, generation(founded, name)) == (1, 1)
    sign(request)
    done = founded(*words, "--approved", request, "-o", "json")
    assert done.code == 0, done
    assert done.json()["generation"] == generation(founded, name) == 2
    again = founded(*words, "--reason", "yearly", "-o", "json").json()
    assert (again["generation"], again["replaces"]) == (3, done.json()["spki_sha256"])
    sign(again["request"])
    assert then in founded(*words, "--approved", again["request"]).out
    owed = founded.store(lambda store: store.site.due())
    assert next(each.facts["spki_sha256"] for each in owed if each.subject == f"site-key/{name}") == again["replaces"]
    assert {each.predicate for each in owed} == {Predicate.APPROVAL}


def test_with_a_root_two_custodians_do_it(founded: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rite in (ceremony.make_root, ceremony.reshare):
        monkeypatch.setitem(rite.__kwdefaults__, "cost", 2)
    monkeypatch.chdir(tmp_path)
    words = [word for name in CUSTODIANS for word in ("--passphrase-file", f"{name}={name}.txt")]
    for name in CUSTODIANS:
        Path(f"{name}.txt").write_text(f"the passphrase of {name}\n")
    named = [word for name in CUSTODIANS for word in ("--custodian", name)]
    shares = ("--share", "root/alice.share", "--share", "root/bob.share", *words)

    def fine(*line: object) -> Answer:
        answer = founded(*line)
        assert answer.code == 0, answer
        return answer

    fine("pki", "ceremony", "init", "root", "--site", "lab", *named, *words)
    no = founded("pki", "replace", "bmc", "--reason", "stolen", "--out", "bmc-2.csr")
    assert (no.code, "the site has no root" in no.err) == (1, True)
    fine("pki", "request", "bmc", "--out", "bmc.csr")
    fine("pki", "ceremony", "issue", "root", "bmc.csr", *shares, "--out", "bmc.pem")
    fine("pki", "install", "bmc", "bmc.pem", "--root", "root/root.pem")
    no = founded("pki", "replace", "bmc", "--reason", "stolen")
    assert (no.code, "two custodians decide" in no.err) == (1, True)

    asked = fine("pki", "replace", "bmc", "--reason", "stolen", "--out", "bmc-2.csr")
    (serial,) = re.findall("ceremony revoke root ([0-9a-f]+)", asked.out)
    fine("pki", "ceremony", "issue", "root", "bmc-2.csr", *shares, "--out", "bmc-2.pem")
    alone = founded("pki", "ceremony", "revoke", "root", serial, "--share", "root/alice.share", *words)
    assert (alone.code, Path("root/root.crl").exists()) == (1, False)
    assert fine("pki", "ceremony", "revoke", "root", serial, *shares, "-o", "json").json()["revoked"] == [serial]
    no = founded("pki", "install", "bmc", "bmc-2.pem", "--root", "root/root.pem")
    assert (no.code, f"does not revoke {serial}" in no.err) == (1, True)
    assert generation(founded, "bmc-ca") == 1
    fine("pki", "install", "bmc", "bmc-2.pem", "--root", "root/root.pem", "--crl", "root/root.crl")
    assert generation(founded, "bmc-ca") == 2
    new = x509.load_pem_x509_certificate((founded.state / "keys/bmc-ca.pem").read_bytes())
    root = x509.load_pem_x509_certificate(Path("root/root.pem").read_bytes())
    pki.require_authority(new, root, pki.utc_now())
    assert (founded.state / "keys/root.crl").read_bytes() == Path("root/root.crl").read_bytes()
    fine("pki", "ceremony", "reshare", "root", "root-2", *shares, *named)
    assert Path("root-2/root.crl").read_bytes() == Path("root/root.crl").read_bytes()


def test_the_former_agent_ca_ends_when_no_installed_os_knows_it(founded: Shell, sign: Callable[[str], None]) -> None:
    request = founded("pki", "replace", "agent", "--reason", "stolen", "-o", "json").json()["request"]
    sign(request)
    founded("pki", "replace", "agent", "--approved", request)

    def runs(agent_ca: int, state: ServerState = ServerState.ACTIVE) -> None:
        image = ImageFact(name="debian", version="12", manifest="ab" * 32, agent_ca=agent_ca)
        founded.set_status("server-1", ServerStatus(state=state, facts=Facts(image=image)))

    runs(1)
    no = founded("pki", "replace", "agent", "--finish")
    assert (no.code, "the OS of 1 servers knows the controller by a former agent CA only: server-1" in no.err) == (
        1,
        True,
    )
    runs(1, ServerState.RETIRED)
    assert founded("pki", "replace", "agent", "--finish", "-o", "json").json() == {"destroyed": [1]}
    runs(2)
    assert founded("pki", "replace", "agent", "--finish").out == "there is no former agent CA\n"


@pytest.mark.parametrize(
    "words",
    [
        ("pki", "replace", "bmc"),
        ("pki", "replace", "bmc", "--reason", "r", "--approved", "x"),
        ("pki", "replace", "bmc", "--approved", "x", "--out", "f"),
        ("pki", "replace", "bmc", "--finish"),
        ("image", "replace-key"),
        ("image", "replace-key", "--reason", "r", "--approved", "x"),
        ("pki", "ceremony", "revoke", ".", "zz", "--share", "."),
    ],
)
@pytest.mark.slow
def test_what_makes_no_sense_is_wrong_usage(founded: Shell, words: tuple[str, ...]) -> None:
    assert founded(*words).code == 2
