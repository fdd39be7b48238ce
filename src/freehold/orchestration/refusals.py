"""Which refusals of agents become events. Anybody on the segment can have a server's name refused as often as he likes,
and the events are for people to read. Pure but for what it remembers."""

from dataclasses import dataclass, field

WINDOW = 60.0
"""Seconds in which one reason is told once, and a server's refusals `MOST` times at most."""
MOST = 5


@dataclass
class _Told:
    since: float
    reasons: set[str] = field(default_factory=set)
    untold: int = 0


class Refusals:
    """Of one door; it remembers at most `MOST` reasons for each declared server."""

    def __init__(self) -> None:
        self._told: dict[str, _Told] = {}

    def tell(self, server: str, reason: str, now: float) -> str | None:
        """What the event says: the reason, and how many refusals were not told since the last one; None: no event.
        `now`: seconds by a clock that does not go back."""
        told = self._told.get(server)
        if told is None or now - told.since >= WINDOW:
            told = self._told[server] = _Told(now, untold=told.untold if told is not None else 0)
        if reason in told.reasons or len(told.reasons) >= MOST:
            told.untold += 1
            return None
        told.reasons.add(reason)
        untold, told.untold = told.untold, 0
        return f"{reason} ({untold} more refusals before this one were not told)" if untold else reason
