"""Which server a machine is that comes to the agents' door, and how it is told that it is not let in.

An endorsement key that is bound is its server. MAC addresses are claims: they only find the server that a key may be
bound to, or whose ticket is compared.
"""

import time
from collections.abc import Collection

from sqlalchemy import Column

from freehold.orchestration.refusals import Refusals
from freehold.orchestration.schema import resources, servers
from freehold.orchestration.store import Store
from freehold.orchestration.view import ServerView
from freehold.provisioning.agent_messages import AgentRefusedError
from freehold.root_of_trust.attestation.ek import ek_identity


class Recognition:
    """Of one door."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._refusals = Refusals()

    async def recognize(self, macs: Collection[str], ek_public: bytes | None, peer: str) -> ServerView:
        """The server that this TPM belongs to, or the one that it may be bound to."""
        identity = ek_identity(ek_public) if ek_public else None
        if identity is not None:
            for known in await self._mentioning(servers.c.status, [identity]):
                if known.facts.ek_sha256 == identity:
                    return known
        shown = set(macs)
        candidates = await self._mentioning(resources.c.document, shown)
        named = [each for each in candidates if shown & {nic.mac.lower() for nic in each.spec.nics}]
        if len(named) != 1:
            names = ", ".join(sorted(each.name for each in named)) or "no declared server"
            raise AgentRefusedError(
                f"the machine at {peer} with MAC {', '.join(macs) or 'none'} is {names}",
                remedy="declare its NICs in exactly one Server document",
            )
        (view,) = named
        if view.facts.ek_sha256 is not None and identity is not None:
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

    async def _mentioning(self, column: Column[str], words: Collection[str]) -> list[ServerView]:
        names = await self._store.ledger.mentioned(column, words)
        return list((await self._store.ledger.views(names)).values()) if names else []
