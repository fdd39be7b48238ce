"""The vault and the documents of a site that is there: looking must not found one."""

import asyncio
import logging
from pathlib import Path

from freehold.interfaces.cli.common import site_store
from freehold.model.errors import FreeholdError
from freehold.model.resources import NetworkSpec, SiteSpec
from freehold.orchestration.opening import open_vault
from freehold.orchestration.store import Store
from freehold.root_of_trust import site_vault
from freehold.root_of_trust.vault import Vault

logger = logging.getLogger("freehold")


async def site_documents(store: Store) -> tuple[str, SiteSpec, dict[str, NetworkSpec]]:
    """The one Site and its networks. A controller that was started first waits for them."""
    said = False
    while not (sites := await store.list_resources("Site")):
        if not said:
            logger.info("waiting for a Site: `freehold apply -f inventory.yaml`")
            said = True
        await asyncio.sleep(0.5)
    if len(sites) > 1:
        names = ", ".join(site.resource.name for site in sites)
        raise FreeholdError(f"the store holds {len(sites)} Sites: {names}", remedy="delete all but one")
    spec = sites[0].resource.spec
    assert isinstance(spec, SiteSpec)
    networks = {
        each.resource.name: each.resource.spec
        for each in await store.list_resources("Network")
        if isinstance(each.resource.spec, NetworkSpec)
    }
    return sites[0].resource.name, spec, networks


async def declared_site(state: Path) -> tuple[str, SiteSpec, dict[str, NetworkSpec]]:
    """Its name, its document and its networks."""
    async with site_store(state) as store:
        if not await store.list_resources("Site"):
            raise FreeholdError("no Site is declared", remedy="declare it: `freehold apply -f FILE`")
        return await site_documents(store)


def existing_vault(state: Path) -> Vault:
    """The vault of a site that has its keys. Looking must not found one."""
    if not site_vault.exists(state):
        raise FreeholdError(
            f"there is no vault in {state}",
            remedy="say where it is with --state; `freehold serve` or `freehold pki request` makes it",
        )
    return open_vault(state)
