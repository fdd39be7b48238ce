"""The step that puts a certificate of the site's BMC CA on a BMC, for the first time and for each renewal.

One run of the step does one thing; what it did is a fact before the next begins (`out_of_band.certificates`). A
certificate is in the evidence log before the BMC gets it.
"""

from datetime import UTC, datetime

import msgspec
from cryptography import x509

from freehold.model.findings import Finding, Severity
from freehold.model.resources import Waivable
from freehold.model.status import BmcCertificate, PendingCertificate
from freehold.orchestration import waivers
from freehold.orchestration.site import BMC_COMMAND, Site
from freehold.orchestration.step import StepContext, StepResult
from freehold.out_of_band import certificates as oob
from freehold.out_of_band import transport
from freehold.out_of_band.certificates import CertificateStep
from freehold.out_of_band.errors import BmcError, NotSupported
from freehold.root_of_trust import pki

AT_ONCE = 0.1
LOOK_AGAIN = 5.0
ANEW = 60.0
"""Seconds until the step runs again: it goes on, it waits for the BMC, it begins from the start."""

FINDING = Waivable.BMC_CERTIFICATE.value


async def install(site: Site, ctx: StepContext) -> StepResult:
    """A few BMCs at a time: when the BMC CA was replaced, every one of them is due."""
    if site.renewals.locked():
        waiting = "its turn to get a certificate"
        return StepResult(done=False, retry_after=LOOK_AGAIN, waiting_for=waiting)
    async with site.renewals:
        return await _install(site, ctx)


async def _install(site: Site, ctx: StepContext) -> StepResult:
    served = await transport.fetch_identity(ctx.server.spec.bmc.address, server=ctx.name)
    match oob.next_certificate_step(ctx.facts.bmc_certificate_pending, served.certificate_pem, ctx.now):
        case CertificateStep.REQUEST:
            try:
                return await _request(site, ctx)
            except NotSupported as error:
                return _without(ctx, error)
        case CertificateStep.REPLACE:
            return await _replace(site, ctx)
        case CertificateStep.WAIT:
            return _not_yet({}, LOOK_AGAIN)
        case CertificateStep.RESTART:
            return await _restart(site, ctx)
        case CertificateStep.CONFIRM:
            return await _confirm(site, ctx)
        case CertificateStep.GIVE_UP:
            return _give_up(ctx, "it accepted the certificate and goes on to serve another one")


async def _request(site: Site, ctx: StepContext) -> StepResult:
    host = transport.split_address(ctx.server.spec.bmc.address)[0]
    await ctx.ensure_lease(BMC_COMMAND)
    async with site.bmc(ctx.server, ctx.ensure_lease) as client:
        request = await oob.request_certificate(client, host)
    key = oob.requested_key(request, host, ctx.facts.bmc_identity, server=ctx.name)
    issued = await site.issue_bmc_certificate(key, host, datetime.fromtimestamp(ctx.now, UTC))
    pending = PendingCertificate(pem=pki.pem(issued).decode())
    return _not_yet({"bmc_certificate_pending": pending}, AT_ONCE, ("certificate", pki.claim(issued, "BMC")))


def _without(ctx: StepContext, error: NotSupported) -> StepResult:
    """A BMC that cannot take a certificate keeps its pinned key, if two people signed for that. One that had a
    certificate has no key to fall back to."""
    waiver = waivers.waiver_for(ctx.server.waivers, Waivable.BMC_CERTIFICATE, ctx.now)
    if waiver is None or ctx.facts.bmc_certificate is not None:
        hint = waivers.remedy(ctx.name, Waivable.BMC_CERTIFICATE)
        raise NotSupported(
            error.what, server=ctx.name, remedy=f"{error.remedy or 'look at the BMC'}, {hint}"
        ) from error
    claim = waivers.claim(waiver, ctx.now, why=error.what, spki_sha256=ctx.facts.bmc_identity)
    return StepResult(facts={"bmc_certificate_waived": True}, statements=(("waiver", claim),), resolved=(FINDING,))


async def _replace(site: Site, ctx: StepContext) -> StepResult:
    pending = _pending(ctx)
    await ctx.ensure_lease(BMC_COMMAND)
    async with site.bmc(ctx.server, ctx.ensure_lease) as client:
        try:
            await oob.replace_certificate(client, pending.pem)
        except BmcError as error:
            if error.status == 403:
                raise
            return _give_up(ctx, f"it refused the certificate that it had asked for: {error.what}")
    return _not_yet({"bmc_certificate_pending": msgspec.structs.replace(pending, sent_at=ctx.now)}, AT_ONCE)


async def _restart(site: Site, ctx: StepContext) -> StepResult:
    pending = msgspec.structs.replace(_pending(ctx), restarted_at=ctx.now)
    await ctx.ensure_lease(BMC_COMMAND)
    async with site.bmc(ctx.server, ctx.ensure_lease) as client:
        await oob.restart_bmc(client)
    return _not_yet({"bmc_certificate_pending": pending}, LOOK_AGAIN)


async def _confirm(site: Site, ctx: StepContext) -> StepResult:
    """From here on the CA alone counts; a log-in under that rule is the proof that it does not lock us out."""
    served = x509.load_pem_x509_certificate(_pending(ctx).pem.encode())
    installed = BmcCertificate(
        serial=f"{served.serial_number:x}",
        sha256=pki.sha256(served),
        not_before=served.not_valid_before_utc.timestamp(),
        not_after=served.not_valid_after_utc.timestamp(),
        issuer=pki.issuer_key_id(served),
    )
    facts = {"bmc_certificate": installed, "bmc_certificate_pending": None, "bmc_certificate_waived": False}
    changed = msgspec.structs.replace(ctx.facts, **facts)
    status = msgspec.structs.replace(ctx.server.status, facts=changed)
    async with site.bmc(msgspec.structs.replace(ctx.server, status=status), ctx.ensure_lease):
        pass
    claim = {
        "address": ctx.server.spec.bmc.address,
        "method": "certificate of the site's BMC CA",
        "serial": installed.serial,
        "sha256": installed.sha256,
        "spki_sha256": pki.spki_sha256(served),
    }
    until = f"{served.not_valid_after_utc:%Y-%m-%d}"
    return StepResult(
        facts=facts,
        statements=(("bmc-identity", claim),),
        events=(f"its BMC serves certificate {installed.serial} of the site's BMC CA, until {until}",),
        resolved=(FINDING,),
    )


def _pending(ctx: StepContext) -> PendingCertificate:
    pending = ctx.facts.bmc_certificate_pending
    assert pending is not None
    return pending


def _not_yet(facts: dict[str, object], again: float, *statements: tuple[str, dict[str, object]]) -> StepResult:
    waiting = "the BMC to serve its new certificate"
    return StepResult(done=False, facts=facts, retry_after=again, statements=statements, waiting_for=waiting)


def _give_up(ctx: StepContext, why: str) -> StepResult:
    """Begin again with a new key and request. The old certificate still counts, so nothing is lost but time."""
    finding = Finding(
        severity=Severity.WARNING,
        kind=FINDING,
        subject=ctx.name,
        detail=f"the BMC does not take a certificate: {why}",
        remedy=f"look at the BMC and its firmware, {waivers.remedy(ctx.name, Waivable.BMC_CERTIFICATE)}",
    )
    return StepResult(
        done=False,
        facts={"bmc_certificate_pending": msgspec.structs.replace(_pending(ctx), given_up=True)},
        retry_after=ANEW,
        waiting_for="another try to give the BMC a certificate",
        events=(finding.detail,),
        findings=(finding,),
    )
