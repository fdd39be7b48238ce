"""`freehold secureboot`: generations as people make them, and what is refused to them."""

import os
import sys
from pathlib import Path

import pytest
from cli_support import Shell
from cryptography import x509

from freehold.model.status import Facts, ServerState, ServerStatus
from freehold.orchestration.opening import open_vault
from freehold.provisioning.images import enrolment, uki
from freehold.root_of_trust.keys import SiteKeys

sys.path.append(str(Path(__file__).parents[1] / "root_of_trust"))
from secure_boot_support import LOADER
from softhsm_support import MODULE, PIN, SoftHsm

from freehold.root_of_trust.attestation.pe import authenticode

WHY = ("--reason", "a test")
DIGEST = "ab" * 32


@pytest.fixture
def keyed(site: Shell) -> Shell:
    """A site that has its keys."""
    vault = open_vault(site.state)
    SiteKeys.create(site.state, vault, "lab", ["172.30.2.2"], bmc_networks=["172.30.1.0/24"])
    return site


def enrolled(shell: Shell, name: str, generation: int | None, state: ServerState = ServerState.ACTIVE) -> None:
    facts = Facts(secure_boot_enrolled=True, secure_boot_generation=generation)
    shell.set_status(name, ServerStatus(state=state, facts=facts))


def test_a_site_without_keys_says_so_and_gets_none_by_being_looked_at(site: Shell) -> None:
    assert "there is no vault" in site("secureboot", "list").err
    assert not (site.state / "vault").exists()


def test_the_list_tells_who_carries_what(keyed: Shell) -> None:
    assert keyed("secureboot", "revoke", DIGEST, "--reason", "CVE-2026-1").code == 0
    enrolled(keyed, "server-1", None)
    enrolled(keyed, "server-2", 2)
    lines = keyed("secureboot", "list").out.splitlines()
    assert lines[0].split() == ["GENERATION", "SINCE", "KEYS", "REVOKED", "SERVERS", "REASON"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2"]
    assert lines[2].endswith("1         1         CVE-2026-1")
    items = keyed("secureboot", "list", "-o", "json").json()["items"]
    assert [(each["number"], each["dbx"], each["servers"]) for each in items] == [(1, [], 1), (2, [DIGEST], 1)]
    enrolled(keyed, "server-2", 2, ServerState.RETIRED)
    assert keyed("secureboot", "list", "-o", "json").json()["items"][1]["servers"] == 0


@pytest.mark.host
@pytest.mark.parametrize("urgent", [False, True])
def test_an_image_is_revoked_by_its_file_and_the_build_is_named(keyed: Shell, urgent: bool) -> None:
    build = keyed.state / "images" / "0123abcd"
    build.mkdir(parents=True)
    (build / "agent.efi").write_bytes(LOADER.read_bytes())
    digest = authenticode(LOADER.read_bytes()).hex()
    (build / "content.json").write_text("{}")
    refused = keyed("secureboot", "revoke", LOADER, *WHY)
    assert (refused.code, "what this site boots now: the agent of build 0123abcd" in refused.err) == (1, True)
    if not urgent:
        newer = keyed.state / "images" / "4567cdef"
        newer.mkdir()
        (newer / "content.json").write_text("{}")
        os.utime(build / "content.json", (1.0, 1.0))
    flags = ("--although-in-use",) if urgent else ()
    answer = keyed("secureboot", "revoke", LOADER, *flags, *WHY)
    assert answer.code == 0, answer
    assert answer.out.startswith(f"revoked {digest} in generation 2; available servers get it within a minute")
    assert "it is the agent of build 0123abcd of this site" in answer.out
    again = keyed("secureboot", "revoke", digest.upper(), *flags, *WHY)
    assert (again.code, f"{digest} is in dbx already" in again.err) == (1, True)


@pytest.mark.parametrize("what", ["nonsense", "ab" * 31, "/no/such/file.efi"])
def test_what_is_neither_file_nor_digest_is_refused(keyed: Shell, what: str) -> None:
    answer = keyed("secureboot", "revoke", what, *WHY)
    assert answer.code == 1
    assert "is no SHA-256 digest" in answer.err
    assert len(keyed("secureboot", "list", "-o", "json").json()["items"]) == 1


def test_a_file_that_is_no_image_is_refused(keyed: Shell, tmp_path: Path) -> None:
    (tmp_path / "x.efi").write_bytes(b"no image")
    assert "PE image" in keyed("secureboot", "revoke", tmp_path / "x.efi", *WHY).err


def test_a_rotation_of_db_from_its_beginning_to_its_end(keyed: Shell) -> None:
    enrolled(keyed, "server-1", 1)
    begun = keyed("secureboot", "rotate", "db", "--reason", "yearly")
    assert begun.code == 0, begun
    assert "restart `freehold serve` now" in begun.out
    new = keyed("secureboot", "list", "-o", "json").json()["items"][1]["db"][1]
    assert x509.load_pem_x509_certificate((keyed.state / "keys" / f"{new}.pem").read_bytes())
    assert "the last rotation is not finished" in keyed("secureboot", "rotate", "db", *WHY).err
    refused = keyed("secureboot", "rotate", "db", "--finish", *WHY)
    assert (refused.code, "not enrolled on 1 servers yet: server-1" in refused.err) == (1, True)
    enrolled(keyed, "server-1", 2)
    done = keyed("secureboot", "rotate", "db", "--finish", *WHY, "-o", "json")
    assert (done.json()["number"], done.json()["db"]) == (3, [new])


@pytest.mark.parametrize("role", ["pk", "kek"])
def test_pk_and_kek_are_replaced_at_once(keyed: Shell, role: str) -> None:
    made = keyed("secureboot", "rotate", role, *WHY, "-o", "json").json()
    assert made[role].startswith(f"{role}-")
    assert made["db"] == ["db"]


@pytest.mark.parametrize(
    "words", [("pk", "--finish"), ("db", "--module", "x.so"), ("db", "--finish", "--token", "t"), ("dbx",), ("db",)]
)
def test_what_makes_no_sense_is_wrong_usage(keyed: Shell, words: tuple[str, ...]) -> None:
    why = () if words == ("db",) else WHY
    assert keyed("secureboot", "rotate", *words, *why).code == 2


@pytest.mark.host
def test_a_key_is_made_in_a_token(keyed: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    softhsm = SoftHsm(tmp_path / "softhsm")
    monkeypatch.setenv("SOFTHSM2_CONF", str(softhsm.configuration))
    token, pin = softhsm.token("secure boot"), tmp_path / "pin"
    pin.write_text(PIN)
    place = ("--module", MODULE, "--token", token, "--pin-file", pin)
    answer = keyed("secureboot", "rotate", "db", *place, *WHY)
    assert "others can read the PIN file" in answer.err
    pin.chmod(0o600)
    made = keyed("secureboot", "rotate", "db", *place, *WHY, "-o", "json")
    assert made.code == 0, made
    assert PIN not in made.out


@pytest.mark.host
def test_the_enrolment_image_is_written(keyed: Shell, tmp_path: Path) -> None:
    assert "has built no agent yet" in keyed("secureboot", "image", "--out", tmp_path / "x.efi").err
    build = keyed.state / "images" / "0123abcd"
    build.mkdir(parents=True)
    (build / "agent.efi").write_bytes(uki.assemble(b"kernel" * 100, "console=ttyS0", b"ID=x\n", b"initrd"))
    (build / "content.json").write_text("[]")
    for name in ("enrol.efi", "enrol.iso"):
        answer = keyed("secureboot", "image", "--out", tmp_path / name)
        assert answer.out == f"wrote {tmp_path / name}: it enrols generation 1\n", answer
    sections = uki.sections_of((tmp_path / "enrol.efi").read_bytes())
    assert enrolment.INIT.encode() in sections[".initrd"]
    assert (tmp_path / "enrol.iso").read_bytes()[0x8001:0x8006] == b"CD001"
