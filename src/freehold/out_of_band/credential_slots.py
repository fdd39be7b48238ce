"""What the vault remembers of one BMC's password: `current`, which works; `pending`, which may work; and what was
`kept`, because a BMC that is slow may yet carry out a change to it."""

from typing import Protocol

import msgspec

from freehold.out_of_band.redfish import Credential

ASSUMED_THRESHOLD = 3
ASSUMED_WINDOW_SECONDS = 1800
KEPT = 6


class StagedCredential(msgspec.Struct, frozen=True, kw_only=True):
    """The write-ahead record. `tries` log-ins were started, the last at `last_try` (UNIX seconds), that are not known
    to have worked; `threshold` (0: no lockout) and `window` (seconds) are the BMC's lockout policy. `accepted`: how
    often the BMC took it as the new password before a log-in with it was tried. `refused`: the BMC said no to it
    when it was first sent. `recalls`: how often it was tried after it had been kept."""

    credential: Credential
    tries: int = 0
    last_try: float = 0.0
    threshold: int = ASSUMED_THRESHOLD
    window: float = ASSUMED_WINDOW_SECONDS
    accepted: int = 0
    refused: bool = False
    recalls: int = 0

    def may_try(self, now: float) -> bool:
        """One try is kept for `current`, which may be the same account, and one so as not to reach the threshold."""
        return self.threshold == 0 or self.recent(now) < self.threshold - 2

    def may_check(self, now: float) -> bool:
        """Whether it may be tried after the BMC has taken it, with `current` tried already."""
        return self.threshold == 0 or self.recent(now) < self.threshold - 1

    def recent(self, now: float) -> int:
        """The tries that the BMC remembers."""
        return 0 if now - self.last_try > self.window else self.tries

    def tried(self, now: float) -> "StagedCredential":
        return msgspec.structs.replace(self, tries=self.recent(now) + 1, last_try=now)

    def wait(self, now: float) -> float:
        return max(0.0, self.window - (now - self.last_try))


class CredentialSlots(Protocol):
    """The durable slots of one server in the vault. Each call is atomic and durable when it returns. No call forgets a
    generated password: a BMC may have it, or get it late. Raises if `pending` is another than the caller believes."""

    async def current(self) -> Credential | None: ...
    async def pending(self) -> StagedCredential | None: ...
    async def kept(self) -> tuple[StagedCredential, ...]:
        """Generated passwords that are neither, the likeliest first; at most `KEPT`."""

    async def stage(self, staged: StagedCredential) -> None:
        """Set pending, or write a new record of the same credential."""

    async def commit(self, staged: StagedCredential) -> None:
        """`staged`, which is pending, becomes current; the old current is kept."""

    async def discard(self, staged: StagedCredential) -> None:
        """`staged`, which is pending, is kept instead."""

    async def count(self, kept: StagedCredential) -> None:
        """A new record of a kept credential."""


def superseded(current: Credential | None, by: StagedCredential) -> tuple[StagedCredential, ...]:
    """What is to be kept of `current`, now that `by` takes its place."""
    if current is None or current == by.credential:
        return ()
    return (StagedCredential(credential=current, threshold=by.threshold, window=by.window),)


def keeping(kept: tuple[StagedCredential, ...], *new: StagedCredential) -> tuple[StagedCredential, ...]:
    """`kept` with `new` before it: the generated ones only, each once, and last those that the BMC said no to."""
    found: dict[Credential, StagedCredential] = {}
    for each in (*new, *kept):
        if each.credential.generated:
            found.setdefault(each.credential, each)
    return tuple(sorted(found.values(), key=lambda each: each.refused)[:KEPT])
