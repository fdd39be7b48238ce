"""The controller's eye on the depot: what came in and was published is stated in the evidence log, what is about to
expire and who should not sign for it are findings of the site.

People work on the depot beside the running controller, on media and on other machines. So what they did is found by
looking at it, and told by comparing with what was told before. A crash between the two only makes a statement twice.
"""

import asyncio
import hashlib
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from tuf.api.metadata import Metadata

from freehold.evidence import Artifacts, EvidenceLog, Predicate, Statement, Subject
from freehold.evidence.artifacts import FIELD as ARTIFACTS
from freehold.model.errors import FreeholdError
from freehold.model.findings import Finding, Severity, refusal_of
from freehold.orchestration.site import Site
from freehold.orchestration.store import Store
from freehold.root_of_trust import pki
from freehold.root_of_trust.depot import Depot, DepotClient, DepotError, DepotMissing, Target, expiring
from freehold.root_of_trust.depot.metadata import people_of, public_keys_of
from freehold.root_of_trust.depot.people import people_findings
from freehold.root_of_trust.depot.repository import Published
from freehold.root_of_trust.online_key import online_keys
from freehold.root_of_trust.operators import Operators

logger = logging.getLogger(__name__)

INTERVAL = 60.0
"""Seconds between two looks. The metadata itself is renewed at half of its life, by default every 15 days."""

SOURCE = "depot"


async def watch_depot(site: Site, store: Store, log: EvidenceLog) -> None:
    """For ever."""
    while True:
        try:
            await look_at_depot(site, store, log)
        except (FreeholdError, OSError) as error:
            logger.error("depot: %s", error)
        await asyncio.sleep(INTERVAL)


async def look_at_depot(site: Site, store: Store, log: EvidenceLog) -> None:
    """Renew what this site may renew; then evidence and findings. What cannot be renewed is a finding, too."""
    now = pki.utc_now()
    renewal: tuple[Finding, ...] = ()
    try:
        await asyncio.to_thread(renew, site, now)
    except (FreeholdError, OSError) as error:
        logger.error("the depot's timestamp cannot be renewed: %s", error)
        renewal = (_refused(error, site.depot.directory, "the depot's timestamp cannot be renewed: "),)
    people = await store.approvals.operators()
    found = await asyncio.to_thread(depot_findings, site.depot, people, now)
    for each in await store.site.set_findings(SOURCE, (*renewal, *found)):
        logger.error("%s; %s", each.detail, each.remedy)
    await record_depot(site.depot, site.artifacts, store, log, now)


def renew(site: Site, now: datetime) -> None:
    """The depot's timestamp, if this site publishes it and half of its life is over."""
    if site.depot.publishes and site.depot.repository.read() is not None:
        site.depot.refresh_timestamp(online_keys(site.vault), now)


def depot_findings(depot: Depot, people: Operators, now: datetime) -> tuple[Finding, ...]:
    """What is wrong with the depot as it is used now. None, if there is no depot."""
    try:
        client = DepotClient.look(depot.directory)
    except DepotMissing:
        return ()
    except (DepotError, OSError) as error:
        return (_refused(error, depot.directory),)
    return (*expiring(client.view.expiries, now), *people_findings(public_keys_of(client.view.root), people))


def _refused(error: FreeholdError | OSError, directory: Path, before: str = "") -> Finding:
    what = error.what if isinstance(error, FreeholdError) else str(error)
    remedy = (error.remedy or "") if isinstance(error, FreeholdError) else ""
    return Finding(
        severity=Severity.CRITICAL,
        kind="depot-refused",
        subject="depot",
        detail=f"{before}{what}; no package can be used",
        remedy=remedy or "`freehold depot verify` says more",
        evidence=refusal_of(f"depot {directory}", error),
    )


async def record_depot(depot: Depot, artifacts: Artifacts, store: Store, log: EvidenceLog, now: datetime) -> None:
    """State what was not stated yet: each package that came in, each list and root that were published."""
    told = await store.site.told(SOURCE)
    for subject, facts in await asyncio.to_thread(depot_claims, depot, artifacts):
        digest = hashlib.sha256(msgspec.json.encode(facts, order="sorted")).hexdigest()
        if digest not in told:
            claim = Statement.claim(Predicate.DEPOT, [subject], facts | {"recorded": now.timestamp()})
            await asyncio.to_thread(log.append, claim)
            await store.site.tell(SOURCE, digest)


def depot_claims(depot: Depot, artifacts: Artifacts) -> list[tuple[Subject, dict[str, Any]]]:
    """All there is to say of the depot's packages, staged ones too, and of what is published: (subject, facts). The
    signed metadata is kept as artifacts, so that the operators' signatures can be checked by any TUF client."""
    claims = [(Subject(target.path, {"sha256": target.sha256}), _imported(target)) for target in depot.packages()]
    published = depot.repository.read()
    return [*claims, _published(published, artifacts)] if published is not None else claims


def _imported(target: Target) -> dict[str, Any]:
    """With the vendor's signature, the key that verified it, and who looked at it; or why there is none."""
    about = msgspec.to_builtins(target.about, str_keys=True)
    return {"event": "imported", "package": target.path, "sha256": target.sha256, "length": target.length, **about}


def _published(published: Published, artifacts: Artifacts) -> tuple[Subject, dict[str, Any]]:
    """Who signed root and list, and by which key."""
    root, targets = published.root, published.targets
    names = people_of(root.signed)

    def signers(role: str, metadata: Metadata[Any]) -> list[dict[str, str]]:
        keys = root.signed.get_verification_result(role, metadata.signed_bytes, metadata.signatures).signed
        return [{"name": names[key_id], "key_id": key_id} for key_id in sorted(keys)]

    kept = {"root": artifacts.keep(root.to_bytes()), "targets": artifacts.keep(published.targets_bytes)}
    facts = {
        "event": "published",
        "operators": [{"name": name, "key_id": key_id} for key_id, name in sorted(names.items())],
        "root": {"version": root.signed.version, "signed_by": signers("root", root)},
        "targets": {"version": targets.signed.version, "signed_by": signers("targets", targets)},
        "packages": len(targets.signed.targets),
        "expires": f"{targets.signed.expires.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
        ARTIFACTS: kept,
    }
    return Subject(f"depot/targets/{targets.signed.version}", {"sha256": kept["targets"]}), facts
