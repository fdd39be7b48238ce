"""The depot's deciders: versions, floors, downgrade tickets, descriptions, people, expiry."""

import hashlib
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from depot_rig import NOW, Rig, about, content, day, wanted
from hypothesis import given
from hypothesis import strategies as st
from tuf.api.metadata import TargetFile

from freehold.evidence import Ed25519Signer, PublicKey
from freehold.model.findings import Severity
from freehold.root_of_trust.depot import (
    BelowSecurityFloor,
    Downgrade,
    DowngradeTicket,
    Kind,
    Seen,
    VendorSignature,
    downgrade_allowed,
    expiring,
)
from freehold.root_of_trust.depot.errors import PackageRefused, PeopleRefused, VersionsNotComparable
from freehold.root_of_trust.depot.floors import Floor, is_below, raised
from freehold.root_of_trust.depot.metadata import check_people
from freehold.root_of_trust.depot.package import Scheme, from_tuf, new_target, to_tuf
from freehold.root_of_trust.depot.seen import regressions
from freehold.root_of_trust.depot.versions import compare

SHA = "ab" * 32
VERSIONS = st.lists(st.integers(0, 30), min_size=1, max_size=5).map(lambda numbers: ".".join(map(str, numbers)))


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("1.0", "1.1"),
        ("2.9", "2.10"),
        ("2.6", "2.6.1"),
        ("U46 v2.10 (05/17/2023)", "U46 v2.12 (07/20/2023)"),
        ("A12", "A13"),
        ("1.2a", "1.2b"),
        ("1.0-rc1", "1.0-rc2"),
        ("7.00.00.171", "7.00.30.00"),
    ],
)
def test_versions_in_the_way_of_vendors(older: str, newer: str) -> None:
    assert compare(older, newer) < 0 < compare(newer, older)
    assert is_below(older, newer)
    assert not is_below(newer, older)


@pytest.mark.parametrize(("one", "other"), [("2.6", "2.6.0"), ("v1.0", "V1.0"), ("1-0", "1.0"), ("01.2", "1.2")])
def test_spellings_of_one_version(one: str, other: str) -> None:
    assert compare(one, other) == 0
    assert not is_below(one, other)


@pytest.mark.parametrize(("one", "other"), [("1.2", "1.2a"), ("A42 v1", "U46 v1"), ("1.0", "1.0-rc1"), ("1.a", "1.1")])
def test_what_only_the_vendor_knows_is_not_guessed(one: str, other: str) -> None:
    for pair in ((one, other), (other, one)):
        with pytest.raises(VersionsNotComparable, match="it cannot be told which"):
            compare(*pair)
        assert is_below(*pair), "nobody has shown that it is not below"


@given(VERSIONS, VERSIONS, VERSIONS)
def test_numbers_are_in_order(a: str, b: str, c: str) -> None:
    assert (compare(a, b) > 0) == (compare(b, a) < 0)
    assert compare(a, a) == 0
    if compare(a, b) <= 0 and compare(b, c) <= 0:
        assert compare(a, c) <= 0


def target(version: str, floor: str | None, *models: str, name: str = "x.bin") -> Any:
    return new_target(name, 1, SHA, about(version, security_floor=floor, models=models or ("M1",)))


def floor(version: str, model: str = "M1") -> Floor:
    return Floor(vendor="ACME", component="bios", model=model, version=version)


@given(st.lists(VERSIONS, min_size=1, max_size=6), st.randoms())
def test_floors_only_rise_whatever_the_order(versions: list[str], random: Any) -> None:
    targets = [target("99", version) for version in versions]
    (first,) = raised([], targets)
    random.shuffle(targets)
    (second,) = raised([], targets)
    assert compare(first.version, second.version) == 0
    assert all(compare(first.version, version) >= 0 for version in versions)
    assert raised([first], []) == (first,)
    assert compare(raised([first], [target("1", "0")])[0].version, first.version) == 0


def test_floors_are_of_one_model() -> None:
    found = raised([floor("1.0", "M2")], [target("3.0", "2.0", "M1", "M3"), target("3.0", None, "M4")])
    assert found == (floor("2.0"), floor("1.0", "M2"), floor("2.0", "M3"))


def sha256_of(version: str) -> str:
    return hashlib.sha256(content(version)).hexdigest()


def ticket(**changes: Any) -> DowngradeTicket:
    fields: dict[str, Any] = {
        "server": "s1", "vendor": "ACME", "component": "bios", "model": "M1", "from_version": "2.0",
        "to_version": "1.0", "sha256": sha256_of("1.0"),
    }  # fmt: skip
    return DowngradeTicket(**{**fields, "expires": NOW + timedelta(hours=1), **changes})


def ask(made: DowngradeTicket | None, *people: str, installed: str = "2.0") -> tuple[bool, str]:
    downgrade = Downgrade(made, people, "s1", installed) if made else None
    target = new_target("bios-1.0.bin", 1, sha256_of("1.0"), about("1.0"))
    return tuple(downgrade_allowed(downgrade, target, "M1", NOW))


def test_two_people_may_allow_exactly_one_downgrade() -> None:
    assert ask(ticket(), "alice", "bob") == (True, "")
    assert ask(None) == (False, "there is no downgrade ticket")


@pytest.mark.parametrize("people", [(), ("alice",), ("alice", "alice"), ("alice", " ALICE ")])
def test_one_person_is_not_two(people: tuple[str, ...]) -> None:
    allowed, reason = ask(ticket(), *people)
    assert not allowed
    assert f"{len(set(people[:1]))} of 2 people" in reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"server": "s2"}, "server 's2', not 's1'"),
        ({"vendor": "Other"}, "vendor 'Other', not 'ACME'"),
        ({"sha256": SHA}, f"SHA-256 '{SHA}', not"),
        ({"component": "bmc"}, "component 'bmc', not 'bios'"),
        ({"model": "M2"}, "model 'M2', not 'M1'"),
        ({"from_version": "2.1"}, "installed version '2.1', not '2.0'"),
        ({"to_version": "0.9"}, "wanted version '0.9', not '1.0'"),
        ({"expires": NOW}, "expired at"),
    ],
)
def test_a_ticket_for_something_else(changes: dict[str, Any], reason: str) -> None:
    allowed, found = ask(ticket(**changes), "alice", "bob")
    assert not allowed
    assert reason in found


def test_below_the_floor_only_with_a_ticket(tmp_path: Any) -> None:
    rig = Rig(tmp_path)
    rig.found()
    rig.release("1.0")
    assert rig.depot.client().find(wanted("1.0"))
    rig.release("2.0", security_floor="1.5")
    client = rig.depot.client()
    with pytest.raises(
        BelowSecurityFloor, match=r"ACME bios 1.0 is below the security floor 1.5: there is no"
    ) as refused:
        client.find(wanted("1.0"))
    assert "freehold depot downgrade" in str(refused.value)
    with pytest.raises(BelowSecurityFloor, match="1 of 2 people approved it"):
        client.find(wanted("1.0"), Downgrade(ticket(), ["alice"], "s1", "2.0"))
    with pytest.raises(BelowSecurityFloor, match="expired"):
        client.find(wanted("1.0"), Downgrade(ticket(), ["alice", "bob"], "s1", "2.0"), day(1))
    found, _ = client.fetch(wanted("1.0"), Downgrade(ticket(), ["alice", "bob"], "s1", "2.0"))
    assert found.about.version == "1.0"
    # the floor outlives the package that raised it
    rig.depot.withdraw("firmware/bios-2.0.bin", NOW)
    rig.publish()
    with pytest.raises(BelowSecurityFloor):
        rig.depot.client().find(wanted("1.0"))


def test_a_floor_that_cannot_be_compared_is_refused_at_import(tmp_path: Any) -> None:
    rig = Rig(tmp_path)
    rig.found()
    rig.add("1.2", security_floor="1.2")
    with pytest.raises(VersionsNotComparable):
        rig.add("1.2a", security_floor="1.2a")


SIGNED = VendorSignature(scheme=Scheme.PGP, fingerprint="ab" * 20, verified_by="alice", at="2026-11-26T12:00:00Z")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"models": ()}, "names the models"),
        ({"kind": Kind.OS_IMAGE}, "names the models"),
        ({"site": "lab"}, "firmware is for models, not for a site"),
        ({"models": ("M1", "M1")}, "named twice"),
        ({"models": ("",)}, "cannot be empty"),
        ({"vendor": ""}, "cannot be empty"),
        ({"vendor": "AC\x1b[2JME"}, "printable"),
        ({"component": " bios"}, "printable"),
        ({"version": "1" * 129}, "printable"),
        ({"version": "latest"}, "holds no number"),
        ({"security_floor": "1.1"}, "below its own security floor"),
        ({"unsigned_because": None}, "either the vendor's signature"),
        ({"vendor_signature": SIGNED}, "either the vendor's signature"),
        ({"measurements": {0: ("AB" * 32,)}}, "not a SHA-256 digest"),
        ({"measurements": {24: (SHA,)}}, "index from 0 to 23"),
        ({"sbom_sha256": "beef"}, "not a SHA-256 digest"),
    ],
)
def test_descriptions_that_do_not_hold_together(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(PackageRefused, match=problem):
        new_target("x.bin", 1, SHA, about(**changes))


@pytest.mark.parametrize("name", ["../x", "a/b", ".x", "", "x" * 129, "a b", "a\n"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(PackageRefused, match="cannot be a file name"):
        new_target(name, 1, SHA, about())


def test_a_description_survives_the_metadata() -> None:
    full = about(
        security_floor="0.9",
        vendor_signature=SIGNED,
        unsigned_because=None,
        measurements={0: (SHA,), 2: (SHA, SHA)},
        sbom_sha256=SHA,
    )
    made = new_target("x.bin", 7, SHA, full)
    assert from_tuf(TargetFile.from_dict(to_tuf(made).to_dict(), made.path)) == made


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.unrecognized_fields.clear(),
        lambda file: file.custom.update(unknown=1),
        lambda file: file.custom.update(version=1),
        lambda file: file.custom.update(kind="driver"),
        lambda file: file.custom.update(kind="agent", models=[]),
        lambda file: file.custom.pop("unsigned_because"),
        lambda file: file.hashes.update(sha512=SHA),
        lambda file: setattr(file, "hashes", {"md5": "ab" * 16}),
        lambda file: setattr(file, "path", "firmware/a/b"),
    ],
)
def test_a_signed_description_that_is_not_understood_is_refused(change: Any) -> None:
    file = to_tuf(new_target("x.bin", 7, SHA, about()))
    change(file)
    with pytest.raises(PackageRefused, match=r"signed description of .* cannot be used") as refused:
        from_tuf(file)
    assert refused.value.remedy


KEYS = {name: Ed25519Signer.generate().public_key for name in ("alice", "bob", "carol")}


@pytest.mark.parametrize(
    ("people", "words"),
    [
        ({"alice": KEYS["alice"], "bob": KEYS["bob"]}, "would have 2 operators"),
        ({**KEYS, "Alice": Ed25519Signer.generate().public_key}, "'alice' and 'Alice' are one person with two keys"),
        ({**KEYS, "zoe": KEYS["bob"]}, "the key of 'zoe' is also that of 'bob'"),
        ({**KEYS, "": Ed25519Signer.generate().public_key}, "is not a person's name"),
        ({**KEYS, "bob ": Ed25519Signer.generate().public_key}, "is not a person's name"),
    ],
)
def test_two_keys_of_one_person_or_one_key_of_two(people: dict[str, PublicKey], words: str) -> None:
    with pytest.raises(PeopleRefused, match=words):
        check_people(people)


def test_the_online_key_is_nobodys() -> None:
    with pytest.raises(PeopleRefused, match="the key of 'bob' is also that of \"the depot's online key\""):
        check_people(KEYS, KEYS["bob"])


def test_expiry_is_said_before_it_is_too_late() -> None:
    fresh = {"root": day(700), "targets": day(300), "snapshot": day(20), "timestamp": day(20)}
    assert expiring(fresh, NOW) == ()
    (warned,) = expiring({**fresh, "targets": day(29)}, NOW)
    assert (warned.severity, warned.kind, warned.subject) == (Severity.WARNING, "depot-expiry", "depot/targets")
    assert "expires at" in warned.detail
    assert "rotate" in warned.remedy
    late, soon = expiring({**fresh, "timestamp": NOW, "root": day(59)}, NOW)[::-1]
    assert (late.severity, soon.severity) == (Severity.CRITICAL, Severity.WARNING)
    assert "no package can be used" in late.detail


SEEN = Seen(root=2, targets=3, snapshot=4, timestamp=5, online_key="k", floors=(floor("1.5"),))


@given(st.tuples(*[st.integers(1, 9)] * 4), st.sampled_from(["k", "other"]))
def test_nothing_goes_back(versions: tuple[int, int, int, int], key: str) -> None:
    root, targets, snapshot, timestamp = versions
    after = Seen(root=root, targets=targets, snapshot=snapshot, timestamp=timestamp, online_key=key, floors=SEEN.floors)
    back = root < 2 or targets < 3 or (key == "k" and (snapshot < 4 or timestamp < 5))
    assert bool(regressions(SEEN, after)) == back


@pytest.mark.parametrize("floors", [(), (floor("1.4"),), (floor("1.5", "M2"),), (floor("1.5a"),)])
def test_floors_do_not_go_back(floors: tuple[Floor, ...]) -> None:
    (problem,) = regressions(SEEN, msgspec.structs.replace(SEEN, floors=floors))
    assert problem.startswith("the security floor of ACME bios M1 is ")


def test_higher_floors_are_no_regression() -> None:
    assert regressions(SEEN, msgspec.structs.replace(SEEN, floors=(floor("1.6"), floor("9", "M2")))) == ()
