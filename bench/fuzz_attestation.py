#!/usr/bin/env python3
"""Throw mutated evidence at every parser of the attestation verifier: one JSON line, exit status 1 if anything broke.

    bench/fuzz_attestation.py [--inputs 1000000] [--processes 2] [--seed 0]

Seeds are the real logs, quotes, keys, certificates and images of tests/fixtures. Input N of a seed is the same on every
machine, so `--only TARGET:N` repeats one. Nothing may be raised but AttestationError, no input may take a second, and
`appraise` may raise nothing at all and trust nothing that was changed.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import struct
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from freehold.root_of_trust.attestation import pe, predict, uefi
from freehold.root_of_trust.attestation.appraise import Evidence, Policy, TpmState, appraise
from freehold.root_of_trust.attestation.certificate import read_certificate
from freehold.root_of_trust.attestation.ek import TpmRoots, check_ek_template, load_pem, verify_ek
from freehold.root_of_trust.attestation.errors import AttestationError
from freehold.root_of_trust.attestation.event_log import EventLog, parse_event_log, replay
from freehold.root_of_trust.attestation.quote import check_ak, check_quote
from freehold.root_of_trust.attestation.session import SELECTION
from freehold.root_of_trust.attestation.structures import ClockInfo, parse_attest, parse_public, parse_signature

TESTS = Path(__file__).resolve().parent.parent / "tests"
NOW = datetime(2026, 11, 23, tzinfo=UTC)
WHEN_MADE = datetime(2026, 11, 27, tzinfo=UTC)  # the software TPMs among the seeds
SLOW = 1.0  # seconds
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
STATE = TpmState(clock=ClockInfo(clock=1, reset_count=1, restart_count=0, safe=True), firmware_version=1, banks={})


class Seeds(NamedTuple):
    logs: list[bytes]
    publics: list[bytes]
    certificates: list[bytes]
    quotes: list[bytes]
    signatures: list[bytes]
    images: list[bytes]
    variables: list[bytes]
    lists: list[bytes]
    loads: list[bytes]


class Finding(NamedTuple):
    target: str
    number: int
    error: str


def seeds() -> Seeds:
    """Everything that was recorded, by kind."""
    files: dict[str, bytes] = {}
    for archive in ("eventlogs", "attestation"):
        with tarfile.open(TESTS / f"fixtures/{archive}.tar.xz") as opened:
            for member in opened.getmembers():
                if member.isfile() and (file := opened.extractfile(member)) is not None:
                    files[member.name] = file.read()
    recorded = TESTS / "root_of_trust/attest_data"
    logs = [path.read_bytes() for path in sorted(recorded.glob("*.log"))]
    logs += [data.rstrip(b"\xff") for name, data in files.items() if name.endswith(".bin") and len(data) > 1000]
    events = [event for log in logs[:2] for event in parse_event_log(log).events]
    variables = [event.data for event in events if event.type in (0x80000001, 0x800000E0)]
    ends = (".pem", ".cer", ".crt")
    return Seeds(
        logs=logs,
        publics=[data for name, data in files.items() if name.endswith(".public")],
        certificates=[one for name, data in files.items() if name.endswith(ends) for one in load_pem(data)],
        quotes=[data for name, data in files.items() if name.endswith("/quote")],
        signatures=[data for name, data in files.items() if name.endswith("/signature")],
        images=[image(image(b"kernel" * 20))],
        variables=variables,
        lists=[uefi.parse_variable(data).data for data in variables if len(data) > 100],
        loads=[event.data for event in events if event.type == 0x80000003],
    )


def pieces(log: bytes, length: int = 3) -> list[bytes]:
    """The log cut into short ones of so many events each, behind the header that says how digests are written: an input
    costs a tenth, and a change in it hits what a parser decides by."""
    parsed = parse_event_log(log)
    agile = parsed.events[0].number == 1
    at = begin = 32 + int.from_bytes(log[28:32], "little") if agile else 0
    head, found = log[:at], []
    for number, event in enumerate(parsed.events, 1):
        digests = sum(2 + len(digest) for digest in event.digests.values()) if agile else 20
        at += 8 + 4 * agile + digests + 4 + len(event.data)
        if number % length == 0 or number == len(parsed.events):
            found.append(head + log[begin:at])
            begin = at
    return found


def image(kernel: bytes) -> bytes:
    """A PE32+ image with the sections of a unified kernel image and a certificate table."""
    contents = {
        b".linux": kernel, b".osrel": b"ID=debian\n", b".cmdline": b"quiet\0", b".initrd": b"i" * 200,
        b".sdmagic": b"#### LoaderInfo: systemd-stub 252.39-1 ####",
    }  # fmt: skip
    head = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40) + b"PE\0\0"
    head += struct.pack("<HHIIIHH", 0x8664, len(contents), 0, 0, 0, 112 + 16 * 8, 0x22)
    optional = bytearray(112 + 16 * 8)
    struct.pack_into("<H", optional, 0, 0x20B)
    struct.pack_into("<II", optional, 56, 0x10000, 0x400)
    struct.pack_into("<I", optional, 108, 16)
    struct.pack_into("<II", optional, 112 + 8 * 4, 0x800, 0x40)
    table, body = b"", b""
    for name, content in contents.items():
        padded = content.ljust(-(-len(content) // 64) * 64, b"\0")
        table += (
            name.ljust(8, b"\0") + struct.pack("<IIII", len(content), 0, len(padded), 0x400 + len(body)) + bytes(16)
        )
        body += padded
    return (head + bytes(optional) + table).ljust(0x400, b"\0") + body + bytes(0x40)


def mutate(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """One to six changes of the kinds that parsers fall for."""
    raw = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        at = chance.randrange(len(raw)) if raw else 0
        match chance.randrange(9):
            case 0 if raw:
                raw[at] ^= 1 << chance.randrange(8)
            case 1 if raw:
                raw[at] = chance.randrange(256)
            case 2 | 3:  # a length, count or type, in either byte order
                size = chance.choice((1, 2, 4, 8))
                number = chance.choice(NUMBERS) & (1 << 8 * size) - 1
                raw[at : at + size] = number.to_bytes(size, chance.choice(("little", "big")))
            case 4:
                del raw[at : at + chance.choice((1, 2, 4, 16, 100))]
            case 5:
                raw[at:at] = chance.randbytes(chance.choice((1, 2, 4, 32)))
            case 6:  # something that stands elsewhere
                other = chance.choice(others)
                begin = chance.randrange(len(other)) if other else 0
                raw[at:at] = other[begin : begin + chance.choice((4, 16, 64, 400))]
            case 7:
                del raw[at:]
            case 8:
                raw += chance.choice((b"\0", b"\xff", b"\x30")) * chance.choice((1, 7, 300))
    return bytes(raw)


def targets(given: Seeds) -> dict[str, tuple[list[bytes], int, Callable[[bytes], object]]]:
    """By name: its seeds, its share of the inputs in percent, and what is done with an input."""
    roots = TpmRoots(certificates=tuple(map(read_certificate, given.certificates)))
    eks = [parse_public(data) for data in given.publics if b"\x00\x10\x00\x18" not in data]
    ak = next(parse_public(data) for data in given.publics if b"\x00\x10\x00\x18" in data)
    quote, signature = given.quotes[0], given.signatures[0]
    good = parse_event_log(given.logs[0])
    pcrs = {pcr: value for pcr, value in replay(good, "sha256").items() if pcr not in (10, 15)}
    policy = Policy(id="fuzz", ek_identity="ek", pcr4=(), pcr7=(), pcr11=(pcrs[11],))

    def short_log(data: bytes) -> EventLog:
        parsed = parse_event_log(data)
        for bank in set(parsed.banks) - {"sm3_256"}:
            replay(parsed, bank)
        return parsed

    def log(data: bytes) -> None:
        parsed = short_log(data)
        state = TpmState(clock=STATE.clock, firmware_version=1, banks=dict.fromkeys(parsed.banks, True))
        evidence = Evidence(ek_identity="ek", ak_name=b"", nonce=b"", pcrs=pcrs, log=parsed, tpm=state, quoted_at=NOW)
        verdict = appraise(evidence, policy, NOW)
        assert not verdict.trusted and all(reason.isprintable() for reason in verdict.reasons)  # noqa: PT018

    def public(data: bytes) -> None:
        key = parse_public(data)
        for check in (check_ak, check_ek_template):
            try:
                check(key)
            except AttestationError:
                continue

    def certificate(data: bytes) -> None:
        read = read_certificate(data)
        _ = [one for one in roots.certificates if read.is_issued_by(one)]
        own = [key for key in eks if key.raw[-32:] in read.key_bits]
        verify_ek(data, (own or eks)[0], roots, now=WHEN_MADE)

    def quoted(attest: bytes, signed: bytes) -> None:
        check_quote(ak, attest, signed, qualifying_data=b"n" * 32, selection=SELECTION)
        assert (attest, signed) == (quote, signature), "a changed quote was accepted"

    def attest(data: bytes) -> None:
        parse_attest(data)
        quoted(data, signature)

    def signed(data: bytes) -> None:
        parse_signature(data)
        quoted(quote, data)

    def whole_image(data: bytes) -> None:
        pe.authenticode(data)
        predict.pcr4_events(data, secure_boot=False)
        predict.pcr11_events(data)

    return {
        "event log": (given.logs, 20, log),
        "short event log": ([piece for whole in given.logs for piece in pieces(whole)], 10, short_log),
        "certificate": (given.certificates, 15, certificate),
        "public area": (given.publics, 10, public),
        "quote": (given.quotes, 10, attest),
        "signature": (given.signatures, 5, signed),
        "PE image": (given.images, 10, whole_image),
        "UEFI variable": (given.variables, 5, uefi.parse_variable),
        "signature list": (given.lists, 10, lambda data: [one.describe() for one in uefi.parse_signature_lists(data)]),
        "image load": (given.loads, 5, uefi.parse_image_load),
    }


def inputs(name: str, given: list[bytes], numbers: range) -> Iterator[tuple[int, bytes]]:
    for number in numbers:
        chance = random.Random(f"{name}/{number}")
        yield number, mutate(given[number % len(given)], given, chance)


def run(name: str, given: list[bytes], action: Callable[[bytes], object], numbers: range) -> dict[str, Any]:
    """Counts, findings and the slowest input of one stretch of inputs."""
    accepted, findings = 0, []
    slowest = (0.0, -1)
    for number, data in inputs(name, given, numbers):
        begun = time.process_time()
        try:
            action(data)
            accepted += 1
        except AttestationError:
            pass
        except Exception as error:
            findings.append(Finding(name, number, f"{type(error).__name__}: {error}"[:300]))
        slowest = max(slowest, (time.process_time() - begun, number))
    if slowest[0] > SLOW:
        findings.append(Finding(name, slowest[1], f"took {slowest[0]:.1f} s"))
    return {"target": name, "inputs": len(numbers), "accepted": accepted, "slowest": slowest, "findings": findings}


_targets: dict[str, tuple[list[bytes], int, Callable[[bytes], object]]] = {}


def stretch(work: tuple[str, range]) -> dict[str, Any]:
    """In a worker."""
    if not _targets:
        _targets.update(targets(seeds()))
    name, numbers = work
    given, _, action = _targets[name]
    return run(name, given, action, numbers)


def fuzz(total: int, processes: int, seed: int) -> dict[str, Any]:
    """`total` inputs, shared out over the targets; `seed` begins elsewhere in the same endless row of inputs."""
    work, step = [], 2000
    for name, (_, share, _) in targets(seeds()).items():
        first, last = seed, seed + max(1, total * share // 100)
        work += [(name, range(at, min(at + step, last))) for at in range(first, last, step)]
    begun = time.monotonic()
    if processes == 1:
        results = list(map(stretch, work))
    else:
        with multiprocessing.get_context("spawn").Pool(processes, os.nice, (10,)) as pool:
            results = list(pool.imap_unordered(stretch, work))
    by_target: dict[str, dict[str, Any]] = {}
    for one in results:
        of = by_target.setdefault(one["target"], {"inputs": 0, "accepted": 0, "slowest_ms": 0.0, "slowest_input": -1})
        of["inputs"] += one["inputs"]
        of["accepted"] += one["accepted"]
        if one["slowest"][0] * 1000 > of["slowest_ms"]:
            of["slowest_ms"], of["slowest_input"] = round(one["slowest"][0] * 1000, 1), one["slowest"][1]
    return {
        "bench": "fuzz_attestation",
        "inputs": sum(one["inputs"] for one in by_target.values()),
        "seconds": round(time.monotonic() - begun, 1),
        "findings": [finding._asdict() for one in results for finding in one["findings"]][:50],
        "targets": by_target,
    }


def repeat(only: str) -> None:
    """One input, with its traceback; its bytes go to standard output's SHA-256 for the record."""
    name, _, number = only.rpartition(":")
    given, _, action = targets(seeds())[name]
    ((_, data),) = inputs(name, given, range(int(number), int(number) + 1))
    print(f"{len(data)} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}")
    action(data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="number of the first input")
    parser.add_argument("--only", metavar="TARGET:N", help="repeat one input")
    options = parser.parse_args()
    if options.only:
        repeat(options.only)
        sys.exit()
    result = fuzz(options.inputs, options.processes, options.seed)
    print(json.dumps(result))
    sys.exit(bool(result["findings"]))
