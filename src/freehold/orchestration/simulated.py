"""Simulated servers: a world in memory and one doer for every step of the planner. For tests and for scale.

The world keeps what real hardware keeps (accounts, keys, disks, TPM), so a step that is done twice, or cut off in the
middle, meets what it left behind. `World.touched` lists side effects; faults are fields of a server.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from freehold.model.errors import FreeholdError
from freehold.model.resources import DriftKind
from freehold.model.status import AgentSession, BmcCertificate, Drift, FirmwareFact, ImageFact, Medium
from freehold.orchestration.conditions import bmc_firmware_wanted, firmware_wanted, wants_ticket
from freehold.orchestration.lifecycle import UNCLOSED, UNMEASURED
from freehold.orchestration.planner import STEPS
from freehold.orchestration.step import StepContext, StepFn, StepResult
from freehold.orchestration.waivers import ended

FACTORY, OURS = "factory", "ours"
CERTIFICATE_LIFE = 397 * 86400.0


@dataclass
class SimulatedServer:
    """One server: its BMC, its firmware, its media, its TPM, and what runs on it."""

    identity: str
    accounts: set[str] = field(default_factory=lambda: {FACTORY})
    rotations: int = 0
    certificates: int = 0
    ipmi: bool = True
    bios: dict[str, Any] = field(default_factory=dict)
    secure_boot: bool = False
    generation: int | None = 0  # of the Secure Boot keys in its firmware; 0: setup mode; None: half-written
    media: dict[str, str] = field(default_factory=lambda: {"nvme-0": "", "disk-1": ""})
    running: str = ""  # "", "ramdisk" or "os"
    boots: int = 0
    tpm_owner: str = ""
    keys: bool = False
    firmware: str = "1.0"
    bmc_version: str = "4.0"
    highest_fence: int = 0
    agent_silent: bool = False
    has_tpm: bool = True
    skips_erase: bool = False
    keeps_ipmi: bool = False  # nothing turns it off: two people waived it, and their waiver has ended
    wrong_image: bool = False

    def bios_fact(self) -> FirmwareFact:
        return FirmwareFact(vendor="simulated", model="simulated", version=self.firmware)

    def measures(self) -> dict[str, tuple[str, ...]]:
        return {"0": (self.firmware,), "2": ()}


class StaleCommandError(FreeholdError):
    """A command with a fence lower than one that was seen already: a replica that lost its lease sent it."""


class World:
    """All simulated servers, by name; a server that nobody has seen yet is a new one."""

    def __init__(self) -> None:
        self.servers: dict[str, SimulatedServer] = {}
        self.touched: list[tuple[str, str, int]] = []  # (server, key, fence) of every side effect
        self.surprises: list[str] = []  # boots that would have measured other Secure Boot keys than was predicted

    def server(self, name: str) -> SimulatedServer:
        if name not in self.servers:
            self.servers[name] = SimulatedServer(identity=f"spki-{name}")
        return self.servers[name]

    async def touch(self, context: StepContext, timeout: float = 5.0) -> SimulatedServer:
        """A command to the server: under a lease that is long enough, and refused if its fence is stale."""
        await context.ensure_lease(timeout)
        server = self.server(context.name)
        if context.fence < server.highest_fence:
            raise StaleCommandError(f"fence {context.fence} after {server.highest_fence}", server=context.name)
        server.highest_fence = context.fence
        self.touched.append((context.name, context.key, context.fence))
        return server

    def steps(self) -> dict[str, StepFn]:
        """A doer for every step of the planner."""
        return {name: self._doer(getattr(self, f"_{name}")) for name in STEPS}

    def _doer(self, doer: Callable[[StepContext, SimulatedServer], Awaitable[StepResult]]) -> StepFn:
        async def step(context: StepContext) -> StepResult:
            return await doer(context, await self.touch(context))

        return step

    # securing

    async def _pin_identity(self, context: StepContext, server: SimulatedServer) -> StepResult:
        return _proved("bmc-identity", bmc_identity=server.identity)

    async def _take_over_credential(self, context: StepContext, server: SimulatedServer) -> StepResult:
        server.accounts.add(OURS)
        return _proved("credential", bmc_credential_committed=True, bmc_credential_since=context.now)

    async def _install_certificate(self, context: StepContext, server: SimulatedServer) -> StepResult:
        server.certificates += 1
        serial = f"{server.certificates:x}"
        installed = BmcCertificate(
            serial=serial, sha256=serial, not_before=context.now, not_after=context.now + CERTIFICATE_LIFE
        )
        return _proved("certificate", bmc_certificate=installed)

    async def _disable_factory_accounts(self, context: StepContext, server: SimulatedServer) -> StepResult:
        server.accounts.discard(FACTORY)
        return StepResult(facts={"factory_accounts_disabled": True})

    async def _disable_ipmi(self, context: StepContext, server: SimulatedServer) -> StepResult:
        server.ipmi = server.keeps_ipmi
        return StepResult(facts={"ipmi_off": True, "ipmi_waived": server.keeps_ipmi})

    async def _close_services(self, context: StepContext, server: SimulatedServer) -> StepResult:
        return _proved("posture", services_closed=True)

    async def _record_posture(self, context: StepContext, server: SimulatedServer) -> StepResult:
        return _proved("posture", posture_recorded=True)

    # discovering

    async def _read_oob_inventory(self, context: StepContext, server: SimulatedServer) -> StepResult:
        inventory = {"drives": sorted(server.media)}
        facts = {"oob_inventory": inventory, "firmware": server.bios_fact(), "bmc_version": server.bmc_version}
        return StepResult(facts=facts)

    async def _require_tpm(self, context: StepContext, server: SimulatedServer) -> StepResult:
        server.running = ""
        await context.agents.end_session(context.name)
        facts = {"tpm_missing": context.now, "agent_booted_at": None, "boot_ticket": None}
        return StepResult(done=False, facts=facts, waiting_for="a usable TPM 2.0, or a waiver")

    async def _boot_agent(self, context: StepContext, server: SimulatedServer) -> StepResult:
        await self._boot(context, server, "ramdisk")
        ticket = "t" * 64 if wants_ticket(context.server, context.now) else None
        facts = {"agent_booted_at": context.now, "agent_trust": context.server.agent_trust, "boot_ticket": ticket}
        return StepResult(facts=facts)

    async def _collect_inventory(self, context: StepContext, server: SimulatedServer) -> StepResult:
        return _proved("inventory", inband_inventory={"drives": sorted(server.media)})

    async def _compare_inventory(self, context: StepContext, server: SimulatedServer) -> StepResult:
        if context.facts.oob_inventory != context.facts.inband_inventory:
            return StepResult(quarantine="the BMC and the server itself do not report the same hardware")
        return StepResult(facts={"inventory_agrees": True})

    async def _bind_ek(self, context: StepContext, server: SimulatedServer) -> StepResult:
        if not server.has_tpm:
            return _proved("waiver", tpm_waived=True, tpm_missing=None, learned_reference={})
        return StepResult(facts={"ek_sha256": f"ek-{context.name}", "learned_reference": server.measures()})

    async def _release_agent(self, context: StepContext, server: SimulatedServer) -> StepResult:
        server.running = ""
        await context.agents.end_session(context.name)
        return StepResult(facts={"agent_released": True, "boot_ticket": None})

    # preparing

    async def _apply_bios(self, context: StepContext, server: SimulatedServer) -> StepResult:
        server.bios = dict(context.server.spec.bios)
        return StepResult(facts={"bios_applied": True})

    async def _enroll_secure_boot(self, context: StepContext, server: SimulatedServer) -> StepResult:
        if not context.facts.secure_boot_changing:
            return StepResult(done=False, facts={"secure_boot_changing": True}, retry_after=0.1)
        server.running, server.generation = "", None
        await asyncio.sleep(0)  # whoever dies here leaves it half-written
        server.secure_boot, server.generation = True, context.server.secure_boot_generation
        facts = {"secure_boot_generation": server.generation, "secure_boot_changing": False}
        return _proved("secure-boot", secure_boot_enrolled=True, **facts)

    async def _approve_reference(self, context: StepContext, server: SimulatedServer) -> StepResult:
        return StepResult(facts={"reference_values": context.facts.learned_reference})

    async def _learn_reference(self, context: StepContext, server: SimulatedServer) -> StepResult:
        return StepResult(facts={"learned_reference": server.measures() if server.has_tpm else {}})

    async def _apply_bmc_firmware(self, context: StepContext, server: SimulatedServer) -> StepResult:
        server.bmc_version, server.ipmi = bmc_firmware_wanted(context.server) or server.bmc_version, True
        return _proved("firmware", bmc_version=server.bmc_version, **UNCLOSED)

    async def _apply_firmware(self, context: StepContext, server: SimulatedServer) -> StepResult:
        server.firmware = firmware_wanted(context.server) or server.firmware
        return _proved("firmware", firmware=server.bios_fact(), **UNMEASURED)

    # provisioning

    async def _write_image(self, context: StepContext, server: SimulatedServer) -> StepResult:
        assigned = context.server.assignment
        assert assigned is not None
        await context.order("write_image", {"device_serial": "nvme-0"})
        await self._answer(context, {"written": True})
        server.media["nvme-0"] = f"image of {assigned.spec.hostname}"
        server.keys = True
        image = ImageFact(name=assigned.spec.image, version="1", manifest="m")
        return _proved("image", image=image, image_written=True)

    async def _write_seed(self, context: StepContext, server: SimulatedServer) -> StepResult:
        return StepResult(facts={"seed_written": True, "os_ticket": None if server.has_tpm else "o" * 64})

    async def _set_boot_entry(self, context: StepContext, server: SimulatedServer) -> StepResult:
        return _proved("boot-config", boot_entry_set=True)

    async def _boot_os(self, context: StepContext, server: SimulatedServer) -> StepResult:
        server.tpm_owner = "os"
        await self._boot(context, server, "os")
        return StepResult(facts={"os_booted_at": context.now, "boot_ticket": None})

    # available, active

    async def _rotate_credential(self, context: StepContext, server: SimulatedServer) -> StepResult:
        server.rotations += 1
        return _proved("credential", bmc_credential_since=context.now)

    async def _renew_certificate(self, context: StepContext, server: SimulatedServer) -> StepResult:
        return await self._install_certificate(context, server)

    async def _renew_attestation(self, context: StepContext, server: SimulatedServer) -> StepResult:
        await self._hello(context, server)
        return StepResult(done=False, facts={"last_attestation": context.now}, retry_after=0.1)

    async def _check_revocations(self, context: StepContext, server: SimulatedServer) -> StepResult:
        return StepResult(facts={"revocations_checked": context.server.secure_boot_generation})

    async def _tell_ended_waivers(self, context: StepContext, server: SimulatedServer) -> StepResult:
        return StepResult(facts={"waivers_ended": ended(context.server.waivers, context.facts, context.now)})

    async def _check_drift(self, context: StepContext, server: SimulatedServer) -> StepResult:
        found = []
        if not server.secure_boot:
            found.append(Drift(kind=DriftKind.SECURE_BOOT, subject="SecureBoot", expected="on", observed="off"))
        if server.bios != dict(context.server.spec.bios):
            kind = DriftKind.BIOS_ATTRIBUTE
            found.append(Drift(kind=kind, subject="BIOS", expected="as declared", observed=str(server.bios)))
        foreign = server.accounts - {OURS}
        if foreign:
            kind = DriftKind.BMC_ACCOUNT
            found.append(Drift(kind=kind, subject=",".join(foreign), expected="absent", observed="present"))
        return StepResult(facts={"drift": tuple(found), "last_drift_check": context.now})

    async def _remediate(self, context: StepContext, server: SimulatedServer) -> StepResult:
        kind = DriftKind(context.subject)
        keys = kind in (DriftKind.SECURE_BOOT, DriftKind.SECURE_BOOT_KEYS)
        if keys and not context.facts.secure_boot_changing:
            return StepResult(done=False, facts={"secure_boot_changing": True}, retry_after=0.1)
        match kind:
            case DriftKind.BIOS_ATTRIBUTE:
                server.bios = dict(context.server.spec.bios)
            case DriftKind.SECURE_BOOT | DriftKind.SECURE_BOOT_KEYS:
                server.secure_boot = True
            case DriftKind.BMC_ACCOUNT:
                server.accounts = {OURS}
        facts: dict[str, Any] = {"secure_boot_changing": False} if keys else {}
        facts |= {"remediated": (*context.facts.remediated, kind), "last_remediation": context.now}
        return _proved("remediation", **facts)

    # decommissioning

    async def _power_off(self, context: StepContext, server: SimulatedServer) -> StepResult:
        server.running = ""
        return StepResult(facts={"workload_stopped": True})

    async def _list_media(self, context: StepContext, server: SimulatedServer) -> StepResult:
        return StepResult(facts={"media": tuple(Medium(serial=serial) for serial in sorted(server.media))})

    async def _plant_canaries(self, context: StepContext, server: SimulatedServer) -> StepResult:
        server.media[context.subject] = "canary"
        return StepResult(facts={"media": _media(context, planted=True)})

    async def _sanitize(self, context: StepContext, server: SimulatedServer) -> StepResult:
        if not server.skips_erase:
            server.media[context.subject] = ""
        return StepResult(facts={"media": _media(context, sanitized=True)})

    async def _verify_sanitized(self, context: StepContext, server: SimulatedServer) -> StepResult:
        clean = server.media[context.subject] == ""
        quarantine = None if clean else f"medium {context.subject} still has data after its erase"
        return StepResult(facts={"media": _media(context, verified=clean)}, quarantine=quarantine)

    async def _clear_tpm(self, context: StepContext, server: SimulatedServer) -> StepResult:
        server.tpm_owner = ""
        return StepResult(facts={"tpm_cleared": True})

    async def _destroy_keys(self, context: StepContext, server: SimulatedServer) -> StepResult:
        server.keys = False
        return _proved("key-destruction", keys_destroyed=True)

    async def _reassert_state(self, context: StepContext, server: SimulatedServer) -> StepResult:
        server.secure_boot, server.bios = True, dict(context.server.spec.bios)
        return StepResult(facts={"state_reasserted": True})

    async def _certify(self, context: StepContext, server: SimulatedServer) -> StepResult:
        index = await context.record("decommission-certificate", {"media": sorted(server.media)})
        return StepResult(facts={"certificate_index": index})

    # what runs on the server

    async def _boot(self, context: StepContext, server: SimulatedServer, mode: str) -> None:
        expected = (context.facts.secure_boot_generation or 1) if context.facts.secure_boot_enrolled else 0
        if server.generation != expected:
            self.surprises.append(f"{context.name} measures generation {server.generation}, expected is {expected}")
        server.boots += 1
        server.running = mode
        if not server.agent_silent:
            await self._hello(context, server)

    async def _hello(self, context: StepContext, server: SimulatedServer) -> None:
        now = context.now
        trusted = now if not (server.wrong_image and server.running == "os") else None
        details: dict[str, Any] = {}
        if not server.has_tpm:
            waived = wants_ticket(context.server, now)
            trusted, details = (now, {"ticket": "t" * 64}) if waived else (None, {"no_tpm": True})
        session = AgentSession(
            id=f"{context.name}-{server.boots}-{context.fence}",
            mode="os" if server.running == "os" else "ramdisk",
            boot_id=f"boot-{server.boots}",
            started=now,
            last_seen=now,
            attested_at=trusted,
            ready_at=trusted if server.running == "os" else None,
            details=details,
        )
        await context.agents.put_session(context.name, session)

    async def _answer(self, context: StepContext, result: dict[str, Any]) -> None:
        """The simulated agent carries out its order at once."""
        order = await context.agents.next_order(context.name)
        if order is not None:
            await context.agents.finish(context.name, order.id, ok=True, result=result, error=None)


def _proved(statement: str, **facts: Any) -> StepResult:
    return StepResult(facts=facts, statements=((statement, {"facts": sorted(facts)}),))


def _media(context: StepContext, **changes: Any) -> tuple[Medium, ...]:
    """The media, with the one that the step is for changed."""
    media = context.facts.media or ()
    return tuple(msgspec.structs.replace(each, **changes) if each.serial == context.subject else each for each in media)
