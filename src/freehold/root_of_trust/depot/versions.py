"""Which of two version strings is the newer one. Pure.

Vendors write versions in their own ways (`2.6.1`, `U46 v2.10 (05/17/2023)`, `A12`). Runs of digits and runs of letters
count, everything else separates. Where people would have to know what a vendor means, the answer is an error and not a
guess: whether `1.2a` is a patch of `1.2` or comes before it, and which of `A42` and `U46` is newer.
"""

import re
from itertools import zip_longest

from freehold.root_of_trust.depot.errors import VersionsNotComparable

_RUN = re.compile(r"[0-9]+|[A-Za-z]+")


def compare(first: str, second: str) -> int:
    """Negative if `first` is older, 0 if they are the same, positive if it is newer.

    Numbers compare as numbers and a missing one is 0, so `2.6` is `2.6.0`. Letters compare alphabetically without case,
    but not at the beginning, where they name a family. Raises `VersionsNotComparable`.
    """
    pairs = zip_longest(_runs(first), _runs(second), fillvalue=0)
    for place, (one, other) in enumerate(pairs):
        if one == other:
            continue
        if isinstance(one, int) and isinstance(other, int):
            return one - other
        if isinstance(one, str) and isinstance(other, str) and place > 0:
            return -1 if one < other else 1
        raise VersionsNotComparable(
            f"it cannot be told which of the versions {first!r} and {second!r} is newer",
            expected="the same pattern of numbers and letters in both",
        )
    return 0


def _runs(version: str) -> list[int | str]:
    return [int(run) if run.isdecimal() else run.casefold() for run in _RUN.findall(version)]
