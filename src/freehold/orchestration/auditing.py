"""The audit of servers that are ours: with the vaulted credential, over the pinned key. Reads and probes only."""

import asyncio
import time

from freehold.orchestration import waivers
from freehold.orchestration.passwords import PasswordIndex, VaultSlots
from freehold.orchestration.site import open_bmc
from freehold.orchestration.view import ServerView
from freehold.out_of_band.audit import Audit, audit, audit_bmc
from freehold.out_of_band.posture import worst_first
from freehold.root_of_trust.vault import Vault


async def audit_server(vault: Vault, view: ServerView) -> Audit:
    """Raises what the client raises; a refused log-in is not repeated."""
    async with open_bmc(vault, view) as client:
        observed = await audit_bmc(client, view.spec.bmc.address)
    credential = await VaultSlots(vault, view).current()
    assert credential is not None  # we have just logged in with it
    shared = await asyncio.to_thread(PasswordIndex(vault).shared_with, view.name, credential.password)
    found = audit(view.name, observed, own_account=credential.username, password_shared_with=shared)
    waived = waivers.exceptions(view.waivers, view.facts, view.name, time.time())
    return Audit(server=view.name, findings=tuple(worst_first([*found.findings, *waived])))
