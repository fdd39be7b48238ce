"""Which server a machine is that comes to the agents' door, and how it is told that it is not let in.

An endorsement key that is bound is its server. MAC addresses are claims: they only find the server that a key may be
bound to, or whose ticket is compared.
"""

import asyncio
import math
import time
from collections.abc import Collection

from freehold.orchestration.refusals import Refusals
from freehold.orchestration.store import Store
from freehold.orchestration.view import ServerView
from freehold.provisioning.agent_messages import AgentRefusedError
from freehold.root_of_trust.attestation.ek import ek_identity

REFRESH = 10.0
"""Seconds for which a machine may stay what it was, whatever was declared or bound meanwhile; it asks again."""


class Recognition:
    """Of one door."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._refusals = Refusals()
        self._reading = asyncio.Lock()
        self._by_key: dict[str, str] = {}
        self._by_mac: dict[str, list[str]] = {}
        self._read_at = -math.inf

    async def recognize(self, macs: Collection[str], ek_public: bytes | None, peer: str) -> ServerView:
        """The server that this TPM belongs to, or the one that it may be bound to."""
        identity, shown = ek_identity(ek_public) if ek_public else "", set(macs)
        if (mine := await self._bound(identity)) is not None:
            return mine
        await self._read_again()
        if (mine := await self._bound(identity)) is not None:
            return mine
        found = await self._store.ledger.views(sorted({name for mac in shown for name in self._by_mac.get(mac, ())}))
        named = [each for each in found.values() if shown & {nic.mac.lower() for nic in each.spec.nics}]
        if len(named) != 1:
            names = ", ".join(sorted(each.name for each in named)) or "no declared server"
            raise AgentRefusedError(
                f"the machine at {peer} with MAC {', '.join(macs) or 'none'} is {names}",
                remedy="declare its NICs in exactly one Server document",
            )
        (view,) = named
        if identity and view.facts.ek_sha256 not in (None, identity):
            raise await self.other_tpm(view.name, identity, peer)
        return view

    async def other_tpm(self, server: str, identity: str, peer: str) -> AgentRefusedError:
        return await self.refuse(
            server,
            f"a machine at {peer} with this server's MAC address has another TPM ({identity[:16]}…)",
            "if the mainboard was replaced, retire the server and declare it anew; else find the impostor",
        )

    async def refuse(self, server: str, what: str, remedy: str | None) -> AgentRefusedError:
        """The refusal to raise; people see it as an event, unless they have just seen it."""
        if (told := self._refusals.tell(server, f"{what}; {remedy}" if remedy else what, time.monotonic())) is not None:
            await self._store.add_event(server, "agent-refused", told)
        return AgentRefusedError(what, server=server, remedy=remedy)

    async def view(self, server: str) -> ServerView:
        if (view := await self._store.ledger.view(server)) is not None:
            return view
        raise AgentRefusedError(f"server {server} is not declared any more", remedy="declare it")

    async def _bound(self, identity: str) -> ServerView | None:
        """The server with this endorsement key, as far as it was read; what the store says now decides."""
        name = self._by_key.get(identity)
        view = await self._store.ledger.view(name) if name is not None else None
        return view if view is not None and view.facts.ek_sha256 == identity else None

    async def _read_again(self) -> None:
        """The fleet, unless it was read a moment ago: anybody may say hello as often as he likes."""
        async with self._reading:
            if time.monotonic() - self._read_at > REFRESH:
                self._by_key, self._by_mac = await self._store.ledger.identities()
                self._read_at = time.monotonic()
