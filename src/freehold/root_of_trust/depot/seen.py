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
    """

    root: int
    targets: int = 0
    snapshot: int = 0
    timestamp: int = 0
    online_key: str = ""
    floors: tuple[Floor, ...] = ()


def regressions(before: Seen, after: Seen) -> tuple[str, ...]:
    """In what `after` is older than `before`, in words; empty if in nothing."""
    roles = ["root", "targets"]
    if before.online_key == after.online_key:
        roles += ["snapshot", "timestamp"]
    found = [
        f"{role} is version {getattr(after, role)}, and {getattr(before, role)} was seen before"
        for role in roles
        if getattr(after, role) < getattr(before, role)
    ]
    for floor in before.floors:
        now = floor_of(after.floors, *floor.scope)
        if now is None or is_below(now, floor.version):
            name = " ".join(part for part in floor.scope if part)
            found.append(f"the security floor of {name} is {now or 'gone'}, and {floor.version} was seen before")
    return tuple(found)
