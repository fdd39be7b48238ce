"""How fast the fleet's BMC passwords are changed: time is cut into slots, a rotation begins in one of its own. Pure.

A slot is given once, to whoever asks, and passes whether it was used or not: a server that fails or is paused when its
turn comes costs nobody else theirs. It has to ask again, so that every attempt counts.
"""

import math

import msgspec

from freehold.model.resources import ROTATIONS_PER_MINUTE

LAPSES = 30.0
"""Seconds after which a turn that was not used is over: what was paused for an hour does not begin all at once."""


MOST_AHEAD = 50_000
"""Slots that a fleet can queue up. What lies further ahead was given by a clock that was wrong, and counts no more."""


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """Slot `anchor` begins at `since` (UNIX seconds); those before it are over. `free`: the lowest that nobody has."""

    per_minute: int = ROTATIONS_PER_MINUTE
    anchor: int = 0
    since: float = 0.0
    free: int = 0

    @property
    def spacing(self) -> float:
        """Seconds from one slot to the next."""
        return 60.0 / self.per_minute

    def turn(self, slot: int, spread: float = 0.0) -> float | None:
        """When the holder of `slot` begins, UNIX seconds; None: it is over. `spread` (0 to 1) is its place within."""
        return None if slot < self.anchor else self.since + self.spacing * (slot - self.anchor + spread)

    def take(self, now: float) -> tuple[int, "Pace"]:
        """The next free slot that has not begun, and the pace without it."""
        first = self._not_begun(now)
        slot = self.free if first < self.free < first + MOST_AHEAD else first
        return slot, msgspec.structs.replace(self, free=slot + 1)

    def at(self, per_minute: int, now: float) -> "Pace":
        """From now on at another rate. Whoever holds a slot that has not begun keeps the place, not the time."""
        if per_minute == self.per_minute:
            return self
        anchor = self._not_begun(now)
        return Pace(per_minute=per_minute, anchor=anchor, since=now, free=max(self.free, anchor))

    def _not_begun(self, now: float) -> int:
        return self.anchor + max(0, math.ceil((now - self.since) / self.spacing))
