"""What a client has seen so far, so that it is never led back. Pure.

python-tuf remembers the newest metadata in files of its own. They are not fsynced, and it takes a broken one for a
missing one. This record is the second memory: written durably, compared after every refresh. A copy of it in the
evidence log is the third: with it, not even the loss of the whole state directory opens a window for a rollback.
"""

import msgspec

from freehold.root_of_trust.depot.floors import Floor, floor_of, is_below


class Seen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The newest version of each TUF role and the highest security floors.

    `online_key`: which key had signed the timestamp. A new one, named by the operators, starts its versions anew (TUF
    5.3.11): so a site gets over the absurdly high versions of a thief. The list and the floors are the operators'; they
    never go back.

    `expired`: role -> the version that was expired once. It stays so, whatever the clock says later: who can set it
    back cannot bring old metadata to life again. One that was ahead costs a new version of that role, and no more.
    """

    root: int
    targets: int = 0
    snapshot: int = 0
    timestamp: int = 0
    online_key: str = ""
    floors: tuple[Floor, ...] = ()
    expired: dict[str, int] = {}


def revived(before: Seen, after: Seen) -> tuple[str, ...]:
    """What of `after` was expired before, in words."""
    return tuple(
        f"{role} {version} had expired when this site looked before: the clock has been set back, or was ahead then"
        for role, version in before.expired.items()
        if getattr(after, role) <= version and _comparable(role, before, after)
    )


def _comparable(role: str, before: Seen, after: Seen) -> bool:
    return role in ("root", "targets") or before.online_key == after.online_key


def regressions(before: Seen, after: Seen) -> tuple[str, ...]:
    """In what `after` is older than `before`, in words; empty if in nothing."""
    found = [
        f"{role} is version {getattr(after, role)}, and {getattr(before, role)} was seen before"
        for role in ("root", "targets", "snapshot", "timestamp")
        if getattr(after, role) < getattr(before, role) and _comparable(role, before, after)
    ]
    for floor in before.floors:
        now = floor_of(after.floors, *floor.scope)
        if now is None or is_below(now, floor.version):
            name = " ".join(part for part in floor.scope if part)
            found.append(f"the security floor of {name} is {now or 'gone'}, and {floor.version} was seen before")
    return tuple(found)
