"""Another site key in the place of one: what two operators are asked to sign, and what follows when they have.

The order is: the vault has the new key, then the request is closed and the evidence log owed its statement. A crash in
between leaves an approved request, and carrying it out again only does what is missing.
"""

import asyncio
import logging
from pathlib import Path

from freehold.model.errors import FreeholdError
from freehold.model.findings import Finding, Severity
from freehold.orchestration.ledger import AGENT_CA, BMC_CA, IMAGE_KEY
from freehold.orchestration.store import Store
from freehold.orchestration.view import ServerView
from freehold.root_of_trust import succession
from freehold.root_of_trust.keys import StoredKey
from freehold.root_of_trust.operators import Act, NotApproved, Request
from freehold.root_of_trust.pki import utc_now
from freehold.root_of_trust.vault import Vault

logger = logging.getLogger(__name__)

INTERVAL = 10.0
"""Seconds between two looks at what people did to the vault meanwhile."""

PATIENCE = 7 * 86400.0
"""Seconds for which a request waits for its two signatures."""


def request_of(vault: Vault, name: str, *, by: str, reason: str, at: float) -> Request:
    """What two people are asked to sign: just this key goes, and the next generation comes."""
    generation, replaces = succession.next_generation(vault, name)
    return Request(
        act=Act.SITE_KEY,
        subject=f"site-key/{name}",
        details={"generation": generation, "replaces": replaces, "reason": reason},
        requested_by=by,
        at=at,
        expires=at + PATIENCE,
    )


async def carry_out(store: Store, state: Path, vault: Vault, name: str, request_id: str, now: float) -> StoredKey:
    """Replace the key as two operators approved. Raises `UnknownRequest`, `NotApproved`, `ReplacementRefused`."""
    request = (await store.approvals.show(request_id)).request
    if (request.act, request.subject) != (Act.SITE_KEY, f"site-key/{name}"):
        raise NotApproved(
            f"the request {request_id} is about {request.act} for {request.subject}",
            expected=f"{Act.SITE_KEY} for site-key/{name}",
        )
    names = await store.approvals.require(request_id, now)
    details = request.details
    made = await asyncio.to_thread(
        succession.replace,
        state,
        vault,
        name,
        details["generation"],
        details["replaces"],
        details["reason"],
        utc_now(),
    )
    facts = {"key": name, "generation": made.generation, "spki_sha256": made.spki_sha256}
    await store.approvals.done(request_id, f"site-key/{name}", facts, now)
    people = ", ".join(names)
    message = f"the {succession.TITLES[name]} was replaced: generation {made.generation}; approved by {people}"
    await store.add_event(None, "site-key", message)
    return made


def audited(server: ServerView) -> tuple[Finding, ...]:
    """What an audit says of an installed OS that a thief of a former agent CA could still speak to."""
    image, (newest, _) = server.facts.image, server.agent_trust
    if image is None or image.agent_ca >= newest:
        return ()
    found = Finding(
        severity=Severity.WARNING,
        kind="replaced-agent-ca",
        subject=server.name,
        detail=f"its OS knows the controller by agent CA {image.agent_ca}, which was replaced",
        remedy=f"deploy it anew: `freehold decommission {server.name}`; when none is left: `freehold pki replace agent"
        " --finish`",
        evidence=f"its record: deployed with agent CA {image.agent_ca}; the newest of the site is {newest}",
    )
    return (found,)


async def announce_keys(store: Store, vault: Vault, agent_trust: tuple[int, int]) -> None:
    """Tell the planner which keys count now, and have every server looked at if that is news. `agent_trust`: as in
    `SiteKeys`, of the agent that the running controller boots."""
    for name, number in zip((AGENT_CA, IMAGE_KEY), agent_trust, strict=True):
        if number > int(await store.announced(name) or 1):
            await store.announce(name, str(number))
    current = await asyncio.to_thread(succession.bmc_ca_key_id, vault)
    if current is not None and current != await store.announced(BMC_CA):
        await store.announce(BMC_CA, current)


async def watch_replacements(store: Store, vault: Vault, agent_trust: tuple[int, int]) -> None:
    """For ever: a BMC CA counts from the moment on at which it is in the vault."""
    while True:
        await asyncio.sleep(INTERVAL)
        try:
            await announce_keys(store, vault, agent_trust)
        except FreeholdError as error:
            logger.error("%s", error)
