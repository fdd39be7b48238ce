"""The TPM client: its encoding and errors against canned responses, its commands against a real software TPM."""

import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from swtpm_support import Vendor, connect, powered, running

from freehold.agent import tpm as client
from freehold.agent.tpm import DeviceTransport, SocketTransport, Tpm, TpmError, TpmResponseError

SELECTION = {"sha256": [0, 7]}


class Canned:
    """A transport that answers from a list and keeps the commands."""

    def __init__(self, *responses: bytes) -> None:
        self.responses, self.commands, self.closed = list(responses), [], False

    def exchange(self, command: bytes) -> bytes:
        self.commands.append(command)
        return self.responses.pop(0)

    def close(self) -> None:
        self.closed = True


def response(body: bytes = b"", code: int = 0, tag: int = 0x8001) -> bytes:
    return struct.pack(">HII", tag, 10 + len(body), code) + body


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0x18B, "TPM_RC_HANDLE in handle 1"),
        (0x9A2, "TPM_RC_BAD_AUTH in session 1"),
        (0x2D6, "TPM_RC_SYMMETRIC in parameter 2"),
        (0x922, "TPM_RC_RETRY"),
        (0x902, "TPM_RC_OBJECT_MEMORY"),
        (0x17F, "TPM_RC_UNKNOWN"),
    ],
)
def test_an_error_names_its_code_and_place(code: int, words: str) -> None:
    error = TpmResponseError(client.QUOTE, code)
    assert words in str(error)
    assert "TPM2_Quote" in str(error)
    assert error.code == code


def test_a_busy_tpm_is_asked_again_and_then_given_up() -> None:
    transport = Canned(response(code=0x922), response(b"\0\4abcd"))
    assert Tpm(transport).get_random(4) == b"abcd"
    assert transport.commands[0] == transport.commands[1]
    with pytest.raises(TpmResponseError, match="RETRY"):
        Tpm(Canned(*[response(code=0x922)] * client.TRIES)).get_random(4)


@pytest.mark.parametrize("bad", [b"", b"\x80\x01", response(b"\0\x20abcd"), response(b"\0\4abcd")[:-1]])
def test_a_broken_response_is_a_tpm_error(bad: bytes) -> None:
    with pytest.raises(TpmError):
        Tpm(Canned(bad)).get_random(4)


def test_a_pcr_that_does_not_exist_is_refused_before_the_tpm_is_asked() -> None:
    with pytest.raises(TpmError, match="no such PCR selection"):
        Tpm(Canned()).pcr_read("sha256", [24])


def test_a_missing_tpm_is_said_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(TpmError, match="firmware's setup"):
        DeviceTransport(str(tmp_path / "tpm0"))
    with pytest.raises(TpmError, match="no TPM answers"):
        SocketTransport(str(tmp_path / "sock"))


@pytest.fixture(scope="module")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Vendor:
    return Vendor(tmp_path_factory.mktemp("vendor") / "v")


@pytest.fixture(scope="module")
def state(vendor: Vendor) -> Path:
    return vendor.make("one")


@pytest.fixture
def tpm(state: Path) -> Iterator[Tpm]:
    with powered(state) as tpm:
        yield tpm


@pytest.mark.host
def test_keys_are_the_same_after_a_power_cycle_and_after_clear(state: Path) -> None:
    publics = set()
    for _ in range(2):
        with powered(state) as tpm, tpm.create_ek() as ek, tpm.create_ak() as ak:
            publics.add((ek.public, ak.public))
    with powered(state) as tpm:
        tpm.clear()
        with tpm.create_ek() as ek, tpm.create_ak() as ak:
            publics.add((ek.public, ak.public))
    assert len(publics) == 1


@pytest.mark.host
def test_slots_do_not_run_out(state: Path) -> None:
    with running(state) as path:
        with connect(path) as tpm:
            for _ in range(6):
                with tpm.create_ek() as ek, tpm.create_ak() as ak, pytest.raises(TpmResponseError):
                    tpm.activate_credential(ak, ek, b"\0\x24\0\x20" + bytes(34), b"\1\0" + bytes(256))
            for _ in range(3):
                tpm.create_ak()
            tpm._loaded.clear()  # as if the process had died: its objects stay in the TPM
        with connect(path) as tpm, tpm.create_ek() as ek, tpm.create_ak() as ak:
            assert ek.handle != ak.handle


@pytest.mark.host
def test_pcrs_are_extended_and_read_past_the_limit_of_one_command(tpm: Tpm) -> None:
    digest = hashlib.sha256(b"x").digest()
    tpm.pcr_extend(7, {"sha256": digest})
    values = tpm.pcr_read("sha256", range(24))
    assert sorted(values) == list(range(24))
    assert values[7] == hashlib.sha256(bytes(32) + digest).digest()
    assert values[0] == bytes(32)
    with pytest.raises(TpmError, match="no PCR bank sha384"):
        tpm.pcr_read("sha384", [0])


@pytest.mark.host
def test_a_quote_carries_the_qualifying_data(tpm: Tpm) -> None:
    with tpm.create_ak() as ak:
        attest, signature = tpm.quote(ak, b"n" * 32, SELECTION)
    assert attest.startswith(bytes.fromhex("ff5443478018"))
    assert b"n" * 32 in attest
    assert signature.startswith(bytes.fromhex("0018000b"))
    assert len(signature) == 4 + 2 * 34


@pytest.mark.host
def test_the_certificate_is_read_or_said_to_be_missing(tpm: Tpm, vendor: Vendor) -> None:
    certificate = tpm.ek_certificate()
    assert certificate is not None
    assert len(certificate) == 4 + int.from_bytes(certificate[2:4], "big")
    with powered(vendor.make("bare", certificate=False)) as bare:
        assert bare.ek_certificate() is None


@pytest.mark.host
def test_clear_falls_back_to_lockout_and_says_when_neither_works(tpm: Tpm) -> None:
    def run(command: int, handle: int, parameters: bytes) -> None:
        tpm._run(command, [handle], parameters, [client.PASSWORD_SESSION])

    run(0x129, client.PLATFORM, b"\0\4pass")  # as firmware does before it starts an OS
    tpm.clear()
    run(0x129, client.LOCKOUT, b"\0\4pass")
    with pytest.raises(TpmError, match="firmware's setup"):
        tpm.clear()


@pytest.mark.host
def test_random_bytes_come_in_any_length(tpm: Tpm) -> None:
    assert len(tpm.get_random(100)) == 100
    assert tpm.get_random(32) != tpm.get_random(32)
