"""The keyring: keys in the vault or in a token, and generations that no crash leaves half-made."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from secure_boot_support import LOADER, NOW
from softhsm_support import MODULE, PIN, WRONG_PIN, SoftHsm

from freehold.root_of_trust.kek import FileKek
from freehold.root_of_trust.secure_boot_generations import GenerationRefused
from freehold.root_of_trust.secure_boot_keys import SecureBootKeyring, SecureBootKeysMissing
from freehold.root_of_trust.secure_boot_signing import signers_of
from freehold.root_of_trust.vault import EmbeddedVault

sys.path.insert(0, str(Path(__file__).parents[1] / "evidence"))
from crash_points import run_until_crash

OWNER = UUID(int=7)
LATER = NOW + timedelta(days=1)
DIGEST = "ab" * 32
RSA_KEYS = [rsa.generate_private_key(65537, 2048) for _ in range(4)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(rsa, "generate_private_key", lambda **_: RSA_KEYS.append(RSA_KEYS.pop(0)) or RSA_KEYS[-1])


@pytest.fixture
def vault(tmp_path: Path) -> EmbeddedVault:
    return EmbeddedVault.create(tmp_path / "vault", FileKek.create(tmp_path / "vault.key"))


@pytest.fixture
def keyring(vault: EmbeddedVault) -> SecureBootKeyring:
    made = SecureBootKeyring(vault, "lab", OWNER)
    made.create(NOW)
    return made


def subjects(keyring: SecureBootKeyring) -> dict[str, str]:
    certificates = keyring.certificates().items()
    return {name: x509.load_pem_x509_certificate(pem).subject.rfc4514_string() for name, pem in certificates}


def test_the_first_generation_and_its_names(keyring: SecureBootKeyring) -> None:
    (only,) = keyring.generations()
    assert (only.number, only.keys, only.dbx) == (1, ("pk", "kek", "db"), ())
    assert subjects(keyring) == {
        "pk": "CN=lab Secure Boot PK", "kek": "CN=lab Secure Boot KEK", "db": "CN=lab Secure Boot db",
    }  # fmt: skip
    public = x509.load_pem_x509_certificate(keyring.certificates()["db"]).public_key()
    assert isinstance(public, rsa.RSAPublicKey)
    assert public.key_size == 2048


def test_a_vault_from_before_there_were_generations_has_the_first(
    vault: EmbeddedVault, keyring: SecureBootKeyring
) -> None:
    (made,) = keyring.generations()
    vault.destroy("site/keys/secure-boot")
    old = SecureBootKeyring(vault, "lab", OWNER)
    assert old.generations() == (made,)
    assert old.revoke(DIGEST, "old", LATER).number == 2
    assert len(old.generations()) == 2


def test_every_change_is_a_new_generation_and_older_ones_stay(keyring: SecureBootKeyring) -> None:
    before = keyring.key_set(1)
    second = keyring.rotate("db", "yearly", LATER)
    third = keyring.revoke(DIGEST, "CVE-2026-1", LATER)
    fourth = keyring.finish({"server-1": 3}, "done", LATER)
    assert [each.number for each in keyring.generations()] == [1, 2, 3, 4]
    assert keyring.generations()[1:] == (second, third, fourth)
    assert keyring.key_set(1) == before
    old, new = keyring.key_set(3).db
    assert (old, keyring.key_set(4).db) == (before.db[0], (new,))
    assert keyring.key_set(4).dbx == (bytes.fromhex(DIGEST),)
    assert subjects(keyring)[second.db[1]] == f"CN=lab Secure Boot db {second.db[1].removeprefix('db-')}"


def test_a_generation_that_is_not_there_is_said_so(keyring: SecureBootKeyring) -> None:
    with pytest.raises(SecureBootKeysMissing, match="no generation 2"):
        keyring.key_set(2)


def test_a_refused_rotation_makes_no_key(vault: EmbeddedVault, keyring: SecureBootKeyring) -> None:
    keyring.rotate("db", "", LATER)
    paths = vault.paths()
    with pytest.raises(GenerationRefused):
        keyring.rotate("db", "", LATER)
    with pytest.raises(GenerationRefused):
        keyring.finish({"server-1": 1}, "", LATER)
    assert vault.paths() == paths


@pytest.mark.host
def test_images_bear_a_signature_of_every_key_in_db(keyring: SecureBootKeyring) -> None:
    assert signers_of(keyring.sign(LOADER.read_bytes())) == keyring.key_set(1).db
    keyring.rotate("db", "", LATER)
    assert signers_of(keyring.sign(LOADER.read_bytes())) == keyring.key_set(2).db
    keyring.finish({}, "", LATER)
    assert signers_of(keyring.sign(LOADER.read_bytes())) == keyring.key_set(2).db[1:]


@pytest.mark.parametrize("work", ["revoke", "rotate"])
def test_a_crash_leaves_a_change_done_or_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str) -> None:
    kek = FileKek.create(tmp_path / "vault.key")
    outcomes = set()
    for dies_at in range(200):
        vault = EmbeddedVault.create(tmp_path / str(dies_at), kek)
        keyring = SecureBootKeyring(vault, "lab", OWNER)
        keyring.create(NOW)

        def change(keyring: SecureBootKeyring = keyring) -> None:
            if work == "revoke":
                keyring.revoke(DIGEST, "", LATER)
            else:
                keyring.rotate("pk", "", LATER)

        died = run_until_crash(monkeypatch, dies_at, change)
        again = SecureBootKeyring(vault, "lab", OWNER)
        outcomes.add(len(again.generations()))
        assert again.newest_set().generation == again.newest().number  # all that it names is there
        again.revoke("cd" * 32, "", LATER)
        if not died:
            break
    assert outcomes == {1, 2}
    assert dies_at < 199


# a key in a token


@pytest.fixture
def softhsm(tmp_path: Path) -> SoftHsm:
    return SoftHsm(tmp_path / "softhsm")


def in_a_process(softhsm: SoftHsm, script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """SoftHSM reads its configuration once a process."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    here = str(Path(__file__).parent)
    environment = softhsm.environment | {"PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=60)


IN_TOKEN = """
import sys
from pathlib import Path
from uuid import UUID
import msgspec
from secure_boot_support import LOADER, NOW
from freehold.root_of_trust.kek import FileKek
from freehold.root_of_trust.secure_boot_keys import SecureBootKeyring
from freehold.root_of_trust.secure_boot_signing import authenticated_variable, signers_of
from freehold.root_of_trust.vault import EmbeddedVault

work, module, token, pin = Path(sys.argv[1]), *sys.argv[2:]
vault = EmbeddedVault.create(work / "vault", FileKek.create(work / "vault.key"))
keyring = SecureBootKeyring(vault, "lab", UUID(int=7))
keyring.create(NOW)
for role in ("db", "kek"):
    keyring.rotate(role, "into the token", NOW, (module, token, pin))
(work / "signed.efi").write_bytes(keyring.sign(LOADER.read_bytes()))
for number, name in enumerate(keyring.newest().db):
    (work / f"{number}.pem").write_bytes(keyring.certificates()[name])
assert signers_of((work / "signed.efi").read_bytes()) == keyring.newest_set().db
with keyring.signers(keyring.newest().kek) as (kek,):
    authenticated_variable("db", b"x", kek, NOW)
    try:
        kek.key.private_numbers()
    except TypeError as error:
        print(error)
assert keyring.newest().db[1] in keyring.certificates()
stored = vault.get("site/keys/" + keyring.newest().db[1])
assert b"PRIVATE" not in stored and b"token" in stored
assert pin not in repr(keyring._key(keyring.newest().db[1]).token)
"""

LATER_ON = """
import sys
from pathlib import Path
from uuid import UUID
from secure_boot_support import LOADER
from freehold.root_of_trust.kek import FileKek
from freehold.root_of_trust.secure_boot_keys import SecureBootKeyring
from freehold.root_of_trust.vault import EmbeddedVault

work = Path(sys.argv[1])
vault = EmbeddedVault.open(work / "vault", FileKek.open(work / "vault.key"))
keyring = SecureBootKeyring(vault, "lab", UUID(int=7))
try:
    keyring.sign(LOADER.read_bytes())
    print("signed")
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.host
@pytest.mark.slow
def test_a_key_in_a_token_signs_and_never_leaves_it(tmp_path: Path, softhsm: SoftHsm) -> None:
    token = softhsm.token("secure boot")
    made = in_a_process(softhsm, IN_TOKEN, tmp_path, MODULE, token, PIN)
    assert made.returncode == 0, made.stderr
    assert "does nothing else" in made.stdout
    for number in range(2):
        command = ["sbverify", "--cert", tmp_path / f"{number}.pem", tmp_path / "signed.efi"]
        subprocess.run(command, check=True, capture_output=True)
    assert in_a_process(softhsm, LATER_ON, tmp_path).stdout == "signed\n"  # another process, and nobody asked for a PIN
    listed = ["pkcs11-tool", "--module", MODULE, "--login", "--pin", PIN, "--list-objects", "--type", "privkey"]
    said = subprocess.run(listed, check=True, capture_output=True, text=True, env=softhsm.environment).stdout
    assert said.count("never extractable") == said.count("Private Key Object; RSA") == 2


@pytest.mark.host
@pytest.mark.slow
def test_a_token_that_is_gone_or_has_another_pin_is_named_with_what_to_do(tmp_path: Path, softhsm: SoftHsm) -> None:
    token = softhsm.token("secure boot")
    refused = in_a_process(softhsm, IN_TOKEN, tmp_path, MODULE, token, WRONG_PIN)
    assert "refused the PIN" in refused.stderr
    assert "SigningTokenUnavailable" in refused.stderr
    softhsm = SoftHsm(tmp_path / "other")
    token = softhsm.token("secure boot")
    (tmp_path / "two").mkdir()
    assert in_a_process(softhsm, IN_TOKEN, tmp_path / "two", MODULE, token, PIN).returncode == 0
    for path in softhsm.tokens.iterdir():
        path.rename(tmp_path / "unplugged")
    said = in_a_process(softhsm, LATER_ON, tmp_path / "two").stdout
    assert "SigningTokenUnavailable" in said
    assert "is not there" in said
    assert "freehold secureboot rotate" in said


@pytest.mark.host
@pytest.mark.slow
def test_a_wrong_pin_given_again_and_again_never_locks_a_token_for_secure_boot_keys(
    tmp_path: Path, softhsm: SoftHsm
) -> None:
    token = softhsm.token("secure boot")
    said = []
    for number in range(4):
        (tmp_path / str(number)).mkdir()
        said.append(in_a_process(softhsm, IN_TOKEN, tmp_path / str(number), MODULE, token, WRONG_PIN).stderr)
    assert "it was tried once" in said[0]
    assert all("was not asked to log in" in each for each in said[1:])
    person = ["pkcs11-tool", "--module", MODULE, "--token-label", token, "--login", "--pin", PIN, "--list-objects"]
    subprocess.run(person, check=True, capture_output=True, env=softhsm.environment, timeout=30)
    (tmp_path / "right").mkdir()
    assert in_a_process(softhsm, IN_TOKEN, tmp_path / "right", MODULE, token, PIN).returncode == 0


LOOSE = """
import os, sys
import pkcs11
from freehold.root_of_trust.secure_boot_keys import TokenPlace
from freehold.root_of_trust.secure_boot_token import open_key

module, token, pin, loose = sys.argv[1:]
found = pkcs11.lib(module).get_token(token_label=token)
key_id = os.urandom(16)
template = {pkcs11.Attribute.EXTRACTABLE: True} if loose == "extractable" else {pkcs11.Attribute.SENSITIVE: False}
with found.open(rw=True, user_pin=pin) as session:
    session.generate_keypair(pkcs11.KeyType.RSA, 2048, id=key_id, store=True, private_template=template)
serial = found.serial.decode().strip()
try:
    open_key(TokenPlace(module=module, token=token, serial=serial, key_id=key_id.hex(), pin=pin))
    print("opened")
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.host
@pytest.mark.parametrize("loose", ["extractable", "readable"])
@pytest.mark.slow
def test_a_key_that_could_leave_its_token_does_not_sign(softhsm: SoftHsm, loose: str) -> None:
    said = in_a_process(softhsm, LOOSE, MODULE, softhsm.token("secure boot"), PIN, loose).stdout
    assert said.startswith("SigningTokenUnavailable")
    assert "can leave it, or once could: " in said
    assert ("NEVER_EXTRACTABLE" if loose == "extractable" else "ALWAYS_SENSITIVE") in said
    assert "freehold secureboot rotate" in said
