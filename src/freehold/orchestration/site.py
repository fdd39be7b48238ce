"""A running site: the keepers and services that the steps need, in one place. It decides nothing."""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from freehold.evidence import Artifacts
from freehold.model.errors import FreeholdError
from freehold.model.resources import NetworkSpec, SiteSpec
from freehold.model.status import Facts, Order, OrderState
from freehold.orchestration.agents import AgentLedger
from freehold.orchestration.approvals import ApprovalLedger
from freehold.orchestration.measurements import BootedImage
from freehold.orchestration.passwords import VaultSlots
from freehold.orchestration.references import ReferenceLedger
from freehold.orchestration.step import StepContext
from freehold.orchestration.store import Store
from freehold.orchestration.view import ServerView
from freehold.out_of_band.accounts import RedfishDoor
from freehold.out_of_band.certificates import accepted_identity
from freehold.out_of_band.errors import BmcIdentityChanged, WrongCredential
from freehold.out_of_band.redfish import Credential, RedfishClient
from freehold.out_of_band.takeover import take_over
from freehold.out_of_band.takeover_steps import OWN_ACCOUNT
from freehold.out_of_band.transport import BmcIdentity
from freehold.provisioning.boot_server import BootFiles
from freehold.provisioning.dhcp import BootHost, Dnsmasq
from freehold.provisioning.firmware_shelf import FirmwareShelf
from freehold.provisioning.ticket_shelf import TicketShelf, medium
from freehold.root_of_trust import authorities, pki
from freehold.root_of_trust.attestation.ek import TpmRoots
from freehold.root_of_trust.depot import Depot, Seen, Target
from freehold.root_of_trust.keys import SiteKeys
from freehold.root_of_trust.secure_boot_generations import KeySet
from freehold.root_of_trust.vault import Vault

BOOT_PORT, AGENT_PORT, FIRMWARE_PORT = 8080, 8443, 8444


def agent_port(agent_ca: int) -> int:
    """Where agents that know the controller by this generation of the agent CA find it: 8443, then 8445, 8446, …"""
    return AGENT_PORT if agent_ca == 1 else FIRMWARE_PORT + agent_ca - 1


BMC_COMMAND = 10.0
"""Seconds that a command to a BMC may be on its way: so much of the lease must be left before it is sent."""

Connector = Callable[[Credential], RedfishClient]
EnsureLease = Callable[[float], Awaitable[None]]
"""`StepContext.ensure_lease`: raises if a command of so many seconds may not be sent."""

ROTATIONS_AT_ONCE = 32
"""BMCs whose password is being changed at the same time, and as many whose certificate is: so many at most stand
half-way if the site loses power."""


@dataclass(frozen=True)
class OsImage:
    """An OS image of this site: what is streamed, what signs it, and what its boot will measure."""

    name: str
    version: str
    path: Path
    manifest_envelope: dict[str, object]
    manifest_sha256: str
    booted: BootedImage
    sha256: str
    size: int
    chunks: int
    agent_ca: int = 1  # generation of the agent CA by which its agent knows the controller
    served: str = ""  # under which name, if not the file's own
    origin: dict[str, object] = field(default_factory=lambda: {"origin": "built"})  # who vouches for it, for evidence


@dataclass
class Site:
    """Everything a step may touch. `reload_dhcp` answers exactly the servers in `due_to_boot`."""

    directory: Path
    spec: SiteSpec
    networks: dict[str, NetworkSpec]
    vault: Vault
    keys: SiteKeys
    agent_image: BootedImage
    agent_iso: str
    images: dict[str, OsImage]
    tpm_roots: Callable[[], TpmRoots]
    files: BootFiles
    tftp: Path  # directory of what PXE clients may fetch
    agent_builds: dict[str, BootedImage] = field(default_factory=dict)
    """By SHA-256 of the UKI: earlier builds that a server may still be running."""
    agent_trust: tuple[int, int] = (1, 1)
    """What `agent_image` believes, as in `SiteKeys`."""
    os_builds: dict[str, BootedImage] = field(default_factory=dict)
    """By SHA-256 of the image's manifest, likewise."""
    agent_listed: bool = False
    """The depot has listed the agent since this controller started."""
    reading_images: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    """One at a time: they are large, and threads that read them are missing elsewhere."""
    depot_images: dict[str, OsImage] = field(default_factory=dict)
    """By SHA-256: those of the depot whose bytes were verified, and for which the manifest was made and signed."""
    refused_images: dict[str, tuple[Target, tuple[int, ...] | None, FreeholdError]] = field(default_factory=dict)
    """By path in the depot: the target, the state of its file, and why it cannot be used."""
    dhcp: Dnsmasq | None = None
    agents: AgentLedger | None = None
    store: Store | None = None
    depot_seen: Seen | None = None
    """What the evidence log last said of the depot, so that nobody leads us back behind it."""
    bell: Callable[[str], None] = lambda _server: None
    """Tells the agent's door that there is an order for the server."""
    due_to_boot: dict[str, tuple[BootHost, ...]] = field(default_factory=dict)
    rotations: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(ROTATIONS_AT_ONCE))
    renewals: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(ROTATIONS_AT_ONCE))
    _dhcp_lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def artifacts(self) -> Artifacts:
        return Artifacts(self.directory / "artifacts")

    @property
    def depot(self) -> Depot:
        return Depot(self.directory / "depot")

    @cached_property
    def shelf(self) -> FirmwareShelf:
        """Where BMCs fetch firmware, if they take no uploads."""
        return FirmwareShelf(f"https://{self.spec.controller.oob}:{FIRMWARE_PORT}")

    @cached_property
    def tickets(self) -> TicketShelf:
        """Where BMCs fetch the media for servers without a TPM."""
        return TicketShelf(f"http://{self.spec.controller.oob}:{BOOT_PORT}")

    async def give_ticket(self, server: str) -> tuple[str, str]:
        """(where the server's BMC fetches a CD that starts our agent and bears a fresh ticket, SHA-256 of the ticket in
        hex). Nothing else of the ticket is kept."""
        iso = self.files.find("boot", self.agent_iso)
        assert iso is not None
        ticket = secrets.token_bytes(32)
        url = self.tickets.lay(server, medium(await asyncio.to_thread(iso.read_bytes), ticket))
        return url, hashlib.sha256(ticket).hexdigest()

    @property
    def boot_url(self) -> str:
        return f"http://{self.spec.controller.provisioning}:{BOOT_PORT}"

    def media_url(self, name: str) -> str:
        """Where a BMC fetches virtual media: it has no leg in the provisioning network."""
        return f"http://{self.spec.controller.oob}:{BOOT_PORT}/boot/{name}"

    @property
    def references(self) -> ReferenceLedger:
        assert self.store is not None
        return self.store.references

    @property
    def approvals(self) -> ApprovalLedger:
        assert self.store is not None
        return self.store.approvals

    def image(self, name: str) -> OsImage:
        if name not in self.images:
            raise FreeholdError(
                f"image {name} is declared but not built",
                remedy=f"assign one of: {', '.join(self.images)}; or import it with `freehold depot import --kind"
                " os-image`, and declare an Image with spec.depot",
            )
        return self.images[name]

    def agent_build(self, sha256: str | None) -> BootedImage | None:
        """The agent with this UKI; None if this controller does not keep it."""
        current = self.agent_image
        return current if sha256 in (None, current.sha256) else self.agent_builds.get(sha256 or "")

    def os_build(self, manifest_sha256: str) -> BootedImage | None:
        """The OS image with this manifest; None if this controller does not keep it."""
        every = (*self.images.values(), *self.depot_images.values())
        current = {image.manifest_sha256: image.booted for image in every}
        return (self.os_builds | current).get(manifest_sha256)

    async def newest_keys(self) -> KeySet:
        """The Secure Boot keys that a server is given now."""
        return await asyncio.to_thread(self.keys.secure_boot.newest_set)

    async def keys_of(self, facts: Facts) -> KeySet:
        """The Secure Boot keys that this server carries."""
        return await asyncio.to_thread(self.keys.secure_boot.key_set, facts.secure_boot_generation or 1)

    async def answer_dhcp(self, server: str, hosts: tuple[BootHost, ...]) -> None:
        """From now on answer these NICs of the server, and nothing else of it. Idempotent."""
        async with self._dhcp_lock:
            self.due_to_boot[server] = hosts
            if self.dhcp is not None:
                await self.dhcp.reload([host for those in self.due_to_boot.values() for host in those])

    async def end_session(self, server: str) -> None:
        """Whoever speaks for the server has to attest again."""
        if self.agents is not None:
            await self.agents.end_session(server)
        self.bell(server)

    async def ordered(self, ctx: StepContext, kind: str, args: dict[str, Any]) -> Order | None:
        """The finished order of this step, or None while the agent is at it. Raises `OrderFailedError`."""
        order = await ctx.order(kind, args)
        self.bell(ctx.name)
        return order if order.state is OrderState.DONE else None

    async def own_account(self, view: ServerView) -> str:
        """The account that we use on this BMC: a BMC that cannot add accounts keeps us in its factory one."""
        credential = await self.slots(view).current()
        return credential.username if credential is not None else OWN_ACCOUNT

    def slots(self, view: ServerView) -> VaultSlots:
        return VaultSlots(self.vault, view)

    @asynccontextmanager
    async def bmc(self, view: ServerView, ensure: EnsureLease) -> AsyncIterator[RedfishClient]:
        """A logged-in client, for whoever works on the server: only then is nobody else changing its password. What an
        interrupted change left open is ended first, under the lease that `ensure` looks after: log-ins with the wrong
        one of two would count for a lockout. A BMC that has gone back to an earlier password is found out too."""
        slots = self.slots(view)

        async def settle(*, refused: bool) -> None:
            door = RedfishDoor(await self.connector(view), ensure=lambda: ensure(BMC_COMMAND))
            await take_over(door, slots, server=view.name, settle=True, refused=refused)

        if await slots.pending() is not None:
            await settle(refused=False)
        async with AsyncExitStack() as stack:
            try:
                client = await stack.enter_async_context(open_bmc(self.vault, view))
            except WrongCredential:
                if not await slots.kept():
                    raise
                await settle(refused=True)
                client = await stack.enter_async_context(open_bmc(self.vault, view))
            yield client

    async def connector(self, view: ServerView) -> Connector:
        return await connector(self.vault, view)

    def issue_agent_certificate(
        self, key: ec.EllipticCurvePublicKey, server: str, session: str, now: datetime, lifetime: timedelta
    ) -> x509.Certificate:
        """For the agent of `server` in this session: only after it was attested."""
        ca = self.keys.agent_ca
        return pki.agent_certificate(key, ca.certificate, ca.private_key, server, session, now, lifetime)

    async def issue_bmc_certificate(self, key: pki.PublicKey, address: str, now: datetime) -> x509.Certificate:
        """For the BMC at `address`. Raises `CertificateError` for an address outside the CA's zone."""
        return await asyncio.to_thread(authorities.issue_bmc_certificate, self.vault, key, address, now)


@asynccontextmanager
async def open_bmc(vault: Vault, view: ServerView) -> AsyncIterator[RedfishClient]:
    """A logged-in client with the credential in the vault. Nothing is sent to a BMC that is not recognised, nor to one
    whose password is being changed."""
    slots = VaultSlots(vault, view)
    if await slots.pending() is not None:
        raise FreeholdError(
            "the BMC's password is being changed",
            server=view.name,
            remedy="try again in a minute, while `freehold serve` runs: it ends what was interrupted",
        )
    credential = await slots.current()
    if credential is None:
        raise FreeholdError(
            "the vault holds no credential for the BMC",
            server=view.name,
            remedy="declare one in the Server document",
        )
    connect = await connector(vault, view)
    async with connect(credential) as client:
        yield client


async def connector(vault: Vault, view: ServerView) -> Connector:
    """Makes clients that are not logged in yet, for whoever the BMC may be at this moment."""
    identity = await asyncio.to_thread(bmc_identity, vault, view)
    return lambda credential: RedfishClient.connect(view.spec.bmc.address, identity, credential, server=view.name)


def bmc_identity(vault: Vault, view: ServerView) -> BmcIdentity:
    """Who the BMC may be at this moment. Raises `FreeholdError` if nobody could say, `BmcIdentityChanged` if a document
    wants it to be another than the one that was pinned: what is in the vault is for that one."""
    declared, pinned = view.spec.bmc, view.facts.bmc_identity
    if view.facts.bmc_address not in (None, declared.address):
        raise BmcIdentityChanged(
            f"its BMC was pinned at {view.facts.bmc_address}, and its document now says {declared.address}; nothing was"
            " sent there",
            server=view.name,
            remedy=f"correct the address; if the BMC has moved: `freehold release {view.name} --accept-bmc-key KEY`",
        )
    ca_pem = crl_pem = None
    if view.facts.bmc_certificate is not None or view.facts.bmc_certificate_pending is not None:
        ca_pem = authorities.bmc_ca(vault).certificate_pem.decode()
        crl_pem = authorities.bmc_revocation_list(vault, pki.utc_now()).decode()
    identity = accepted_identity(view.facts, view.spec.bmc.expected_fingerprint, ca_pem, crl_pem)
    if identity is None and pinned is not None:
        raise BmcIdentityChanged(
            f"the pinned key of its BMC is {pinned}, and its document now says {declared.expected_fingerprint}; nothing"
            " was sent to it",
            server=view.name,
            remedy="correct expectedFingerprint, or leave it out; a new key is accepted by"
            f" `freehold release {view.name} --accept-bmc-key KEY`",
        )
    if identity is None:
        raise FreeholdError("the BMC's key is not pinned yet", server=view.name)
    return identity
