"""Event logs of real machines replay to what tpm2_eventlog computes; broken and hostile ones are refused in words."""

import hashlib
import json
import re
import struct
import tarfile
from pathlib import Path

import pytest
import yaml
from attest_support import RECORDED, SPECIFICATION, event, header, log_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freehold.root_of_trust.attestation import uefi
from freehold.root_of_trust.attestation.errors import MalformedEvidenceError
from freehold.root_of_trust.attestation.event_log import (
    MOST_BYTES,
    MOST_EVENTS,
    Event,
    parse_event_log,
    replay,
)

FIXTURES = Path(__file__).parents[1] / "fixtures"
WHOLE = [
    "arch-linux", "bootorder", "gce-ubuntu-2104-log", "moklisttrusted", "postcode", "sd-boot-fedora37",
    "uefi-sha1-log", "uefiaction", "uefiservices", "uefivar",
]  # fmt: skip


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack("eventlogs", tmp_path_factory) / "tpm2-tools"


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack("attestation", tmp_path_factory)


def unpack(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(name)
    with tarfile.open(FIXTURES / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / name


def expected_pcrs(text: str) -> dict[str, dict[int, bytes]]:
    pcrs = yaml.safe_load("pcrs:" + text.rpartition("\npcrs:")[2])["pcrs"]
    # YAML reads 0x… as a number; its digits are the digest.
    sizes = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}
    return {bank: {pcr: v.to_bytes(sizes[bank], "big") for pcr, v in values.items()} for bank, values in pcrs.items()}


def assert_replays(path: Path, text: str) -> None:
    log = parse_event_log(path.read_bytes())
    wanted = expected_pcrs(text)
    assert wanted.keys() <= set(log.banks)
    for bank, values in wanted.items():
        replayed = replay(log, bank)
        assert {pcr: replayed[pcr] for pcr in values} == values


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("form", ["event-pretty", "event-pretty-39", "event-raw"])
def test_a_real_log_replays_to_what_another_implementation_computes(logs: Path, name: str, form: str) -> None:
    assert_replays(logs / f"event-{name}.bin", (logs / form / f"event-{name}.bin.yaml").read_text())


def test_logs_replay_to_what_googles_tests_expect(others: Path) -> None:
    """Among them one that starts at locality 3, where tpm2_eventlog 5.4 is wrong, and a TDX guest's CCEL: its registers
    are counted from 1, and the rest of its 256 KiB is 0xFF."""
    wanted = json.loads((others / "pcrs.json").read_text())
    compared = 0
    for name, banks in wanted.items():
        path = others / (f"{name}.bin" if "/" in name else f"eventlogs/{name}.bin")
        log = parse_event_log(path.read_bytes())
        for bank, values in banks.items():
            replayed = replay(log, bank)
            assert {pcr: replayed[int(pcr)].hex() for pcr in values} == values
            compared += len(values)
    assert compared == 93


@pytest.mark.parametrize(
    ("name", "banks", "events"),
    [
        ("option_rom", ("sha1",), 61),  # tpm2_eventlog 5.4 dies of SIGSEGV on it
        ("ebs_event_missing", ("sha1",), 38),
        ("short_no_action", ("sha1",), 1),
        ("crypto_agile", ("sha256",), 26),
        ("sb_cert", ("sha1", "sha256", "sha384"), 14),
        ("hirs", ("sha256",), 55),
    ],
)
def test_a_log_that_others_choke_on_is_read(others: Path, name: str, banks: tuple[str, ...], events: int) -> None:
    log = parse_event_log((others / f"eventlogs/{name}.bin").read_bytes())
    assert (log.banks, len(log.events)) == (banks, events)
    for bank in banks:
        assert len(replay(log, bank)) >= 16


@pytest.mark.parametrize("name", ["intel", "event_log", "cos-113-padded"])
def test_a_ccel_is_read_but_has_nothing_that_a_tpm_quotes(others: Path, name: str) -> None:
    log = parse_event_log((others / f"ccel/{name}.bin").read_bytes())
    assert log.banks == ("sha384",)
    assert {event.pcr for event in log.events if event.type != 3} <= {1, 2, 3, 4}
    with pytest.raises(MalformedEvidenceError, match="no sha256 bank"):
        replay(log, "sha256")


def test_go_tpm_tools_177632b0_a_log_of_ones_is_no_log() -> None:
    """A CCEL that was nothing but 0xFF made the parser panic. Ours finds no header to start from."""
    with pytest.raises(MalformedEvidenceError, match="does not exist"):
        parse_event_log(b"\xff" * 65536)
    with pytest.raises(MalformedEvidenceError):
        parse_event_log(header()[:28] + b"\xff" * 65536)


def test_four_banks_replay(logs: Path) -> None:
    assert_replays(logs / "event.bin", (logs / "event.bin.yaml").read_text())


def test_vendor_data_in_the_header_is_skipped_whether_or_not_its_size_counts_it(logs: Path) -> None:
    vendor = SPECIFICATION[:-1] + b"\4\xde\xad\xbe\xef"
    assert len(parse_event_log(header(vendor) + event(0, 8, b"v")).events) == 1
    uncounted = (logs / "specid-vendordata.bin").read_bytes()
    assert parse_event_log(uncounted).banks == ("sha1", "sha256")
    with pytest.raises(MalformedEvidenceError, match="runs past the end"):
        parse_event_log(uncounted[:-1])


@pytest.mark.parametrize("name", ["uefiaction", "uefivar"])
def test_a_declared_bank_that_an_event_leaves_out_is_no_bank_of_the_log(logs: Path, name: str) -> None:
    log = parse_event_log((logs / f"event-{name}.bin").read_bytes())  # four are declared
    assert log.banks == ("sha1", "sha256")
    with pytest.raises(MalformedEvidenceError, match="no sha384 bank can be replayed; it has sha1, sha256"):
        replay(log, "sha384")


def test_a_log_whose_events_have_no_bank_in_common_is_refused() -> None:
    sha1 = struct.pack("<IIIH20sI", 0, 8, 1, 0x0004, bytes(20), 0)
    sha256 = struct.pack("<IIIH32sI", 0, 8, 1, 0x000B, bytes(32), 0)
    two = SPECIFICATION[:24] + struct.pack("<IHHHHB", 2, 0x04, 20, 0x0B, 32, 0)
    assert parse_event_log(header(two) + sha256).banks == ("sha256",)
    with pytest.raises(MalformedEvidenceError, match="no bank has a digest for every event"):
        parse_event_log(header(two) + sha1 + sha256)


@pytest.mark.parametrize("count", [0, 3])
def test_an_event_with_no_digest_or_with_more_than_there_are_banks_is_refused(count: int) -> None:
    with pytest.raises(MalformedEvidenceError, match=f"event 1 has {count} digests for"):
        parse_event_log(header() + struct.pack("<III", 0, 8, count) + bytes(64))


def test_every_log_of_the_archive_is_covered(logs: Path) -> None:
    named = {f"event-{name}.bin" for name in WHOLE} | {"event.bin", "specid-vendordata.bin"}
    others = {"ek-template-default.bin", "get-capability-tpm-prop-fixed.bin"}
    assert {path.name for path in logs.glob("*.bin")} == named | others


@pytest.mark.parametrize("mode", ["secure-boot", "setup-mode"])
def test_a_recorded_boot_replays_to_what_the_tpm_held(mode: str) -> None:
    values = replay(parse_event_log(log_bytes(mode)), "sha256")
    held = {int(pcr): bytes.fromhex(value) for pcr, value in RECORDED["pcrs"][mode].items()}
    differing = [pcr for pcr in held if held[pcr] != values[pcr]]
    assert differing == [10]  # the kernel's IMA, which is in no log of the firmware


def test_data_is_vouched_for_only_by_its_digest() -> None:
    honest = Event(number=1, pcr=7, type=1, digests={"sha256": hashlib.sha256(b"x").digest()}, data=b"x")
    assert honest.vouched_data("sha256") == b"x"
    lying = Event(number=1, pcr=7, type=1, digests=honest.digests, data=b"y")
    assert lying.vouched_data("sha256") is None


def startup(locality: int) -> bytes:
    return event(0, 3, b"StartupLocality\0" + bytes([locality]), bytes(32))


def test_startup_locality_is_where_pcr_0_begins() -> None:
    log = parse_event_log(header() + startup(3) + event(0, 8, b"v"))
    start = bytes(31) + b"\3"
    assert replay(log, "sha256")[0] == hashlib.sha256(start + hashlib.sha256(b"v").digest()).digest()
    assert replay(parse_event_log(header() + startup(4)), "sha256")[0] == bytes(31) + b"\4"


@pytest.mark.parametrize(
    "events",
    [startup(1), startup(3) + startup(3), event(0, 8, b"v") + startup(3), event(0, 3, b"StartupLocality\0", bytes(32))],
    ids=["unknown", "twice", "after PCR 0", "cut off"],
)
def test_an_impossible_startup_locality_is_refused(events: bytes) -> None:
    with pytest.raises(MalformedEvidenceError, match="not a valid startup locality"):
        parse_event_log(header() + events)


def test_sp800_155_events_extend_nothing() -> None:
    reference = event(0xFFFFFFFF, 3, b"SP800-155 Event\0" + bytes(20), bytes(32))
    log = parse_event_log(header() + reference + event(0, 8, b"v"))
    assert len(log.events) == 2
    assert replay(log, "sha256") == replay(parse_event_log(header() + event(0, 8, b"v")), "sha256")


@pytest.mark.parametrize("padding", [b"\0" * 5, b"\0" * 300, b"\xff" * 7, b"\xff" * 4000])
def test_the_unused_rest_of_the_buffer_is_skipped(padding: bytes) -> None:
    assert len(parse_event_log(header() + event(0, 8, b"v") + padding).events) == 1


def declared(*banks: tuple[int, int]) -> bytes:
    return header(
        SPECIFICATION[:24] + struct.pack("<I", len(banks)) + b"".join(struct.pack("<HH", *b) for b in banks) + b"\0"
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "runs past the end"),
        (bytes(MOST_BYTES + 1), "at most"),
        pytest.param(bytes(1 << 30), "1073741824 bytes, at most", id="a log of 1 GB"),
        pytest.param(header() + event(4, 4, b"") * 10_000, "more than 4096 events", id="10,000 events"),
        (header() + event(4, 4, bytes(4)) * (MOST_EVENTS + 1), "more than 4096 events"),
        (header() + event(24, 4, bytes(4)), "PCR 24, which does not exist"),
        (header() + event(0xFFFFFFFF, 4, bytes(4)), "does not exist"),
        (header() + event(0, 4, bytes(4))[:-1], "runs past the end"),
        (header() + struct.pack("<IIIH", 0, 4, 1, 0x0C) + bytes(52), "not declared"),
        (header() + struct.pack("<III", 0, 4, 0x7FFFFFFF), "2147483647 digests"),
        (declared((0x0B, 20)), "digests of 20 bytes is unknown"),
        (declared((0x99, 32)), "unknown"),
        (declared((0x0B, 32), (0x0B, 32)), "there twice"),
        (declared(), "0 banks"),
        (header(SPECIFICATION + b"x"), "too many"),
        (b"\2" + header()[1:], "not a NO_ACTION event of PCR 0"),
    ],
)
def test_a_log_that_breaks_the_specification_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(MalformedEvidenceError, match=re.escape(words)):
        parse_event_log(data)


def test_an_absent_bank_is_not_replayed() -> None:
    with pytest.raises(MalformedEvidenceError, match="no sha384 bank"):
        replay(parse_event_log(header()), "sha384")


@settings(max_examples=150, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_log_is_parsed_or_refused_but_never_anything_else(logs: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(logs.glob("*event*.bin")) + sorted(logs.glob("specid*.bin"))))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=6))
        raw = raw or bytearray(b"\0")
    try:
        log = parse_event_log(bytes(raw))
    except MalformedEvidenceError:
        return
    for bank in {"sha1", "sha256"} & set(log.banks):
        replay(log, bank)
    for one in log.events:
        for parse in (uefi.parse_variable, uefi.parse_image_load, uefi.parse_signature_lists, uefi.device_path):
            try:
                parse(one.data)
            except MalformedEvidenceError:
                continue


def test_recursive_structures_a_log_within_a_log_is_data_and_nobody_descends() -> None:
    inner = header()
    for _ in range(300):
        inner = header() + event(4, 13, inner)  # each one holds the whole one before
    log = parse_event_log(inner)
    assert len(log.events) == 1
    assert len(log.events[0].data) > 300 * 60


def test_recursive_structures_a_device_path_in_a_device_path_is_read_once() -> None:
    node = struct.pack("<BBH", 0x7F, 0xFF, 4)
    for _ in range(200):
        node = struct.pack("<BBH", 3, 0x0A, len(node) + 4) + node  # a vendor's node around it
    assert isinstance(uefi.device_path(node), str)


def test_recursive_structures_a_signature_list_that_holds_itself_ends() -> None:
    owner = uefi.GLOBAL_VARIABLE
    lists = uefi.signature_list(uefi.CERT_SHA256, owner, (bytes(32),))
    for _ in range(50):
        lists = lists + uefi.signature_list(uefi.CERT_X509, owner, (lists[:2000],))
    assert len(uefi.parse_signature_lists(lists)) == 51
