"""The lease of a replica: one heartbeat row, keyed by an epoch that is never used again once it lapsed."""

import time
import uuid
from collections.abc import Callable

from freehold.model.errors import FreeholdError
from freehold.orchestration.ledger import Ledger


class LeaseTooShortError(FreeholdError):
    """Too little of the lease is left to send a command that may take so long: another replica could be at it."""


class Lease:
    """Our right to work on what we claimed. Both clocks must agree that it is valid: the wall clock, which the other
    replicas go by, and our own monotonic one, which nobody sets."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        ttl: float,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger, self.ttl, self._clock, self._monotonic = ledger, ttl, clock, monotonic
        self.epoch = ""
        self._wall_end = self._own_end = float("-inf")

    def remaining(self) -> float:
        """Seconds left, at most 0.0 if the lease has lapsed."""
        return min(self._wall_end - self._clock(), self._own_end - self._monotonic()) if self.epoch else 0.0

    async def take(self) -> None:
        """Begin a fresh epoch."""
        wall, own, epoch = self._clock(), self._monotonic(), uuid.uuid4().hex
        await self._ledger.enter(epoch, wall, self.ttl)
        self.epoch, self._wall_end, self._own_end = epoch, wall + self.ttl, own + self.ttl

    async def renew(self) -> bool:
        """Prolong the lease. False if it has lapsed: the epoch is dead, in-flight work must be given up."""
        wall, own = self._clock(), self._monotonic()
        if self.remaining() <= 0 or not await self._ledger.renew(self.epoch, wall, self.ttl):
            self.epoch = ""
            return False
        self._wall_end, self._own_end = wall + self.ttl, own + self.ttl
        return True

    async def ensure(self, timeout: float, server: str) -> None:
        """Return only if at least `timeout` seconds are left. Raises `LeaseTooShortError`."""
        if self.remaining() < timeout <= self.ttl:
            await self.renew()
        if self.remaining() < timeout:
            raise LeaseTooShortError(
                f"the lease has {max(self.remaining(), 0):.1f} s left, the command may take {timeout:.1f} s",
                server=server,
                remedy="None: it is tried again under a fresh lease.",
            )

    async def end(self) -> None:
        """Free what is still held."""
        if self.epoch:
            await self._ledger.leave(self.epoch)
            self.epoch = ""
