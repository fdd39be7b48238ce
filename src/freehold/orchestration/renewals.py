"""What is due again and again on a BMC, and when: its password and its certificate. Pure."""

import hashlib
from typing import Literal

from freehold.model.resources import Waivable, parse_duration
from freehold.model.status import IntentKind
from freehold.orchestration.pace import LAPSES, MOST_AHEAD
from freehold.orchestration.view import ServerView


def _changed(server: ServerView, now: float) -> float:
    """When the BMC password was changed, UNIX seconds. A time to come was written by a clock that was wrong."""
    since = server.facts.bmc_credential_since or 0.0
    return since if since <= now else 0.0


def rotation_due(server: ServerView, now: float) -> float:
    """When the BMC password is to be changed next, UNIX seconds. The last fifth of the policy's interval is spread over
    the fleet by name, so that it neither rotates in one night nor lets any password grow older than it may."""
    interval = parse_duration(server.policy.rotation_interval)
    return _changed(server, now) + interval * (1.0 - _spread(server.name) / 5.0)


def _spread(name: str) -> float:
    """0 to 1, the same for the same name: so that a fleet does not do everything in one night."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) / 2**32


def rotation_asked(server: ServerView, now: float) -> float | None:
    """When a person last asked for a rotation that has not happened yet."""
    since = _changed(server, now)
    asked = [intent.at for intent in server.intents if intent.kind is IntentKind.ROTATE and intent.at > since]
    return max(asked, default=None)


def why_rotated(server: ServerView, now: float) -> Literal["asked", "schedule"]:
    return "schedule" if rotation_asked(server, now) is None else "asked"


def credential_fresh(server: ServerView, now: float) -> bool:
    return rotation_asked(server, now) is None and now < rotation_due(server, now)


def rotation_turn(server: ServerView, now: float) -> float | None:
    """When it is the server's turn to rotate, UNIX seconds; None: it has to ask for one. A turn is for one rotation."""
    mine = server.facts.rotation_turn
    if mine is None or not _changed(server, now) < mine.taken <= now:
        return None
    turn = server.pace.turn(mine.slot, _spread(server.name))
    far = now + MOST_AHEAD * server.pace.spacing
    return turn if turn is not None and now - LAPSES <= turn < far else None


def rotation_waits(server: ServerView, now: float) -> float | None:
    """When the rotation that is due may begin, if that is not yet."""
    turn = None if credential_fresh(server, now) else rotation_turn(server, now)
    return turn if turn is not None and turn > now else None


def rotated_or_waiting(server: ServerView, now: float) -> bool:
    """A rotation that waits for its turn keeps nothing else from being done."""
    return credential_fresh(server, now) or rotation_waits(server, now) is not None


def rotation_look(server: ServerView, now: float) -> float:
    """When there is something to do about the password next, UNIX seconds."""
    return rotation_waits(server, now) or rotation_due(server, now)


def certificate_due(server: ServerView) -> float:
    """When the BMC's certificate is to be renewed, UNIX seconds: when less than a third of its life is left. The next
    fifth of that third is spread over the fleet by name. One of a BMC CA that was replaced is due at once. A server
    without one is due when its waiver ends: at once, if it has none."""
    installed = server.facts.bmc_certificate
    if installed is None:
        waived = server.waivers if server.facts.bmc_certificate_waived else ()
        return max((each.expires for each in waived if each.finding is Waivable.BMC_CERTIFICATE), default=0.0)
    if server.bmc_ca is not None and installed.issuer != server.bmc_ca:
        return 0.0
    third = (installed.not_after - installed.not_before) / 3.0
    return installed.not_after - third * (1.0 - _spread(server.name) / 5.0)


def certificate_fresh(server: ServerView, now: float) -> bool:
    return now < certificate_due(server)
