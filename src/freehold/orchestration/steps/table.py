"""Step name -> doer. `planner.STEPS` names what must be here; a test holds the two together."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from freehold.model.findings import Finding, Severity
from freehold.orchestration.site import Site
from freehold.orchestration.step import StepContext, StepFn, StepResult
from freehold.orchestration.steps import (
    booting,
    certificates,
    decommissioning,
    discovering,
    firmware,
    preparing,
    provisioning,
    revocations,
    secure_boot,
    securing,
    tickets,
    watching,
)
from freehold.out_of_band.errors import AccountLocked, BmcIdentityChanged, CsrRefused, TakeoverStopped, WrongCredential

Doer = Callable[[Site, StepContext], Awaitable[StepResult]]

DOERS: dict[str, Doer] = {
    "pin_identity": securing.pin_identity,
    "take_over_credential": securing.take_over_credential,
    "install_certificate": certificates.install,
    "disable_factory_accounts": securing.disable_factory_accounts,
    "disable_ipmi": securing.disable_ipmi,
    "close_services": securing.close_services,
    "record_posture": securing.record_posture,
    "read_oob_inventory": discovering.read_oob_inventory,
    "require_tpm": tickets.require_tpm,
    "boot_agent": booting.boot_agent,
    "collect_inventory": discovering.collect_inventory,
    "compare_inventory": discovering.compare_inventory,
    "bind_ek": discovering.bind_ek,
    "release_agent": booting.release_agent,
    "learn_reference": firmware.learn_reference,
    "apply_firmware": firmware.apply_firmware,
    "apply_bmc_firmware": firmware.apply_bmc_firmware,
    "apply_bios": preparing.apply_bios,
    "enroll_secure_boot": secure_boot.enroll,
    "approve_reference": preparing.approve_reference,
    "write_image": provisioning.write_image,
    "write_seed": provisioning.write_seed,
    "set_boot_entry": provisioning.set_boot_entry,
    "boot_os": booting.boot_os,
    "rotate_credential": securing.rotate_credential,
    "renew_certificate": certificates.install,
    "renew_attestation": watching.renew_attestation,
    "check_revocations": revocations.check,
    "tell_ended_waivers": watching.tell_ended_waivers,
    "check_drift": watching.check_drift,
    "remediate": watching.remediate,
    "power_off": booting.power_off,
    "list_media": decommissioning.list_media,
    "plant_canaries": decommissioning.plant_canaries,
    "sanitize": decommissioning.sanitize,
    "verify_sanitized": decommissioning.verify_sanitized,
    "clear_tpm": decommissioning.clear_tpm,
    "destroy_keys": decommissioning.destroy_keys,
    "reassert_state": decommissioning.reassert_state,
    "certify": decommissioning.certify,
}


NEEDS_A_PERSON = (WrongCredential, BmcIdentityChanged, CsrRefused, TakeoverStopped)
"""Trying again would make it worse: a refused log-in counts towards the lockout, a changed key is no BMC of ours."""

LOCKED = "bmc-account-locked"
UNLOCKED_WITHIN = 1800.0
"""Seconds until a locked account is tried again: longer than what vendors ship as AccountLockoutDuration."""


async def guarded(doer: Doer, site: Site, ctx: StepContext) -> StepResult:
    """The doer; what needs a person quarantines the server, so that the engine does not repeat it. What is over by
    itself is waited for: anybody who reaches a BMC's log-in can lock our account, and must not be able to do more."""
    try:
        result = await doer(site, ctx)
    except AccountLocked as error:
        return _locked(ctx, error)
    except NEEDS_A_PERSON as error:
        if isinstance(error, TakeoverStopped) and error.wait is not None:
            waiting = f"the BMC to forget interrupted log-ins: {error.what}"
            return StepResult(done=False, retry_after=error.wait + 1.0, waiting_for=waiting)
        return StepResult(done=False, quarantine=f"{error.what}; {error.remedy}" if error.remedy else error.what)
    return replace(result, resolved=(*result.resolved, LOCKED)) if _was_locked(ctx) else result


def _was_locked(ctx: StepContext) -> bool:
    return any(finding.kind == LOCKED for finding in ctx.server.status.findings)


def _locked(ctx: StepContext, error: AccountLocked) -> StepResult:
    finding = Finding(
        severity=Severity.CRITICAL,
        kind=LOCKED,
        subject=ctx.name,
        detail=f"{error.what}: somebody tries passwords on this BMC",
        remedy="find out who reaches its log-in, in the BMC's own log; the account is tried again by itself",
    )
    events = () if _was_locked(ctx) else (finding.detail,)
    waiting = "the BMC to unlock our account"
    return StepResult(done=False, retry_after=UNLOCKED_WITHIN, waiting_for=waiting, findings=(finding,), events=events)


def steps_of(site: Site) -> dict[str, StepFn]:
    """The doers, bound to a site."""
    return {name: partial(guarded, doer, site) for name, doer in DOERS.items()}
