"""`freehold baseline`: reference values as people propose, read, compare, approve and withdraw them."""

import json
from io import BytesIO
from pathlib import Path

import msgspec
import pytest
from cli_support import Shell

from freehold.evidence import Ed25519Signer
from freehold.model.status import Facts, FirmwareFact, ServerState, ServerStatus
from freehold.orchestration.package_measurements import pcr_value
from freehold.root_of_trust.attestation.reference import ReferenceState, ReferenceValues
from freehold.root_of_trust.depot import Depot, Description, Kind
from freehold.root_of_trust.depot.metadata import Days
from freehold.root_of_trust.depot.staging import sign_staged
from freehold.root_of_trust.pki import utc_now

A, B, C = (letter * 64 for letter in "abc")
NOTHING = "the depot lists no package of Halden HX2 BIOS 1.0: there is nothing to compare with"


def values(*pcr0: str, version: str = "1.0") -> ReferenceValues:
    return ReferenceValues(vendor="Halden", model="HX2", version=version, digests={"0": pcr0, "2": ()})


def file_of(folder: Path, wanted: ReferenceValues) -> Path:
    path = folder / f"{wanted.id}.json"
    path.write_bytes(msgspec.json.encode(wanted))
    return path


@pytest.fixture
def people(site: Shell, tmp_path: Path) -> Path:
    for name in ("alice", "bob", "carol"):
        assert site("operator", "keygen", tmp_path / f"{name}.key", "--no-passphrase").code == 0
    named = (f"{name}={tmp_path}/{name}.key.pub" for name in ("alice", "bob", "carol"))
    assert site("operator", "found", *named).code == 0
    return tmp_path


def propose(site: Shell, folder: Path, *pcr0: str) -> str:
    wanted = values(*pcr0)
    answer = site("baseline", "propose", file_of(folder, wanted), "--origin", "golden machine")
    assert answer.out == f"{wanted.id}: Halden HX2 BIOS 1.0, pending\n"
    return wanted.id


def approve(site: Shell, people: Path, reference: str) -> None:
    for name in ("alice", "bob"):
        assert site("baseline", "approve", reference, "--key", people / f"{name}.key").code == 0
    site.store(lambda store: store.references.approve(reference, 1.0))


def publish(site: Shell, signed: tuple[str, ...]) -> None:
    """The depot lists BIOS 1.0, with what the operators signed that its PCR 0 is."""
    depot, online, now = Depot(site.state / "depot"), Ed25519Signer.generate(), utc_now()
    keys = {name: Ed25519Signer.generate() for name in ("alice", "bob", "carol")}
    depot.found({name: key.public_key for name, key in keys.items()}, online.public_key, Days(), now)
    about = Description(
        kind=Kind.FIRMWARE, vendor="Halden", component="bios", version="1.0", models=("HX2",),
        unsigned_because="a test", measurements={0: signed},
    )  # fmt: skip
    with depot.receiving(BytesIO(b"bios")) as received:
        depot.add(received, "bios.bin", about, now)
    for name in ("alice", "bob"):
        sign_staged(depot.staging, depot.staged(), keys[name])
    depot.publish([online], now)


def test_values_are_proposed_and_two_people_approve_them(site: Shell, people: Path) -> None:
    reference = propose(site, people, A, B)
    again = site("baseline", "propose", file_of(people, values(A, B)), "--origin", "another", "-o", "json").json()
    assert (again["id"], again["state"], again["origin"]) == (reference, "pending", "golden machine")
    asked = site("approval", "show", again["approval"], "-o", "json").json()
    assert (asked["request"]["details"]["depot"], asked["approved_by"]) == (NOTHING, [])
    one = site("baseline", "approve", reference, "--key", people / "alice.key", "-o", "json").json()
    assert (one["signed"], one["approved_by"]) == ("alice", ["alice"])
    said = site("baseline", "approve", reference, "--key", people / "bob.key").out
    assert said == f"{reference}: signed (bob); approved by alice, bob\n"
    shown = site("baseline", "show", reference).out
    assert "approved by:  alice, bob\n" in shown
    assert f"depot:        {NOTHING}\n" in shown
    assert f"PCR 0    1  {B}" in shown


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "does not hold reference values"),
        (json.dumps(msgspec.to_builtins(values(A)) | {"digests": {"0": [A]}}), 'SHA-256 digests for PCR "0" and "2"'),
        (json.dumps(msgspec.to_builtins(values("ab"))), 'SHA-256 digests for PCR "0" and "2"'),
        (json.dumps(msgspec.to_builtins(values("xy" * 32))), "does not hold reference values"),
        (json.dumps(msgspec.to_builtins(values(A)) | {"more": 1}), "does not hold reference values"),
    ],
)
def test_a_file_that_holds_no_values_is_refused(site: Shell, tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    answer = site("baseline", "propose", tmp_path / "bad.json", "--origin", "x")
    assert answer.code == 1
    assert why in answer.err
    assert site("baseline", "list", "-o", "json").json()["items"] == []


def test_values_are_listed_page_by_page(site: Shell, people: Path) -> None:
    both = sorted((propose(site, people, A), propose(site, people, B)))
    first = site("baseline", "list", "--limit", "1", "-o", "json").json()
    assert ([each["id"] for each in first["items"]], first["next"]) == (both[:1], both[0])
    table = site("baseline", "list", "--after", both[0]).out.splitlines()
    assert table[0].split() == ["ID", "STATE", "VENDOR", "MODEL", "BIOS", "ORIGIN"]
    assert table[1].split() == [both[1], "pending", "Halden", "HX2", "1.0", "golden", "machine"]


def test_two_sets_are_compared_event_by_event(site: Shell, people: Path) -> None:
    one, other = propose(site, people, A, B), propose(site, people, A, C)
    answer = site("baseline", "diff", one, other)
    assert answer.code == 3
    assert answer.out.splitlines()[0] == f"PCR 0: event 1 is {C}, in {one} it is {B}"
    assert answer.out.splitlines()[1:] == [f"depot, {one}: {NOTHING}", f"depot, {other}: {NOTHING}"]
    shown = site("baseline", "diff", one, other, "-o", "json").json()
    assert shown["differs"] == [f"PCR 0: event 1 is {C}, in {one} it is {B}"]
    assert shown["depot"][one] == {"package": None, "matches": None, "differs": [], "said": NOTHING}
    same = site("baseline", "diff", one, one)
    assert (same.code, "event" in same.out) == (0, False)
    missing = site("baseline", "diff", one, "0" * 16)
    assert missing.code == 1
    assert "there are no reference values 0000000000000000" in missing.err


def test_what_the_depot_says_stands_beside_the_values(site: Shell, people: Path) -> None:
    good, bad = propose(site, people, A, B), propose(site, people, A, C)
    publish(site, (pcr_value([A, B]),))
    lines = site("baseline", "diff", good, bad).out.splitlines()[1:]
    assert lines[0] == f"depot, {good}: PCR 0 is what the operators signed with firmware/bios.bin"
    differs = f"PCR 0: firmware/bios.bin, as the operators signed it, measures {pcr_value([A, B])}"
    assert lines[1].startswith(f"depot, {bad}: {differs}, and this server {pcr_value([A, C])}")
    shown = {each: site("baseline", "show", each, "-o", "json").json()["depot"] for each in (good, bad)}
    assert [(each["package"], each["matches"]) for each in shown.values()] == [
        ("firmware/bios.bin", True), ("firmware/bios.bin", False),
    ]  # fmt: skip
    (site.state / "depot/repository/metadata/timestamp.json").write_text("{}")
    assert "depot:        the depot cannot be used: " in site("baseline", "show", good).out


def test_the_closest_approved_values_to_what_a_server_measured(site: Shell, people: Path) -> None:
    assert site("baseline", "closest", "server-9").code == 1
    answer = site("baseline", "closest", "server-1")
    assert (answer.code, "its firmware was not measured yet" in answer.err) == (1, True)
    measured = values(A, C)
    board = FirmwareFact(vendor="Halden", model="HX2", version="1.0")
    facts = Facts(learned_reference=measured.digests, firmware=board)
    site.set_status("server-1", ServerStatus(state=ServerState.PREPARING, facts=facts))
    assert "closest approved: none\n" in site("baseline", "closest", "server-1").out
    known, far = propose(site, people, A, B), propose(site, people, B)
    for each in (known, far):
        approve(site, people, each)
    assert site("baseline", "closest", "server-1").out.splitlines() == [
        f"server-1 measured {measured.id} (Halden HX2 BIOS 1.0)",
        f"depot: {NOTHING}",
        f"closest approved: {known} (Halden HX2 BIOS 1.0)",
        f"differs: PCR 0: event 1 is {C}, in {known} it is {B}",
    ]
    shown = site("baseline", "closest", "server-1", "-o", "json").json()
    assert (shown["measured"], shown["closest"], len(shown["differs"])) == (measured.id, known, 1)


def test_trust_is_taken_away_in_two_degrees_and_never_given_back(site: Shell, people: Path) -> None:
    reference = propose(site, people, A)
    early = site("baseline", "revoke", reference, "--superseded")
    assert (early.code, "that are pending cannot become superseded" in early.err) == (1, True)
    approve(site, people, reference)
    assert site("baseline", "revoke", reference, "--superseded").out.endswith("BIOS 1.0, superseded\n")
    assert site("baseline", "revoke", reference, "-o", "json").json()["state"] == "revoked"
    again = site("baseline", "revoke", reference)
    assert (again.code, "that are revoked cannot become revoked" in again.err) == (1, True)
    said = [line for line in site("events").out.splitlines() if f"reference values {reference} are" in line]
    assert [line.rsplit(None, 1)[-1] for line in said] == [ReferenceState.SUPERSEDED, ReferenceState.REVOKED]
    assert site("baseline", "revoke", "0" * 16).code == 1
