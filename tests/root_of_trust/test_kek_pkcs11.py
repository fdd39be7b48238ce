"""A key in a real PKCS#11 token (SoftHSM 2): it never comes out, and a wrong PIN is tried once."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pkcs11
import pytest
from custody_support import PEOPLE, identities
from softhsm_support import MODULE, PIN, WRONG_PIN, SoftHsm

from freehold.root_of_trust.kek import CustodyUnavailable, MemoryKek
from freehold.root_of_trust.kek.pkcs11 import PinRefused, Pkcs11Kek, pin_danger
from freehold.root_of_trust.vault import EmbeddedVault

pytestmark = pytest.mark.host
CONTEXT = b"freehold-vault/2\0bmc/r1/current\0001\0002"
KEY = bytes(range(32))


@pytest.fixture
def hsm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SoftHsm]:
    made = SoftHsm(tmp_path / "hsm")
    monkeypatch.setenv("SOFTHSM2_CONF", str(made.configuration))
    made.token("other")
    made.token("freehold")
    library = pkcs11.lib(MODULE)
    library.reinitialize()  # it read another test's configuration
    yield made
    library.reinitialize()


class Pin:
    """A PIN that counts how often it was asked for."""

    def __init__(self, value: str) -> None:
        self.value, self.asked = value, 0

    def __call__(self) -> str:
        self.asked += 1
        return self.value


def flags() -> pkcs11.TokenFlag:
    return pkcs11.lib(MODULE).get_token(token_label="freehold").flags


def made() -> Pkcs11Kek:
    return Pkcs11Kek.create(MODULE, "freehold", Pin(PIN))


def again(kek: Pkcs11Kek, pin: Callable[[], str]) -> Pkcs11Kek:
    """As another process would open it: a log-in holds for all sessions of a process, so this one logs out first."""
    pkcs11.lib(MODULE).reinitialize()
    return Pkcs11Kek.open(MODULE, "freehold", kek.serial, kek.key_id, pin)


def test_a_wrapped_key_comes_back_in_its_context_only(hsm: SoftHsm) -> None:
    kek = made()
    wrapped = kek.wrap(KEY, CONTEXT)
    assert KEY not in wrapped
    assert kek.wrap(KEY, CONTEXT) != wrapped
    reopened = again(kek, Pin(PIN))
    assert reopened.key_id == kek.key_id
    assert len(kek.key_id) == 32
    assert reopened.unwrap(wrapped, CONTEXT) == KEY
    for bad, context in [
        (wrapped, CONTEXT[:-1]),
        (wrapped[:-1] + bytes([wrapped[-1] ^ 1]), CONTEXT),
        (wrapped[:20], CONTEXT),
        (b"", CONTEXT),
        (MemoryKek(bytes(32)).wrap(KEY, CONTEXT), CONTEXT),
    ]:
        with pytest.raises(ValueError, match="does not unwrap"):
            reopened.unwrap(bad, context)
    assert reopened.unwrap(wrapped, CONTEXT) == KEY


def test_the_token_itself_says_that_the_key_cannot_leave_it(hsm: SoftHsm) -> None:
    kek = made()
    key = kek._key
    assert key[pkcs11.Attribute.NEVER_EXTRACTABLE]
    assert key[pkcs11.Attribute.ALWAYS_SENSITIVE]
    with pytest.raises(pkcs11.AttributeSensitive):
        key[pkcs11.Attribute.VALUE]
    with pytest.raises(pkcs11.PKCS11Error):
        key[pkcs11.Attribute.EXTRACTABLE] = True


def test_a_vault_lives_under_the_token_and_moves_there_from_a_key_in_memory(hsm: SoftHsm, tmp_path: Path) -> None:
    vault = EmbeddedVault.create(tmp_path / "vault", MemoryKek(os.urandom(32)), PEOPLE)
    vault.put("bmc/r1/current", b"correct horse")
    kek = made()
    vault.rekey(kek)
    assert EmbeddedVault.open(vault.directory, again(kek, Pin(PIN))).get("bmc/r1/current") == b"correct horse"
    recovered = EmbeddedVault.recover(vault.directory, identities("alice", "bob"))
    assert recovered.get("bmc/r1/current") == b"correct horse"


def test_a_wrong_pin_is_tried_exactly_once_and_never_again_until_a_person_logged_in(hsm: SoftHsm) -> None:
    kek = made()
    wrong = Pin(WRONG_PIN)
    with pytest.raises(PinRefused, match=r"refused the PIN \(PinIncorrect\); it was tried once"):
        again(kek, wrong)
    assert wrong.asked == 1
    assert flags() & pkcs11.TokenFlag.USER_PIN_COUNT_LOW
    for _ in range(5):  # a service that is restarted for ever
        with pytest.raises(PinRefused, match="was not asked to log in: a wrong PIN was given since"):
            again(kek, wrong)
    right = Pin(PIN)
    with pytest.raises(PinRefused):
        again(kek, right)
    assert (wrong.asked, right.asked) == (1, 0)
    with pkcs11.lib(MODULE).get_token(token_label="freehold").open(user_pin=PIN):
        pass  # the person, with the token's own tool
    assert again(kek, right).key_id == kek.key_id
    assert not flags() & pkcs11.TokenFlag.USER_PIN_LOCKED


def test_a_token_near_its_lock_is_not_asked() -> None:
    """SoftHSM sets only the first of the three flags; the decision is one function of them."""
    flag = pkcs11.TokenFlag
    usual = flag.RNG | flag.LOGIN_REQUIRED | flag.USER_PIN_INITIALIZED | flag.TOKEN_INITIALIZED
    assert pin_danger(usual) is None
    assert pin_danger(usual | flag.USER_PIN_COUNT_LOW) == "a wrong PIN was given since the last right one"
    final = usual | flag.USER_PIN_COUNT_LOW | flag.USER_PIN_FINAL_TRY
    assert pin_danger(final) == "one more wrong PIN would lock it"
    assert pin_danger(final | flag.USER_PIN_LOCKED) == "its PIN is locked"
    assert pin_danger(usual | flag.USER_PIN_FINAL_TRY) == "one more wrong PIN would lock it"


def test_what_is_missing_is_named(hsm: SoftHsm) -> None:
    kek = made()
    pin = Pin(PIN)
    with pytest.raises(CustodyUnavailable, match=r"module /nowhere/lib\.so cannot be used[\s\S]*softhsm2") as refused:
        Pkcs11Kek.open("/nowhere/lib.so", "freehold", kek.serial, kek.key_id, pin)
    assert "custody.json" in str(refused.value)
    with pytest.raises(CustodyUnavailable, match=r"'lost' \(module .*\) is not there; tokens present: .*'freehold'"):
        Pkcs11Kek.open(MODULE, "lost", kek.serial, kek.key_id, pin)
    with pytest.raises(CustodyUnavailable, match="with serial 0000"):
        Pkcs11Kek.open(MODULE, "freehold", "0000", kek.key_id, pin)
    assert pin.asked == 0
    with pytest.raises(CustodyUnavailable, match=f"holds 0 keys with the id {'0' * 32}"):
        Pkcs11Kek.open(MODULE, "freehold", kek.serial, "0" * 32, pin)


def test_two_tokens_of_one_label_are_told_apart_by_serial_and_not_guessed(hsm: SoftHsm) -> None:
    kek = made()
    hsm.token("freehold")
    pkcs11.lib(MODULE).reinitialize()
    with pytest.raises(CustodyUnavailable, match="there more than once"):
        made()
    assert again(kek, Pin(PIN)).key_id == kek.key_id


def test_a_key_that_could_be_read_once_is_refused(hsm: SoftHsm) -> None:
    loose = os.urandom(16)
    with pkcs11.lib(MODULE).get_token(token_label="freehold").open(rw=True, user_pin=PIN) as session:
        serial = session.token.serial.decode()
        template = {pkcs11.Attribute.EXTRACTABLE: True, pkcs11.Attribute.SENSITIVE: False}
        session.generate_key(pkcs11.KeyType.AES, 256, id=loose, store=True, template=template)
    with pytest.raises(CustodyUnavailable, match="SENSITIVE, ALWAYS_SENSITIVE, EXTRACTABLE, NEVER_EXTRACTABLE"):
        Pkcs11Kek.open(MODULE, "freehold", serial, loose.hex(), Pin(PIN))


def test_a_token_that_goes_away_is_no_tampered_record_and_loses_nothing(hsm: SoftHsm, tmp_path: Path) -> None:
    kek = made()
    vault = EmbeddedVault.create(tmp_path / "vault", kek, PEOPLE)
    vault.put("bmc/r1/current", b"correct horse")
    before = {path: path.read_bytes() for path in vault.directory.rglob("*@*")}
    aside = shutil.move(hsm.tokens, tmp_path / "unplugged")
    hsm.tokens.mkdir()
    for call in (lambda: vault.get("bmc/r1/current"), lambda: vault.put("bmc/r1/current", b"new"), vault.audit):
        with pytest.raises(CustodyUnavailable, match=r"'freehold'[\s\S]*nothing in the vault was changed"):
            call()
    assert {path: path.read_bytes() for path in vault.directory.rglob("*@*")} == before
    hsm.tokens.rmdir()
    shutil.move(aside, hsm.tokens)
    assert EmbeddedVault.open(vault.directory, again(kek, Pin(PIN))).get("bmc/r1/current") == b"correct horse"


def test_neither_pin_nor_key_shows(hsm: SoftHsm, caplog: pytest.LogCaptureFixture) -> None:
    kek = made()
    shown = repr(kek) + repr(vars(kek))
    assert PIN not in shown
    secret = "73519264"
    with pytest.raises(PinRefused) as refused:
        again(kek, Pin(secret))
    assert secret not in repr(refused.value) + str(refused.value) + caplog.text


def test_another_process_opens_it_with_nothing_in_its_arguments(hsm: SoftHsm, tmp_path: Path) -> None:
    kek = made()
    wrapped = kek.wrap(KEY, CONTEXT)
    code = (
        "import sys\nfrom freehold.root_of_trust.kek.pkcs11 import Pkcs11Kek\n"
        "from freehold.root_of_trust.custody import given_pin\n"
        "kek = Pkcs11Kek.open(*sys.argv[1:5], given_pin)\n"
        "sys.stdout.buffer.write(kek.unwrap(sys.stdin.buffer.read(), bytes.fromhex(sys.argv[5])))"
    )
    pin = tmp_path / "pin"
    pin.write_text(PIN + "\n")
    pin.chmod(0o600)
    done = subprocess.run(
        [sys.executable, "-c", code, MODULE, "freehold", kek.serial, kek.key_id, CONTEXT.hex()],
        input=wrapped,
        capture_output=True,
        check=True,
        timeout=60,
        env={**hsm.environment, "FREEHOLD_VAULT_PIN_FILE": str(pin)},
    )
    assert done.stdout == KEY
