"""The audit of servers that are ours: with the vaulted credential, over the pinned key. Reads and probes only."""

import asyncio
import time

from freehold.orchestration.default_probe import probe
from freehold.orchestration.passwords import PasswordIndex, VaultSlots
from freehold.orchestration.site import connector, open_bmc
from freehold.orchestration.view import ServerView
from freehold.out_of_band.audit import Audit, audit, audit_bmc
from freehold.root_of_trust.vault import Vault


async def audit_server(vault: Vault, view: ServerView, *, probe_defaults: bool = False) -> Audit:
    """Raises what the client raises; a refused log-in is not repeated. `probe_defaults`: factory credentials are tried
    too, which the BMC counts as refused log-ins."""
    async with open_bmc(vault, view) as client:
        observed = await audit_bmc(client, view.spec.bmc.address)
    credential = await VaultSlots(vault, view).current()
    assert credential is not None  # we have just logged in with it
    shared = await asyncio.to_thread(PasswordIndex(vault).shared_with, view.name, credential.password)
    report = audit(
        view.name,
        observed,
        own_account=credential.username,
        password_shared_with=shared,
    )
    if not probe_defaults:
        return report
    connect, own = await connector(vault, view), credential.username
    return report.and_also(
        await probe(vault, view.name, connect, observed.posture, observed.firmware, own=own, now=time.time())
    )
