"""The audit of servers that are ours: with the vaulted credential, over the pinned key. Reads and probes only."""

import asyncio

import msgspec

from freehold.model.findings import Finding, Severity
from freehold.orchestration.passwords import PasswordIndex, VaultSlots
from freehold.orchestration.site import open_bmc
from freehold.orchestration.view import ServerView
from freehold.out_of_band.audit import Audit, audit, audit_bmc
from freehold.out_of_band.posture import worst_first
from freehold.root_of_trust.attestation.reference import firmware_id
from freehold.root_of_trust.vault import Vault


async def audit_server(vault: Vault, view: ServerView) -> Audit:
    """Raises what the client raises; a refused log-in is not repeated."""
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
    return msgspec.structs.replace(report, findings=tuple(worst_first([*report.findings, *unapproved_firmware(view)])))


def unapproved_firmware(view: ServerView) -> tuple[Finding, ...]:
    """A server whose boots are held against what it measured first, because nobody was asked. Pure."""
    if view.facts.reference_values is None or view.facts.reference_id is not None:
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
