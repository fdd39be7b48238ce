"""The controller of a site: engine, agent API, boot server and DHCP in one process, from one state directory."""

import asyncio
import contextlib
import ipaddress
import logging
import os
import shutil
import ssl
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web
from cryptography.hazmat.primitives import hashes

from freehold.evidence import Envelope, EvidenceLog, Predicate, Statement, Subject
from freehold.model.errors import FreeholdError
from freehold.model.findings import Finding
from freehold.model.resources import NetworkSpec, SiteSpec
from freehold.orchestration.agent_door import AgentDoor
from freehold.orchestration.depot_watch import watch_depot
from freehold.orchestration.engine import Engine
from freehold.orchestration.evidence_due import watch_evidence_due
from freehold.orchestration.factory_passwords import watch_factory_passwords
from freehold.orchestration.issuance import record_certificates, watch_certificates
from freehold.orchestration.key_generations import watch_generations
from freehold.orchestration.key_replacements import announce_keys, watch_replacements
from freehold.orchestration.ledger import LISTENING
from freehold.orchestration.opening import BootArtifacts, known_builds
from freehold.orchestration.os_images import kept_images, require_agent, watch_images
from freehold.orchestration.passwords import PasswordIndex
from freehold.orchestration.site import BOOT_PORT, FIRMWARE_PORT, Site, agent_port
from freehold.orchestration.step import Record
from freehold.orchestration.steps.booting import answered
from freehold.orchestration.steps.table import steps_of
from freehold.orchestration.store import Store
from freehold.orchestration.view import ServerView
from freehold.provisioning.agent_api import create_agent_app
from freehold.provisioning.boot_server import BootFiles, create_boot_app
from freehold.provisioning.dhcp import DhcpSettings, Dnsmasq
from freehold.provisioning.rogue import find_rogues
from freehold.root_of_trust import pki
from freehold.root_of_trust.attestation.ek import RootsDirectory
from freehold.root_of_trust.depot import MetadataExpired, Seen
from freehold.root_of_trust.keys import CertifiedKey, SiteKeys
from freehold.root_of_trust.vault import Vault

logger = logging.getLogger(__name__)

CERTIFICATE_INTERVAL, DAY = 3600.0, 86400.0
"""Seconds between two looks at the controller's certificate."""

ROGUE_INTERVAL = 30.0
"""Seconds between two probes for foreign DHCP servers."""


def make_site(
    state: Path, spec: SiteSpec, networks: dict[str, NetworkSpec], vault: Vault, keys: SiteKeys, boot: BootArtifacts
) -> Site:
    """Everything the steps need, from what was opened."""
    agents, systems = known_builds(state, keys)
    systems |= kept_images(state)
    files = BootFiles()
    for path in (boot.agent_efi, boot.agent_iso, boot.stage2):
        files.register("boot", path.name, path)
    files.register("images", boot.os.path.name, boot.os.path)
    tftp = (state / "tftp").resolve()
    tftp.mkdir(exist_ok=True)
    shutil.copy(boot.agent_efi, tftp / "agent.efi")  # apart: TFTP serves whatever lies in its directory
    return Site(
        directory=state,
        spec=spec,
        networks=networks,
        vault=vault,
        keys=keys,
        agent_image=boot.agent,
        agent_trust=(boot.os.agent_ca, keys.image_generation),
        agent_iso=boot.agent_iso.name,
        images={boot.os.name: boot.os},
        agent_builds=agents,
        os_builds=systems,
        tpm_roots=RootsDirectory(state / "tpm-roots"),
        files=files,
        tftp=tftp,
    )


def depot_seen(log: EvidenceLog) -> Seen | None:
    """What the newest statement on something out of the depot says of it: firmware, or an image."""
    newest = None
    for entry in log.entries():
        claim = Statement.from_bytes(Envelope.from_bytes(entry.envelope).payload)
        if claim.kind in (Predicate.FIRMWARE, Predicate.IMAGE):
            newest = claim.predicate.get("depot", newest)
    return msgspec.convert(newest, Seen) if newest is not None else None


def recorder(log: EvidenceLog) -> Record:
    """`record(name, server, predicate)` on the log; each statement carries server and time."""

    async def record(name: str, server: str, predicate: dict[str, Any]) -> int:
        facts = {"server": server, **predicate}
        claim = Statement.claim(Predicate(name), [Subject.of_name(f"server/{server}")], facts)
        return (await asyncio.to_thread(log.append, claim)).index

    return record


async def serve(site: Site, store: Store, log: EvidenceLog) -> None:
    """Run until cancelled. With each new certificate of the controller everything starts anew, in a moment: whoever
    speaks to us attests again, as after any restart, and binds the certificate that is shown now. Raises rather than
    boot an agent that the depot does not list, where it lists one; while its list is expired nothing is booted, and the
    rest goes on."""
    site.store = store
    try:
        await require_agent(site, read=True)
    except MetadataExpired as error:
        logger.error("no agent is booted until the depot is renewed: %s", error)
    while True:
        running = asyncio.create_task(_serve(site, store, log))
        renewed = asyncio.create_task(renewed_keys(site, store))
        try:
            await asyncio.wait({running, renewed}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                return await running
        finally:
            for task in (renewed, running):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        site.keys = renewed.result()
        logger.info("the controller has a new certificate: starting anew with it")


async def renewed_keys(
    site: Site, store: Store, now: Callable[[], datetime] = pki.utc_now, interval: float = CERTIFICATE_INTERVAL
) -> SiteKeys:
    """The site's keys with the next certificate of the controller, once that is due: a third of its life is left. What
    keeps it from being renewed is told every day, while the old one still serves."""
    told = float("-inf")
    while True:
        held = (site.keys.controller_tls, *site.keys.former_tls)
        if any(pki.needs_renewal(each.certificate, now()) for each in held):
            try:
                return await asyncio.to_thread(SiteKeys.load, site.directory, site.vault, now)
            except (FreeholdError, OSError) as error:
                logger.error("the controller's certificate cannot be renewed: %s", error)
                if now().timestamp() - told > DAY:
                    told = now().timestamp()
                    until = site.keys.controller_tls.certificate.not_valid_after_utc
                    why = f"the controller's certificate ends on {until:%Y-%m-%d} and cannot be renewed: {error}"
                    await store.add_event(None, "certificate", f"{why}; after that no agent attests any more")
        await asyncio.sleep(interval)


async def _serve(site: Site, store: Store, log: EvidenceLog) -> None:
    """Run until cancelled; then stop every service in good order."""
    record = recorder(log)
    shown = (site.keys.controller_tls, *site.keys.former_tls)
    door = AgentDoor(site, store, record, *(key.certificate_der for key in shown))
    site.store, site.agents, site.bell = store, store.agents, door.ring
    addresses = site.spec.controller
    async with AsyncExitStack() as stack:
        for address in dict.fromkeys((addresses.provisioning, addresses.oob)):
            boot_app = create_boot_app(site.files)
            if address == addresses.oob:
                site.tickets.add_routes(boot_app)
            await _listen(stack, boot_app, address, BOOT_PORT, None)
        chain = site.keys.agent_ca.certificate_pem
        await _listen(
            stack,
            site.shelf.create_app(),
            addresses.oob,
            FIRMWARE_PORT,
            tls_context(site.keys.controller_tls, chain=chain),
        )
        for key in shown:  # whoever attests gets a certificate of today's agent CA, however it knows us
            digest = key.certificate.fingerprint(hashes.SHA256())
            tls = tls_context(key, clients=site.keys.agent_ca.certificate_pem)
            port = agent_port(key.generation)
            await _listen(stack, create_agent_app(door, digest), addresses.provisioning, port, tls)
        await store.announce(LISTENING, str(time.time()))
        interface = await interface_of(addresses.provisioning)
        site.dhcp = Dnsmasq(dhcp_settings(site, interface), site.directory / "dhcp")
        await site.dhcp.start()
        stack.push_async_callback(site.dhcp.stop)
        await answer_known(site, store)
        await record_certificates(site.vault, log)
        await announce_keys(store, site.vault, site.agent_trust)
        await asyncio.to_thread(PasswordIndex(site.vault).complete)
        for watcher in (
            asyncio.create_task(watch_for_rogues(interface, addresses.provisioning, store), name="rogue-dhcp"),
            asyncio.create_task(watch_certificates(site.vault, log), name="certificates"),
            asyncio.create_task(watch_replacements(store, site.vault, site.agent_trust), name="site keys"),
            asyncio.create_task(watch_generations(site.keys.secure_boot, store, log), name="Secure Boot keys"),
            asyncio.create_task(watch_depot(site, store, log), name="depot"),
            asyncio.create_task(watch_images(site, store), name="images"),
            asyncio.create_task(watch_evidence_due(store, log), name="approvals"),
            asyncio.create_task(watch_factory_passwords(store), name="factory passwords"),
        ):
            watcher.add_done_callback(_say_why_it_ended)
            stack.callback(watcher.cancel)
        site.depot_seen = await asyncio.to_thread(depot_seen, log)
        engine = engine_of(site, store, record)
        door.nudge = engine.nudge
        known = ", ".join(f"{count} {state}" for state, count in (await store.states()).items())
        logger.info("ready: %s", known or "no servers yet")
        await engine.run()


def _say_why_it_ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("%s ended: nobody does its work now", task.get_name(), exc_info=error)


async def watch_for_rogues(interface: str, own: str, store: Store) -> None:
    """Ask the segment who else offers addresses, for ever; a change of the answer is an event for people."""
    known: dict[str, Finding] = {}
    while True:
        try:
            found = {rogue.detail: rogue for rogue in await find_rogues(interface, frozenset({own}))}
        except FreeholdError as error:
            logger.error("%s", error)
        else:
            for detail in found.keys() - known.keys():
                rogue = found[detail]
                logger.error("%s; %s; %s", detail, rogue.evidence, rogue.remedy)
                await store.add_event(None, rogue.kind, f"{detail}; {rogue.evidence}; {rogue.remedy}")
            if known and not found:
                await store.add_event(None, "rogue-dhcp", f"no foreign DHCP server answers on {interface} any more")
            known = found
        await asyncio.sleep(ROGUE_INTERVAL)


async def answer_known(site: Site, store: Store) -> None:
    """After a restart: whoever may be running on our network keeps its address."""
    after = ("Server", "")
    while page := await store.list_resources("Server", after=after):
        for view in (await store.ledger.views([declared.resource.name for declared in page])).values():
            if hosts := answered(site, view):
                await site.answer_dhcp(view.name, hosts)
        after = page[-1].resource.key


def engine_of(site: Site, store: Store, record: Record) -> Engine:
    """The engine on the site's steps. As a server enters a state, DHCP follows: what is quarantined boots nothing."""

    async def follow(entering: ServerView) -> None:
        try:
            await site.answer_dhcp(entering.name, answered(site, entering))
        except (FreeholdError, OSError) as error:  # a quarantine does not wait for dnsmasq
            logger.error("server %s: %s", entering.name, error)

    return Engine(store, steps_of(site), record, alone=True, entering=follow)


def dhcp_settings(site: Site, interface: str) -> DhcpSettings:
    network = site.networks[site.spec.networks.provisioning]
    if network.dhcp_range is None:
        raise FreeholdError(
            f"Network {site.spec.networks.provisioning} has no dhcpRange", remedy="declare spec.dhcpRange {start, end}"
        )
    return DhcpSettings(
        interface=interface,
        server=site.spec.controller.provisioning,
        first=network.dhcp_range.start,
        last=network.dhcp_range.end,
        netmask=str(ipaddress.ip_network(network.prefix).netmask),
        boot_url=f"{site.boot_url}/boot/agent.efi",
        gateway=network.gateway,
        tftp_root=str(site.tftp),
    )


async def interface_of(address: str) -> str:
    """The interface that bears the address, in this network namespace."""
    process = await asyncio.create_subprocess_exec("ip", "-j", "address", stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    for interface in msgspec.json.decode(output):
        if any(each.get("local") == address for each in interface.get("addr_info", ())):
            return str(interface["ifname"])
    raise FreeholdError(
        f"this host has no address {address}",
        remedy="run `freehold serve` on the host that spec.controller of the Site names (in a lab: with --lab)",
    )


def tls_context(key: CertifiedKey, *, chain: bytes = b"", clients: bytes | None = None) -> ssl.SSLContext:
    """Server side, TLS 1.2 or later; `chain` (PEM) is shown with the certificate. With `clients`, their CA (PEM), one
    that shows a certificate must show one of it, or the handshake fails. Whoever has not attested has none yet, so it
    is optional here: `agent_api` asks for it.

    OpenSSL wants files, so the private key is lent to it in memory only.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if clients is not None:
        context.verify_mode = ssl.CERT_OPTIONAL
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the CA is trusted itself, whoever certified it
        context.load_verify_locations(cadata=clients.decode())
    memory = os.memfd_create("controller-tls", os.MFD_CLOEXEC)
    try:
        os.write(memory, key.private_pem + key.certificate_pem + chain)
        context.load_cert_chain(f"/proc/self/fd/{memory}")
    finally:
        os.close(memory)
    return context


async def _listen(
    stack: AsyncExitStack, app: web.Application, address: str, port: int, tls: ssl.SSLContext | None
) -> None:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    try:
        await web.TCPSite(runner, address, port, ssl_context=tls).start()
    except OSError as error:
        raise FreeholdError(
            f"cannot listen on {address} port {port}: {os.strerror(error.errno or 0)}",
            remedy=f"find out who has it: `ss -ltnp 'sport = :{port}'`; or correct spec.controller of the Site",
        ) from error
