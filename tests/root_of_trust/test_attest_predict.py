"""Predictions from files equal what firmware, stub and TPM measured; other people's tools check our digests."""

import hashlib
import re
import struct
import subprocess
from pathlib import Path

import pytest
from attest_support import DBX, OWNER, RECORDED, certificate, keys, log_bytes, pcr4, pcr7
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.root_of_trust.attestation import pe, predict, uefi
from freehold.root_of_trust.attestation.errors import MalformedEvidenceError
from freehold.root_of_trust.attestation.event_log import extend_all, parse_event_log

STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
MEASURE = Path("/usr/lib/systemd/systemd-measure")
SECTIONS = {".osrel": b"ID=x\n", ".cmdline": b"quiet\0", ".initrd": b"initrd" * 100, ".linux": b""}


def held(mode: str, pcr: int) -> bytes:
    return bytes.fromhex(RECORDED["pcrs"][mode][str(pcr)])


@pytest.mark.parametrize("mode", ["secure-boot", "setup-mode"])
def test_pcr_7_from_the_certificates_is_what_the_tpm_held(mode: str) -> None:
    assert predict.pcr_value(pcr7(mode)) == held(mode, 7)


@pytest.mark.parametrize("mode", ["secure-boot", "setup-mode"])
def test_pcr_4_is_what_the_tpm_held_after_a_failed_boot_option(mode: str) -> None:
    retry = [predict.measure(data, "") for data in (predict.RETURNING, predict.CALLING)]
    action, separator, *images = pcr4(mode)
    assert predict.pcr_value([action, separator, *retry, *images]) == held(mode, 4)


def test_pcr_11_is_what_the_tpm_held() -> None:
    assert {RECORDED["pcr11"]} == {RECORDED["pcrs"][mode]["11"] for mode in ("secure-boot", "setup-mode")}


def test_enrolled_keys_are_read_from_the_log() -> None:
    measured = {}
    for event in parse_event_log(log_bytes()).of_pcr(7):
        if event.type == 0x80000001:
            variable = uefi.parse_variable(event.data)
            measured[variable.name] = variable.data
    assert measured == {"SecureBoot": b"\1", "PK": keys().pk, "KEK": keys().kek, "db": keys().db, "dbx": DBX}
    (entry,) = uefi.parse_signature_lists(measured["db"])
    assert (entry.type, entry.owner, entry.describe()) == (uefi.CERT_X509, OWNER, "certificate CN=Floor db")
    assert entry.data == certificate("db")


def test_ghsa_9r4w_jg96_92mv_bytes_of_a_signature_header_are_never_signatures() -> None:
    good = uefi.signature_list(uefi.CERT_SHA256, OWNER, (b"h" * 32,))
    assert [entry.data for entry in uefi.parse_signature_lists(good)] == [b"h" * 32]
    smuggled = OWNER.bytes_le + b"evil" * 8
    sizes = b"".join(n.to_bytes(4, "little") for n in (28 + 48 + 48, 48, 48))
    with pytest.raises(MalformedEvidenceError, match="SignatureHeaderSize is 48"):
        uefi.parse_signature_lists(uefi.CERT_SHA256.bytes_le + sizes + smuggled + OWNER.bytes_le + b"h" * 32)


@pytest.mark.parametrize(
    "sizes", [(76, 0, 0), (76, 0, 16), (77, 0, 48), (27, 0, 48), (28 + 40, 0, 40), (0xFFFFFFFF, 0, 48)]
)
def test_impossible_sizes_of_signature_lists_are_refused(sizes: tuple[int, int, int]) -> None:
    head = uefi.CERT_SHA256.bytes_le + b"".join(n.to_bytes(4, "little") for n in sizes)
    with pytest.raises(MalformedEvidenceError):
        uefi.parse_signature_lists(head + bytes(48))


def test_what_stands_in_the_place_of_a_certificate_is_described_all_the_same() -> None:
    """Found by fuzzing: an X.509 version that nobody has defined raised an exception that nobody expected."""
    version = certificate("db").replace(b"\xa0\3\2\1\2", b"\xa0\3\2\1\x50")
    assert uefi.describe_certificate(certificate("db")) == uefi.describe_certificate(version) == "CN=Floor db"
    for bad in (b"", b"\x30\0", certificate("db")[:300]):
        assert uefi.describe_certificate(bad) == "that cannot be read"


def test_device_paths_become_text() -> None:
    images = [e for e in parse_event_log(log_bytes("setup-mode")).of_pcr(4) if e.type == 0x80000003]
    outer, inner = (uefi.parse_image_load(event.data) for event in images)
    assert outer.device_path == r"PciRoot(0x0)/Pci(0x3,0x0)/Scsi(0x0,0x0)/CDROM(0x0)/HD(1)/\EFI\BOOT\BOOTX64.EFI"
    assert inner.device_path == "VenMedia(55c5d1f8-04cd-46b5-8a20-e56cbb3052d0)"
    with pytest.raises(MalformedEvidenceError, match="a node of 0 bytes"):
        uefi.device_path(bytes(8))


@pytest.fixture(scope="module")
def uki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed image on the real stub; the "kernel" in it is the stub once more, as any PE image will do."""
    folder = tmp_path_factory.mktemp("uki")
    at = 0x1000000
    options: list[str] = []
    for name, content in SECTIONS.items():
        file = folder / name[1:]
        file.write_bytes(content or STUB.read_bytes())
        options += ["--add-section", f"{name}={file}", "--change-section-vma", f"{name}={0x14D000000 + at:#x}"]
        at += 0x100000
    run("objcopy", *options, str(STUB), str(folder / "unsigned.efi"))
    subject = ["-subj", "/CN=Test db", "-days", "9", "-nodes", "-newkey", "rsa:2048"]
    run("openssl", "req", "-x509", *subject, "-keyout", str(folder / "key"), "-out", str(folder / "crt"))
    signer = ["--key", str(folder / "key"), "--cert", str(folder / "crt")]
    run("sbsign", *signer, "--output", str(folder / "signed.efi"), str(folder / "unsigned.efi"))
    return folder


def run(*command: str) -> bytes:
    return subprocess.run(command, check=True, capture_output=True, timeout=30).stdout


@pytest.mark.host
def test_the_authenticode_digest_is_the_one_that_sbsign_signed(uki: Path) -> None:
    signed = (uki / "signed.efi").read_bytes()
    size = pe.parse_image(signed).certificates_size
    # SpcIndirectDataContent ends with DigestInfo: SHA-256, NULL, an octet string of 32 bytes.
    marked = bytes.fromhex("300d06096086480165030402010500") + b"\x04\x20"
    (digest,) = re.findall(re.escape(marked) + b"(.{32})", signed[-size:], re.DOTALL)[:1]
    assert pe.authenticode(signed) == digest
    unsigned = (uki / "unsigned.efi").read_bytes()
    assert pe.authenticode(unsigned + bytes(-len(unsigned) % 8)) == digest


@pytest.mark.host
def test_pcr_11_is_what_systemd_measure_computes(uki: Path) -> None:
    signed = (uki / "signed.efi").read_bytes()
    files = [f"--{name[1:]}={uki / name[1:]}" for name in SECTIONS]
    output = run(str(MEASURE), "calculate", "--bank=sha256", *files).decode()
    ours = {predict.pcr_value(predict.pcr11_events(signed, predict.BOOT_PHASES[:count])).hex() for count in range(1, 5)}
    assert ours == set(re.findall(r"11:sha256=([0-9a-f]{64})", output))


@pytest.mark.host
def test_pcr_4_counts_the_inner_kernel_only_without_secure_boot(uki: Path) -> None:
    signed = (uki / "signed.efi").read_bytes()
    on, off = (predict.pcr4_events(signed, secure_boot=mode) for mode in (True, False))
    assert off[: len(on)] == on
    assert [event.digest for event in off[len(on) :]] == [pe.authenticode(STUB.read_bytes())]
    assert on[2].digest == pe.authenticode(signed)


@pytest.mark.host
def test_another_stub_or_no_stub_is_refused(uki: Path) -> None:
    signed = (uki / "signed.efi").read_bytes()
    for changed, found in ((b"systemd-stub 257", "systemd-stub 257"), (b"other-loader 252", "no systemd-stub")):
        with pytest.raises(MalformedEvidenceError, match=found):
            predict.pcr11_events(signed.replace(b"systemd-stub 252", changed))
    with pytest.raises(MalformedEvidenceError, match="not a unified kernel image"):
        predict.pcr4_events(STUB.read_bytes(), secure_boot=False)


@pytest.mark.host
@settings(max_examples=60, deadline=1000)
@given(data=st.data())
def test_a_mutated_image_is_read_or_refused(data: st.DataObject) -> None:
    raw = bytearray(STUB.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, 0x400))
        raw[at : at + 2] = data.draw(st.binary(min_size=1, max_size=4))
    try:
        pe.authenticode(bytes(raw))
    except MalformedEvidenceError:
        return


def test_what_is_no_image_is_refused() -> None:
    for bad in (b"", b"MZ", b"MZ" + bytes(100), b"ELF" + bytes(100)):
        with pytest.raises(MalformedEvidenceError):
            pe.parse_image(bad)


@pytest.mark.parametrize(
    ("sections", "size", "words"),
    [(97, 0, "97 sections"), (96, 60 << 20, "claims 62914560 bytes"), (1, 0xFFFFFFFF, "claims 4294967295 bytes")],
)
def test_an_image_that_claims_to_be_huge_is_refused_before_it_takes_the_memory(
    sections: int, size: int, words: str
) -> None:
    head = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40) + b"PE\0\0"
    head += struct.pack("<HHIIIHH", 0x8664, sections, 0, 0, 0, 240, 0)
    optional = bytearray(240)
    struct.pack_into("<H", optional, 0, 0x20B)
    struct.pack_into("<I", optional, 108, 16)
    table = b"".join(b".a".ljust(8, b"\0") + struct.pack("<I", size) + bytes(28) for _ in range(sections))
    with pytest.raises(MalformedEvidenceError, match=words):
        pe.parse_image(head + bytes(optional) + table)


def test_a_pcr_value_is_the_chain_of_its_extends() -> None:
    first = hashlib.sha256(bytes(32) + b"a" * 32).digest()
    assert extend_all("sha256", [b"a" * 32, b"b" * 32]) == hashlib.sha256(first + b"b" * 32).digest()
