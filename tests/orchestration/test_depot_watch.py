"""What the controller sees of the depot: renewed in time, stated in the evidence log, and found fault with."""

import asyncio
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from site_support import Place

from freehold.evidence import (
    Ed25519Signer,
    Envelope,
    EvidenceLog,
    Predicate,
    Statement,
    canonical,
    export,
    verify_bundle,
)
from freehold.orchestration.depot_watch import depot_findings, look_at_depot
from freehold.orchestration.evidence_due import record_due
from freehold.orchestration.opening import open_log
from freehold.orchestration.site_ledger import SiteLedger
from freehold.root_of_trust import online_key
from freehold.root_of_trust.depot import Depot, MetadataUnsigned, VendorSignature
from freehold.root_of_trust.depot.errors import PeopleRefused
from freehold.root_of_trust.depot.metadata import Days
from freehold.root_of_trust.depot.package import Scheme
from freehold.root_of_trust.depot.people import people_findings, require_site_operators
from freehold.root_of_trust.keys import make_depot_key
from freehold.root_of_trust.operators import Act, NotApproved, Operators, Request, approve, require_approval
from freehold.root_of_trust.pki import utc_now

sys.path.append(str(Path(__file__).parents[1] / "root_of_trust"))
from depot_rig import Rig, day


@pytest.fixture
def log(place: Place, tmp_path: Path) -> Iterator[EvidenceLog]:
    with open_log(tmp_path / "log", "lab", place.site.keys) as opened:
        yield opened


@pytest.fixture
def rig(place: Place, tmp_path: Path) -> Rig:
    """The place's site keeps the depot."""
    rig = Rig(tmp_path / "depots")
    rig.depot, rig.online = place.site.depot, make_depot_key(place.site.vault)
    rig.found()
    return rig


def claims(log: EvidenceLog, kind: Predicate = Predicate.DEPOT) -> list[Statement]:
    found = [Statement.from_bytes(Envelope.from_bytes(entry.envelope).payload) for entry in log.entries()]
    return [each for each in found if each.kind is kind]


async def test_what_came_in_and_what_was_published_is_stated_once(place: Place, rig: Rig, log: EvidenceLog) -> None:
    seen = VendorSignature(scheme=Scheme.PGP, fingerprint="ab" * 20, verified_by="alice", at="2026-01-31T12:00:00Z")
    target = rig.add("1.0", vendor_signature=seen, unsigned_because=None)
    await look_at_depot(place.site, place.store, log)
    (imported,) = claims(log)
    assert imported.subject[0].digest == {"sha256": target.sha256}
    said = imported.predicate
    assert (said["event"], said["package"], said["version"]) == ("imported", target.path, "1.0")
    assert said["vendor_signature"]["fingerprint"] == "ab" * 20
    assert said["vendor_signature"]["verified_by"] == "alice"
    rig.publish("alice", "carol")
    for _ in range(2):
        await look_at_depot(place.site, place.store, log)
    (published,) = claims(log)[1:]
    said = published.predicate
    assert said["event"] == "published"
    assert said["targets"] == {
        "version": 1,
        "signed_by": sorted(
            ({"name": n, "key_id": rig.people[n].key_id} for n in ("alice", "carol")), key=lambda each: each["key_id"]
        ),
    }
    rig.release("1.1")
    await look_at_depot(place.site, place.store, log)
    assert [each.predicate["event"] for each in claims(log)] == ["imported", "published", "imported", "published"]


async def test_a_bundle_with_the_depot_and_a_broken_glass_verifies(
    place: Place, rig: Rig, log: EvidenceLog, tmp_path: Path
) -> None:
    rig.release("1.0")
    await look_at_depot(place.site, place.store, log)
    people = {name: rig.people[name] for name in ("alice", "bob")}
    await place.store.approvals.found({name: key.public_key for name, key in people.items()}, 1.0)
    now = utc_now().timestamp()
    request = Request(
        act=Act.BREAK_GLASS, subject="bmc/server-1", details={"reason": "fire"}, requested_by="eve", at=now,
        expires=now + 60.0,
    )  # fmt: skip
    await place.store.approvals.ask(request)
    with pytest.raises(NotApproved):
        await place.store.approvals.show_credential(request.id, "server-1", "eve", now)
    for key in people.values():
        await place.store.approvals.sign(request.id, approve(request, key).to_bytes())
    with pytest.raises(NotApproved, match="is about break-glass for bmc/server-1"):
        await place.store.approvals.show_credential(request.id, "server-2", "eve", now)
    assert [due.facts["event"] for due in await place.store.site.due()] == ["founded"]
    both = [place.store.approvals.show_credential(request.id, "server-1", "eve", now) for _ in range(2)]
    first, second = await asyncio.gather(*both, return_exceptions=True)  # two at one time: shown once
    assert first == ("alice", "bob")
    assert isinstance(second, NotApproved)
    with pytest.raises(NotApproved, match="is closed"):
        await place.store.approvals.show_credential(request.id, "server-1", "eve", now)
    for _ in range(2):
        await record_due(place.store, log)
    founded, shown = claims(log, Predicate.APPROVAL)
    assert [each["key_id"] for each in founded.predicate["operators"]] == [key.key_id for key in people.values()]
    said = shown.predicate
    assert (said["event"], said["server"], said["shown_to"]) == ("break-glass", "server-1", "eve")
    assert [(each["name"], each["key_id"]) for each in said["approved_by"]] == [
        (name, key.key_id) for name, key in people.items()
    ]
    # Whoever reads the log can check the two signatures with nothing but the operators' public keys.
    asked = Request(**{**said["request"], "act": Act(said["request"]["act"])})
    envelopes = [canonical.dumps(each["envelope"]) for each in said["approved_by"]]
    operators = Operators.of({name: key.public_key for name, key in people.items()})
    assert require_approval(asked, envelopes, operators, now) == ("alice", "bob")
    artifacts = place.site.artifacts.all()
    assert len(artifacts) == 2  # root and list, as they were signed
    out = export(log, tmp_path / "bundle", place.site.keys.evidence, report={}, artifacts=artifacts, public_keys={})
    verify_bundle(out, place.site.keys.evidence.public_key_pem)
    (out / "artifacts" / next(iter(artifacts))).unlink()
    with pytest.raises(Exception, match="artifacts"):
        verify_bundle(out, place.site.keys.evidence.public_key_pem)


async def test_who_signs_for_the_depot_and_is_no_operator_of_the_site_is_a_finding(
    place: Place, rig: Rig, log: EvidenceLog
) -> None:
    rig.release("1.0")
    await look_at_depot(place.site, place.store, log)
    assert await place.store.site.findings() == ()  # a site without operators has nobody to compare with
    await place.store.approvals.found({name: rig.people[name].public_key for name in ("alice", "bob")}, 1.0)
    await look_at_depot(place.site, place.store, log)
    (finding,) = await place.store.site.findings()
    assert (finding.kind, finding.subject, finding.severity) == ("depot-operator", "depot/carol", "critical")
    assert "who is no operator of the site" in finding.detail
    assert "freehold depot rotate" in finding.remedy
    carol, alice = (rig.people[name].public_key.key_id for name in ("carol", "alice"))
    assert f"key {carol} of carol" in finding.evidence
    assert f"operators of the site: alice (key {alice}), bob (key " in finding.evidence


def test_one_person_is_one_key_and_one_key_one_name() -> None:
    ann, bob, other = (Ed25519Signer.generate().public_key for _ in range(3))
    site = Operators.of({"ann": ann, "bob": bob})
    assert people_findings({"ann": ann, "bob": bob}, site) == ()
    (two_keys,) = people_findings({"ann": other, "bob": bob}, site)
    assert f"who has another key at the site: {ann.key_id}" in two_keys.detail
    (two_names,) = people_findings({"anna": ann, "bob": bob}, site)
    assert "whom the site knows as ann" in two_names.detail
    with pytest.raises(PeopleRefused, match="who is no operator of the site"):
        require_site_operators({"ann": ann, "carol": other}, site)
    require_site_operators({"carol": other}, Operators({}))


async def test_what_expires_soon_is_a_finding_of_the_site_and_goes_when_it_is_renewed(
    place: Place, rig: Rig, log: EvidenceLog
) -> None:
    rig.add("1.0", now=day(-345))  # the list has 20 of its 365 days left
    rig.publish(now=day(-1))
    await look_at_depot(place.site, place.store, log)
    kinds = {each.subject: each for each in await place.store.site.findings()}
    assert set(kinds) == {"depot/targets"}
    assert kinds["depot/targets"].severity == "warning"
    expires = f"{day(20):%Y-%m-%d}"
    assert f"signed targets metadata of the depot: expires is {expires}" in kinds["depot/targets"].evidence
    rig.release("1.1")
    await look_at_depot(place.site, place.store, log)
    assert await place.store.site.findings() == ()


async def test_a_depot_that_cannot_be_used_any_more_is_a_critical_finding(rig: Rig) -> None:
    rig.release("1.0")
    assert depot_findings(rig.depot, Operators({}), utc_now()) == ()
    (timestamp := rig.depot.repository.directory / "metadata" / "timestamp.json").write_text("{}")
    (finding,) = depot_findings(rig.depot, Operators({}), utc_now())
    assert (finding.kind, finding.severity) == ("depot-refused", "critical")
    assert str(timestamp) in finding.detail
    assert finding.evidence.startswith(f"depot {rig.depot.directory}: Metadata")


async def test_no_depot_is_no_finding(place: Place, log: EvidenceLog) -> None:
    await look_at_depot(place.site, place.store, log)
    assert await place.store.site.findings() == ()
    assert claims(log) == []


async def test_the_timestamp_is_renewed_at_half_of_its_life(place: Place, rig: Rig, log: EvidenceLog) -> None:
    rig.add("1.0")
    rig.publish(now=day(-16))
    await look_at_depot(place.site, place.store, log)
    assert Depot(rig.depot.directory).client().view.expiries["timestamp"] > utc_now() + timedelta(days=25)


async def test_a_new_online_key_whose_publication_was_killed_is_used_by_the_controller(
    place: Place, rig: Rig, log: EvidenceLog
) -> None:
    """The new root is out and names the next key; the timestamp is still of the former one, and so is the vault."""
    rig.release("1.0")
    named = online_key.rotate(rig.depot, place.site.vault, None, Days(), utc_now(), replace_online_key=True)
    rig.sign("alice", "bob")
    root = rig.depot.staged().root
    assert root is not None
    rig.depot.repository.write({"2.root.json": root.to_bytes()})
    with pytest.raises(MetadataUnsigned):
        rig.depot.client()
    await look_at_depot(place.site, place.store, log)
    assert rig.depot.client().seen.online_key == named
    assert await place.store.site.findings() == ()
    assert online_key.publish(rig.depot, place.site.vault, utc_now()).replaced
    assert not rig.depot.refresh_timestamp(online_key.online_keys(place.site.vault), utc_now())


async def test_new_findings_are_told_from_those_of_before(place: Place) -> None:
    ledger: SiteLedger = place.store.site
    ann, bob = Ed25519Signer.generate().public_key, Ed25519Signer.generate().public_key
    one = people_findings({"ann": ann}, Operators.of({"bob": bob}))
    assert await ledger.set_findings("depot", one) == one
    assert await ledger.set_findings("depot", one) == ()
    assert await ledger.set_findings("other", ()) == ()
    assert await ledger.findings() == one
