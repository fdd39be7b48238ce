"""The audit of servers that are ours: with the vaulted credential, over the pinned key. Reads and probes only."""

import asyncio
import time

from freehold.model.findings import Finding, Severity
from freehold.model.status import Facts
from freehold.orchestration import waivers
from freehold.orchestration.default_probe import probe
from freehold.orchestration.passwords import PasswordIndex, VaultSlots
from freehold.orchestration.site import connector, open_bmc
from freehold.orchestration.steps.secure_boot import databases
from freehold.orchestration.view import ServerView
from freehold.out_of_band.audit import Audit, audit, audit_bmc
from freehold.out_of_band.errors import BmcIdentityChanged
from freehold.out_of_band.secure_boot import KeyDatabases
from freehold.root_of_trust.attestation.reference import firmware_id
from freehold.root_of_trust.keys import secure_boot_keyring
from freehold.root_of_trust.vault import Vault


async def audit_server(vault: Vault, view: ServerView, *, probe_defaults: bool = False) -> Audit:
    """Raises what the client raises; a refused log-in is not repeated. A BMC that is not recognised is a finding: there
    is nothing else to be learned of it, since nothing is sent to it. `probe_defaults`: factory credentials are tried
    too, which the BMC counts as refused log-ins."""
    try:
        async with open_bmc(vault, view) as client:
            observed = await audit_bmc(client, view.spec.bmc.address)
    except BmcIdentityChanged as stranger:
        return Audit(server=view.name, findings=(_not_recognised(view.name, stranger),))
    credential = await VaultSlots(vault, view).current()
    assert credential is not None  # we have just logged in with it
    shared = await asyncio.to_thread(PasswordIndex(vault).shared_with, view.name, credential.password)
    report = audit(
        view.name,
        observed,
        own_account=credential.username,
        waived_accounts=frozenset(waivers.of_accounts(view.waivers, time.time())),
        keys=await asyncio.to_thread(_keys_of, vault, view.facts),
        password_shared_with=shared,
    )
    waived = waivers.exceptions(view.waivers, view.facts, view.name, time.time())
    report = report.and_also([*unapproved_firmware(view), *waived])
    if not probe_defaults:
        return report
    connect, own = await connector(vault, view), credential.username
    return report.and_also(
        await probe(vault, view.name, connect, observed.posture, observed.firmware, own=own, now=time.time())
    )


def _keys_of(vault: Vault, facts: Facts) -> KeyDatabases | None:
    """The Secure Boot keys that the server carries; None: none of ours, or they are being written."""
    if not facts.secure_boot_enrolled or facts.secure_boot_changing:
        return None
    return databases(secure_boot_keyring(vault).key_set(facts.secure_boot_generation or 1))


def _not_recognised(server: str, stranger: BmcIdentityChanged) -> Finding:
    return Finding(
        severity=Severity.CRITICAL,
        kind="bmc-identity",
        subject=server,
        detail=stranger.what,
        evidence="the certificate that it showed; nothing was sent to it",
        remedy=stranger.remedy or "find out what stands at its address",
    )


def unapproved_firmware(view: ServerView) -> tuple[Finding, ...]:
    """A server whose boots are held against what it measured first, because nobody was asked. Pure."""
    if not view.facts.reference_values or view.facts.reference_id is not None:  # {}: there is no TPM to measure
        return ()
    finding = Finding(
        severity=Severity.WARNING,
        kind="firmware-unapproved",
        subject=view.name,
        detail="nobody approved what its firmware measures: its reference values are learned, by policy",
        remedy="found the site's operators, retire the server, declare it anew: two of them approve what it measures",
        evidence=f"reference values {firmware_id(view.facts.reference_values)}",
    )
    return (finding,)
