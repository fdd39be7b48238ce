"""A revoked image that goes on running under older keys is said of each server that runs it."""

import dataclasses

import msgspec
from site_support import SERVER, Place, booted

from freehold.model.findings import Severity
from freehold.model.resources import PolicySpec, Resource
from freehold.model.status import Facts, ImageFact, ServerState, ServerStatus
from freehold.orchestration.key_generations import announce_generations
from freehold.orchestration.measurements import REVOKED
from freehold.orchestration.opening import open_log
from freehold.orchestration.revocations import UNCHECKED, audited, in_dbx, revoked, with_revocation
from freehold.orchestration.view import ServerView
from freehold.root_of_trust.attestation.appraise import Verdict
from freehold.root_of_trust.pki import utc_now
from freehold.root_of_trust.secure_boot_keys import newest_generation

IMAGE = ImageFact(name="debian", version="12.11", manifest="ab" * 32)
DIGEST = booted("debian").authenticode.hex()


async def running(place: Place) -> None:
    """As a server that runs the site's OS."""
    status = ServerStatus(state=ServerState.ACTIVE, facts=Facts(image=IMAGE, secure_boot_enrolled=True))
    await place.set_status(status)


def revoke(place: Place, digest: str = DIGEST) -> None:
    place.site.keys.secure_boot.revoke(digest, "CVE-2026-1", utc_now())


async def test_what_was_not_revoked_is_no_finding(owned: Place) -> None:
    await running(owned)
    revoke(owned, "ee" * 32)
    result = await owned.step("check_revocations")
    assert (result.findings, result.events, result.resolved) == ((), (), (REVOKED,))
    assert result.facts == {"revocations_checked": 2, "image_revoked": None}
    assert result.quarantine is None


async def test_a_revoked_image_is_a_critical_finding_that_names_it_and_what_to_do(owned: Place) -> None:
    await running(owned)
    revoke(owned)
    result = await owned.step("check_revocations")
    (found,) = result.findings
    assert (found.severity, found.kind, found.subject) == (Severity.CRITICAL, REVOKED, SERVER)
    assert f"its digest {DIGEST} is in dbx of generation 2" in found.detail
    assert f"freehold decommission {SERVER}" in found.remedy
    assert result.events == (found.detail,)
    known = msgspec.structs.replace((await owned.view()).status, findings=result.findings)
    again = await owned.step("check_revocations", status=known)
    assert (again.findings, again.events) == ((found,), ())


async def test_a_server_that_runs_it_is_quarantined_with_image_digest_and_what_to_do(owned: Place) -> None:
    await running(owned)
    revoke(owned)
    result = await owned.step("check_revocations")
    assert result.facts["image_revoked"] == DIGEST
    assert result.quarantine is not None
    for word in (SERVER, "it runs debian", DIGEST, "dbx of generation 2", "assigned anew", "revokedImage: report"):
        assert word in result.quarantine
    assert f"`freehold release {SERVER} --to decommissioning`" in result.quarantine


async def test_a_policy_may_let_it_run_on_with_the_finding(owned: Place) -> None:
    await running(owned)
    revoke(owned)
    result = await owned.step("check_revocations", policy=PolicySpec(revoked_image="report"))
    assert result.quarantine is None
    assert [each.kind for each in result.findings] == [REVOKED]
    assert result.facts["image_revoked"] == DIGEST


async def test_an_image_whose_key_has_left_db_is_a_finding_and_nobody_has_called_it_bad(owned: Place) -> None:
    await running(owned)
    newest = owned.site.keys.secure_boot.newest_set()
    others = dataclasses.replace(booted("debian"), signers=())
    assert revoked(SERVER, others, newest) is not None
    assert in_dbx(others, newest) is None
    assert in_dbx(None, newest) is None


async def test_an_image_that_is_not_kept_here_cannot_be_judged(owned: Place) -> None:
    await running(owned)
    lost = msgspec.structs.replace(IMAGE, manifest="cd" * 32)
    await owned.establish(ServerState.ACTIVE, image=lost)
    (found,) = (await owned.step("check_revocations")).findings
    assert (found.kind, found.severity) == (REVOKED, Severity.CRITICAL)
    assert "nobody can say" in found.detail


async def test_the_engine_acts_as_soon_as_the_new_generation_is_announced_and_as_policy_says_now(owned: Place) -> None:
    reports = Resource(kind="Policy", name="strict", spec=PolicySpec(revoked_image="report"))
    await owned.store.apply([reports])
    await running(owned)
    log = open_log(owned.site.directory, "lab", owned.site.keys)
    revoke(owned)
    await announce_generations(owned.site.keys.secure_boot, owned.store, log)
    engine = owned.engine()
    while not (status := (await owned.view()).status).facts.revocations_checked:
        await engine.round()
    assert REVOKED in {each.kind for each in status.findings}
    assert (status.state, status.facts.revocations_checked) == (ServerState.ACTIVE, 2)
    await owned.store.apply([msgspec.structs.replace(reports, spec=PolicySpec())])
    while (status := (await owned.view()).status).state is ServerState.ACTIVE:
        await engine.round()
    assert status.state is ServerState.QUARANTINED
    assert DIGEST in status.reason


async def test_a_revoked_agent_is_said_of_each_server_that_is_started_into_it(owned: Place) -> None:
    owned.site.agent_image = dataclasses.replace(booted("agent"), authenticode=b"\xcd" * 32)
    assert (await owned.step("boot_agent")).findings == ()
    revoke(owned, "cd" * 32)
    (found,) = (await owned.step("boot_agent")).findings
    assert (found.kind, found.subject) == (REVOKED, SERVER)
    assert "it runs agent" in found.detail


async def test_what_is_signed_of_an_appraisal_says_so(owned: Place) -> None:
    newest = owned.site.keys.secure_boot.newest_set()
    verdict = Verdict(trusted=True, reasons=(), policy_id="p")
    assert with_revocation(verdict, SERVER, booted("debian"), newest) == verdict
    later = dataclasses.replace(newest, generation=2, dbx=(booted("debian").authenticode,))
    told = with_revocation(verdict, SERVER, booted("debian"), later)
    assert told.trusted
    assert [each.kind for each in told.findings] == [REVOKED]


async def test_an_audit_says_it_and_says_when_nobody_has_looked_yet(owned: Place) -> None:
    revoke(owned)
    assert newest_generation(owned.site.vault) == 2
    given = ServerStatus(state=ServerState.ACTIVE, facts=Facts(image=IMAGE))
    server = ServerView(name=SERVER, spec=(await owned.view()).spec, status=given)
    (unchecked,) = audited(server, 2)
    assert (unchecked.kind, unchecked.severity) == (UNCHECKED, Severity.WARNING)
    assert audited(server, 1) == ()
    checked = msgspec.structs.replace(given, facts=msgspec.structs.replace(given.facts, revocations_checked=2))
    assert audited(msgspec.structs.replace(server, status=checked), 2) == ()
    found = revoked(SERVER, booted("debian"), owned.site.keys.secure_boot.newest_set())
    assert found is not None
    assert f"{booted('debian').authenticode.hex()}, held against keys of generation 2" in found.evidence
    gone = revoked(SERVER, None, owned.site.keys.secure_boot.newest_set())
    assert gone is not None
    assert "no build that is kept has them" in gone.evidence
    bears = msgspec.structs.replace(checked, findings=(found,))
    assert audited(msgspec.structs.replace(server, status=bears), 2) == (found,)
