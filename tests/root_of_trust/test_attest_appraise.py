"""The decider, by recorded boots and by attacks on them: attacks are named in words, accidents are untrusted."""

import itertools
import struct
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from attest_support import (
    EK_IDENTITY,
    NOW,
    RECORDED,
    TPM,
    certificate,
    event,
    evidence,
    header,
    keys,
    log_bytes,
    policy,
    reference,
    two_banks,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.root_of_trust.attestation import predict, uefi
from freehold.root_of_trust.attestation.appraise import PcrStatus, Verdict, appraise
from freehold.root_of_trust.attestation.event_log import (
    EV_EFI_VARIABLE_AUTHORITY,
    Event,
    EventLog,
    parse_event_log,
)
from freehold.root_of_trust.attestation.reference import ReferenceValues


def verdict(log: EventLog | bytes | None = None, mode: str = "secure-boot", **changes: object) -> Verdict:
    return appraise(evidence(log), policy(mode, **changes), NOW)


def changed(change: Callable[[list[Event]], None], mode: str = "secure-boot") -> EventLog:
    """The recorded log after `change`; the quote in `evidence` then fits it, as if it had happened."""
    log = parse_event_log(log_bytes(mode))
    events = list(log.events)
    change(events)
    return replace(log, events=tuple(events))


def measured(pcr: int, kind: int, data: bytes, digest: bytes | None = None) -> Event:
    return parse_event_log(header() + event(pcr, kind, data, digest)).events[0]


def where(events: list[Event], pcr: int, kind: int) -> int:
    return next(at for at, one in enumerate(events) if (one.pcr, one.type) == (pcr, kind))


@pytest.mark.parametrize("mode", ["secure-boot", "setup-mode"])
def test_a_recorded_boot_is_trusted_and_each_pcr_accounted_for(mode: str) -> None:
    result = verdict(log_bytes(mode), mode)
    assert (result.trusted, result.reasons) == (True, ())
    policed = {pcr for pcr, one in result.pcrs.items() if one.status is PcrStatus.MATCHED}
    assert policed == {0, 2, 4, 7, 11, 12, 13}
    assert result.pcrs[1].status is PcrStatus.RECORDED
    assert result.pcrs[7].value.hex() == RECORDED["pcrs"][mode]["7"]


def test_without_reference_values_firmware_is_only_recorded() -> None:
    result = verdict(reference=None)
    assert result.trusted
    assert result.pcrs[0].status is result.pcrs[2].status is PcrStatus.RECORDED


def test_setup_mode_is_named_when_secure_boot_is_expected() -> None:
    result = verdict(log_bytes("setup-mode"))
    assert not result.trusted
    assert "PCR 7: Secure Boot is off, against policy" in result.reasons
    assert "PCR 7: db lacks the certificate CN=Floor db" in result.reasons
    assert "PCR 7: the authority in db was not measured" in result.reasons
    assert any(reason.startswith("PCR 4: booted an image with Authenticode digest") for reason in result.reasons)


def test_a_foreign_certificate_in_db_is_named() -> None:
    foreign = uefi.signature_list(uefi.CERT_X509, uefi.GLOBAL_VARIABLE, (certificate("KEK"),))
    variable = uefi.VariableData(vendor=uefi.IMAGE_SECURITY_DATABASE, name="db", data=keys().db + foreign)

    def enrol(events: list[Event]) -> None:
        at = next(n for n, one in enumerate(events) if one.pcr == 7 and b"d\0b\0" + keys().db in one.data)
        events[at] = measured(7, events[at].type, variable.encode())

    (reason,) = verdict(changed(enrol)).reasons
    assert reason == "PCR 7: db holds a certificate CN=Floor KEK that is not the operator's"


def test_who_is_named_as_owner_of_our_keys_does_not_matter() -> None:
    """BMCs enrol with an owner GUID of their own; the firmware trusts the certificate, not the name beside it."""
    other = uefi.signature_list(uefi.CERT_X509, uefi.GLOBAL_VARIABLE, (certificate("db"),))

    def enrol(events: list[Event]) -> None:
        for at, one in enumerate(events):
            if one.pcr == 7 and one.type == 0x800000E0:
                old = uefi.parse_variable(one.data)
                data = uefi.GLOBAL_VARIABLE.bytes_le + old.data[16:]
                events[at] = measured(7, one.type, replace(old, data=data).encode())
            elif one.pcr == 7 and b"d\0b\0" + keys().db in one.data:
                events[at] = measured(7, one.type, replace(uefi.parse_variable(one.data), data=other).encode())

    result = verdict(changed(enrol))
    assert (result.trusted, result.reasons) == (True, ())


def test_a_variable_whose_digest_does_not_vouch_for_its_data_is_not_believed() -> None:
    def lie(events: list[Event]) -> None:
        at = where(events, 7, 0x80000001)
        events[at] = replace(events[at], digests={"sha256": b"\7" * 32})

    (reason,) = verdict(changed(lie)).reasons
    assert reason.startswith("PCR 7: event 4 (EV_EFI_VARIABLE_DRIVER_CONFIG) with digest 0707")


def test_another_image_is_named_with_its_digest_and_the_expected_one() -> None:
    def swap(events: list[Event]) -> None:
        at = where(events, 4, 0x80000003)
        events[at] = replace(events[at], digests={"sha256": b"\6" * 32})

    (reason,) = verdict(changed(swap)).reasons
    assert reason.startswith("PCR 4: booted an image with Authenticode digest 0606")
    assert RECORDED["uki_authenticode"] in reason
    assert r"\EFI\BOOT\BOOTX64.EFI" in reason


def insert(before_image: bool) -> Callable[[list[Event]], None]:
    def change(events: list[Event]) -> None:
        at = where(events, 4, 0x80000003)
        events.insert(at if before_image else at + 1, measured(4, 0x80000003, b"shell", b"\5" * 32))

    return change


@pytest.mark.parametrize("before", [True, False])
def test_one_more_image_before_or_after_the_right_one_is_refused(before: bool) -> None:
    result = verdict(changed(insert(before)))
    assert not result.trusted
    assert "PCR 4: booted an image with Authenticode digest 0505" in result.reasons[0]


def test_a_retry_after_an_image_was_started_is_refused() -> None:
    def again(events: list[Event]) -> None:
        at = where(events, 4, 0x80000003) + 1
        events[at:at] = [measured(4, 0x80000007, data) for data in (predict.RETURNING, predict.CALLING)]

    assert len(verdict(changed(again)).reasons) == 2


def test_an_event_type_may_lie_but_a_digest_may_not() -> None:
    def relabel(events: list[Event]) -> None:
        at = where(events, 4, 0x80000003)
        events.insert(at, measured(4, 0x80000007, predict.CALLING, b"\5" * 32))

    assert not verdict(changed(relabel)).trusted


def test_a_firmware_error_and_a_second_separator_are_refused() -> None:
    def failed(events: list[Event]) -> None:
        events[where(events, 5, 4)] = measured(5, 4, b"\xff" * 4)

    def twice(events: list[Event]) -> None:
        events.append(measured(3, 4, bytes(4)))

    def disguised(events: list[Event]) -> None:
        events.append(measured(3, 5, bytes(4)))

    def none(events: list[Event]) -> None:
        del events[where(events, 6, 4)]

    assert verdict(changed(failed)).reasons == ("PCR 5: the firmware reported an error: its separator is not zero",)
    assert verdict(changed(twice)).reasons == ("PCR 3: there are 2 separators where one belongs",)
    assert verdict(changed(disguised)).reasons == ("PCR 3: there are 2 separators where one belongs",)
    assert verdict(changed(none)).reasons == ("PCR 6: there are 0 separators where one belongs",)


def test_another_firmware_is_named_by_its_event() -> None:
    def flash(events: list[Event]) -> None:
        at = where(events, 0, 0x80000008)
        events[at] = replace(events[at], digests={"sha256": b"\4" * 32})

    (reason,) = verdict(changed(flash)).reasons
    assert reason.startswith("PCR 0: event 2 (EV_EFI_PLATFORM_FIRMWARE_BLOB of 917504 bytes at 0x")
    assert f" has digest {'04' * 32}, approved for Example R1 BIOS 1.1 is " in reason
    assert reason.endswith(reference().digests["0"][1])


def test_any_approved_variant_will_do_and_the_closest_one_names_the_difference() -> None:
    approved = reference()
    first, blob, *rest = approved.digests["0"]
    newer = reference(version="1.2", digests={"0": (first, "05" * 32, *rest), "2": approved.digests["2"]})
    other = reference(version="0.9", digests={"0": ("06" * 32,), "2": ("07" * 32,)})
    assert verdict(reference=(other, newer, approved)).trusted
    assert not verdict(reference=(other, newer)).trusted
    (reason,) = verdict(reference=(other, newer)).reasons
    assert reason.endswith(f" has digest {blob}, approved for Example R1 BIOS 1.2 is {'05' * 32}")


def test_option_roms_and_firmware_may_be_of_two_approved_variants() -> None:
    """A variant is a machine that was seen; a card that was approved in one may stand in another."""
    approved = reference()
    card = reference(digests={"0": ("06" * 32,), "2": approved.digests["2"]})
    firmware = reference(digests={"0": approved.digests["0"], "2": ()})
    assert verdict(reference=(card, firmware)).trusted


def test_no_approved_variant_is_not_the_same_as_no_policy() -> None:
    words = "no reference values are approved for this server's firmware"
    assert verdict(reference=()).reasons == (f"PCR 0: {words}", f"PCR 2: {words}")


def test_a_measurement_that_is_missing_or_too_much_is_named() -> None:
    approved = reference()
    digests = {"0": (*approved.digests["0"], "08" * 32), "2": approved.digests["2"][:-1]}
    missing, surplus = verdict(reference=(reference(digests=digests),)).reasons
    number = len(approved.digests["0"]) + 1
    assert missing == f"PCR 0: measurement {number}, approved for Example R1 BIOS 1.1, was not made: {'08' * 32}"
    assert surplus.endswith("approved for Example R1 BIOS 1.1 is nothing more")


def test_firmware_that_says_its_version_is_quoted_but_only_if_a_digest_vouches_for_it() -> None:
    version = "2.0\n\x1b[2Jall is well".encode("utf-16-le")

    def says(digest: bytes | None) -> str:
        (reason,) = verdict(changed(lambda events: events.insert(1, measured(0, 8, version, digest)))).reasons
        return reason

    assert says(None).startswith(
        'PCR 0: event 1 (EV_S_CRTM_VERSION "2.0\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}[2J'
    )
    assert says(bytes(32)).startswith("PCR 0: event 1 (EV_S_CRTM_VERSION) has digest 0000")


def test_an_option_rom_that_nobody_approved_is_named() -> None:
    def plug(events: list[Event]) -> None:
        events.insert(where(events, 2, 4), measured(2, 0x80000004, b"rom"))

    (reason,) = verdict(changed(plug)).reasons
    assert reason.startswith("PCR 2: event 1 (EV_EFI_BOOT_SERVICES_DRIVER) has digest")


def test_another_command_line_and_a_system_extension_are_refused() -> None:
    log = changed(lambda events: events.append(measured(12, 0x0D, b"init=/bin/sh")))
    (reason,) = verdict(log).reasons
    assert reason.startswith("PCR 12: it must be untouched, but event 1 (EV_IPL)")
    (reason,) = verdict(pcr11=(bytes(32),)).reasons
    assert reason.startswith(f"PCR 11: the unified kernel image measured {RECORDED['pcr11']}")


def test_cve_2025_13609_another_tpm_is_another_server() -> None:
    (reason,) = verdict(ek_identity="cd" * 32).reasons
    assert reason == f"the TPM is {EK_IDENTITY[:16]}…, not this server's {'cd' * 8}…"


@pytest.mark.parametrize("age", [timedelta(minutes=6), timedelta(seconds=-1)])
def test_an_old_quote_and_one_from_the_future_are_refused(age: timedelta) -> None:
    (reason,) = appraise(evidence(), policy(), NOW + age).reasons
    assert reason.startswith("the quote of 2026-11-23 12:00:00 is not of the last")


def test_cve_2022_0317_a_pcr_that_policy_needs_but_nobody_quoted_is_refused() -> None:
    given = evidence()
    partial = replace(given, pcrs={pcr: value for pcr, value in given.pcrs.items() if pcr not in (4, 7)})
    (reason,) = appraise(partial, policy(), NOW).reasons
    assert reason == "the quote does not cover PCR 4, 7, which policy needs"


def test_more_that_is_forbidden_is_no_reason_but_less_is() -> None:
    """dbx grows by updates that the operator's KEK signed."""
    old = keys().dbx
    more = old + uefi.signature_list(uefi.CERT_SHA256, uefi.GLOBAL_VARIABLE, (b"\1" * 32,))

    def measure_dbx(contents: bytes) -> Callable[[list[Event]], None]:
        def change(events: list[Event]) -> None:
            variable = uefi.VariableData(vendor=uefi.IMAGE_SECURITY_DATABASE, name="dbx", data=contents)
            at = next(n for n, one in enumerate(events) if one.pcr == 7 and b"d\0b\0x\0" in one.data)
            events[at] = measured(7, events[at].type, variable.encode())

        return change

    assert verdict(changed(measure_dbx(more))).trusted
    (reason,) = verdict(changed(measure_dbx(more[len(old) :]))).reasons
    assert reason.startswith("PCR 7: dbx lacks the SHA-256 hash e3b0c442")


def retyped(name: str, kind: int, contents: bytes) -> Callable[[list[Event]], None]:
    """The variable's event with another type, which no digest protects, and other contents."""

    def change(events: list[Event]) -> None:
        title = name.encode("utf-16-le")
        at = next(n for n, one in enumerate(events) if one.pcr == 7 and one.data[32:].startswith(title))
        variable = uefi.VariableData(vendor=uefi.IMAGE_SECURITY_DATABASE, name=name, data=contents)
        events[at] = measured(7, kind, variable.encode())

    return change


def test_the_type_of_an_event_does_not_say_how_it_is_compared() -> None:
    """An authority is compared without its first 16 bytes. In dbx these are the list's type: without them firmware
    forbids nothing."""
    neutral = uefi.GLOBAL_VARIABLE.bytes_le + keys().dbx[16:]
    (reason,) = verdict(changed(retyped("dbx", EV_EFI_VARIABLE_AUTHORITY, neutral))).reasons
    assert reason.startswith("PCR 7: ")
    neutral = uefi.GLOBAL_VARIABLE.bytes_le + keys().db[16:]
    assert not verdict(changed(retyped("db", EV_EFI_VARIABLE_AUTHORITY, neutral))).trusted


def test_an_authority_is_compared_as_one_whatever_its_type() -> None:
    """The entry and its owner: as a list of signatures it would be something else."""
    entry = uefi.parse_signature_lists(keys().db)[0]

    def change(owner: uuid.UUID, data: bytes) -> EventLog:
        def admit(events: list[Event]) -> None:
            at = where(events, 7, EV_EFI_VARIABLE_AUTHORITY)
            encoded = replace(entry, owner=owner, data=data).encode()
            variable = uefi.VariableData(vendor=uefi.IMAGE_SECURITY_DATABASE, name="db", data=encoded)
            events[at] = measured(7, 0x80000001, variable.encode())

        return changed(admit)

    assert verdict(change(uefi.GLOBAL_VARIABLE, entry.data)).trusted
    (reason,) = verdict(change(entry.owner, certificate("KEK"))).reasons
    assert reason.startswith("PCR 7: the image was admitted by CN=Floor KEK, not by")


def test_a_variable_of_the_same_name_but_another_vendor_is_another_variable() -> None:
    def rename(events: list[Event]) -> None:
        at = next(n for n, one in enumerate(events) if one.pcr == 7 and b"d\0b\0" + keys().db in one.data)
        variable = replace(uefi.parse_variable(events[at].data), vendor=uefi.GLOBAL_VARIABLE)
        events[at] = measured(7, events[at].type, variable.encode())

    (reason,) = verdict(changed(rename)).reasons
    assert reason == "PCR 7: variable db stands where db was expected"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reset_count": 2}, "the TPM's reset counters went back from 3/0 to 2/0"),
        ({"restart_count": 1, "reset_count": 2}, "the TPM's reset counters went back from 3/0 to 2/1"),
        ({"clock": 999}, "the TPM's clock went back from 1000 to 999 ms within one boot"),
        ({"reset_count": 4, "clock": 5}, None),
        ({"restart_count": 1, "clock": 5}, None),
        ({"clock": 1001, "safe": False}, None),
    ],
)
def test_a_stale_clock_is_another_tpm_or_an_older_state(changes: dict[str, int], words: str | None) -> None:
    given = replace(evidence(), tpm=replace(TPM, clock=replace(TPM.clock, **changes)))
    assert appraise(given, policy(last_seen=TPM), NOW).reasons == ((words,) if words else ())
    assert appraise(given, policy(last_seen=None), NOW).trusted


def test_older_tpm_firmware_is_refused_and_newer_is_a_finding() -> None:
    older, newer = (replace(TPM, firmware_version=version << 32) for version in (0x0007_0054, 0x0007_0056))
    (reason,) = appraise(replace(evidence(), tpm=older), policy(last_seen=TPM), NOW).reasons
    assert reason == "the TPM's firmware went back from 7.85.0.0 to 7.84.0.0"
    result = appraise(replace(evidence(), tpm=newer), policy(last_seen=TPM), NOW)
    assert result.trusted
    assert [finding.kind for finding in result.findings] == ["tpm-firmware"]
    assert "was 7.85.0.0 at the last quote, and is 7.86.0.0" in result.findings[0].detail


def test_cve_2021_42299_banks_that_disagree_about_one_measurement_are_refused() -> None:
    """CVE-2021-42299 once more: a digest of a good value in the bank that policy looks at, the truth in the other."""
    log = parse_event_log(two_banks())
    both = replace(TPM, banks={"sha256": True, "sha384": True})
    assert appraise(replace(evidence(log), tpm=both), policy(), NOW).trusted
    events = list(log.events)
    at = where(events, 7, 0x80000001)
    events[at] = replace(events[at], digests=events[at].digests | {"sha384": b"\7" * 48})
    lying = replace(log, events=tuple(events))
    (reason,) = appraise(replace(evidence(lying), tpm=both), policy(), NOW).reasons
    assert reason.startswith(
        f"PCR 7: event {at + 1} (EV_EFI_VARIABLE_DRIVER_CONFIG) has a sha384 digest of something else"
    )
    assert appraise(replace(evidence(lying), tpm=TPM), policy(), NOW).trusted  # nobody quoted that bank


def test_a_log_that_does_not_fit_the_quote_is_refused() -> None:
    given = evidence()
    (reason,) = appraise(replace(given, pcrs={**given.pcrs, 1: bytes(32)}), policy(), NOW).reasons
    assert reason == "PCR 1: the event log does not replay to the quoted value"


def test_cve_2022_3500_an_exception_while_appraising_is_untrusted() -> None:
    broken = replace(evidence(), pcrs=None)  # type: ignore[arg-type]
    result = appraise(broken, policy(), NOW)
    assert not result.trusted
    assert "could not be appraised" in result.reasons[0]
    no_bank = replace(evidence(), log=replace(evidence().log, banks=("sha1",)))
    assert "no sha256 bank" in appraise(no_bank, policy(), NOW).reasons[0]


def test_a_thousand_measurements_are_a_few_sentences() -> None:
    """A statement in the evidence log has 65,535 bytes: what cannot be recorded could not quarantine either."""

    def fill(events: list[Event]) -> None:
        path = struct.pack("<QQQQHH", 0, 0, 0, 2000, 0x0404, 2000) + ("\N{GRINNING FACE}" * 499).encode("utf-16-le")
        for pcr in range(16):
            events += [measured(pcr, kind, path, bytes([pcr]) * 32) for kind in (4, 0x80000003, 0x80000004)] * 60

    result = verdict(changed(fill))
    assert not result.trusted
    assert len("".join(result.reasons).encode()) < 30_000
    assert sum("172 more of this kind" in reason for reason in result.reasons) == 4  # PCR 4, 7, 12, 13


def test_an_empty_policy_trusts_nothing() -> None:
    result = verdict(pcr4=(), pcr7=(), pcr11=())
    assert not result.trusted
    assert {pcr for pcr, one in result.pcrs.items() if one.status is PcrStatus.MISMATCHED} == {4, 7, 11}


def swapped(log: EventLog, one: int, other: int) -> EventLog:
    """The log with two of its events in each other's place."""
    events = list(log.events)
    events[one], events[other] = events[other], events[one]
    return replace(log, events=tuple(events))


def neighbours(log: EventLog, pcr: int) -> list[tuple[int, int]]:
    """Positions of events that follow one another in this PCR, whatever other PCRs measure between them."""
    places = [at for at, one in enumerate(log.events) if one.pcr == pcr and one.type != 3]
    return list(itertools.pairwise(places))


def with_option_roms() -> tuple[EventLog, ReferenceValues]:
    """A boot that measures two option ROMs, which the recorded one does not, and its approved reference values."""
    recorded = parse_event_log(log_bytes())
    at = where(list(recorded.events), 2, 4)
    roms = [measured(2, 0x80000004, name) for name in (b"the card's", b"the other card's")]
    log = replace(recorded, events=(*recorded.events[:at], *roms, *recorded.events[at:]))
    return log, reference(log)


@pytest.mark.parametrize(("pcr", "count"), [(0, 3), (2, 2), (4, 4), (7, 6)])
def test_two_neighbouring_events_in_the_wrong_order_are_refused(pcr: int, count: int) -> None:
    """The same measurements in another order are another boot. A PCR 7 with the authority before the
    separator says that it was used before the policy was."""
    log, approved = with_option_roms()
    assert verdict(log, reference=(approved,)).trusted
    pairs = neighbours(log, pcr)
    assert len(pairs) == count
    for one, other in pairs:
        assert log.events[one].digests != log.events[other].digests
        result = verdict(swapped(log, one, other), reference=(approved,))
        assert not result.trusted, (one, other)
        assert all(reason.startswith(f"PCR {pcr}: ") for reason in result.reasons), result.reasons


@settings(max_examples=100, deadline=2000)
@given(data=st.data())
def test_no_single_change_to_a_policed_pcr_is_ever_trusted(data: st.DataObject) -> None:
    """Drop, double, swap or alter any event of PCR 0, 2, 4 or 7, with a quote that fits: always untrusted."""
    log, approved = with_option_roms()
    events = list(log.events)
    policed = [n for n, one in enumerate(events) if one.pcr in (0, 2, 4, 7) and one.type != 3]
    at = data.draw(st.sampled_from(policed))
    match data.draw(st.sampled_from(["drop", "double", "swap", "alter"])):
        case "drop":
            del events[at]
        case "double":
            events.insert(at, events[at])
        case "swap":
            same = [n for n in policed if events[n].pcr == events[at].pcr]
            other = data.draw(st.sampled_from([n for n in same if events[n].digests != events[at].digests]))
            events[at], events[other] = events[other], events[at]
        case "alter":
            events[at] = replace(events[at], digests={"sha256": data.draw(st.binary(min_size=32, max_size=32))})
    assert not verdict(replace(log, events=tuple(events)), reference=(approved,)).trusted
