"""What waits for signatures: a small directory that can be carried to the operators and back.

    staged/root.json, staged/targets.json    unsigned or partly signed; either may be absent
    staged/published-root.json               the root in force, to know by whom they are to be signed

What is signed is shown to the person who signs; nothing in the directory is trusted. A hostile directory can make a
person refuse, or sign what it shows.
"""

from pathlib import Path
from typing import NamedTuple

from tuf.api.metadata import Metadata, Root, T, Targets

from freehold.evidence import Signer, durable
from freehold.root_of_trust.depot.errors import KeyRefusedHere, NotPublishable
from freehold.root_of_trust.depot.files import read_beneath
from freehold.root_of_trust.depot.metadata import parse, people_of, sign

_LIMIT = 5_000_000  # python-tuf's limit for targets metadata
ROOT, TARGETS, REFERENCE = "root.json", "targets.json", "published-root.json"


class Staged(NamedTuple):
    """The content of the directory; None for what is absent."""

    root: Metadata[Root] | None
    targets: Metadata[Targets] | None
    published_root: Metadata[Root] | None

    def judges(self, role: str) -> list[Root]:
        """The roots whose operators have to sign: old and new for a root, the one that is to hold for targets."""
        roots = [each.signed for each in (self.published_root, self.root) if each is not None]
        return roots if role == "root" else roots[-1:]

    def signers(self, role: str) -> dict[str, str]:
        """Key id to person, of everyone whose signature counts. Raises `PeopleRefused`."""
        return {key_id: name for root in self.judges(role) for key_id, name in people_of(root).items()}

    @property
    def waiting(self) -> "dict[str, Metadata[Root] | Metadata[Targets]]":
        """What is to be signed, by role."""
        found = {"root": self.root, "targets": self.targets}
        return {role: metadata for role, metadata in found.items() if metadata is not None}


class Staging:
    """The keeper of one such directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def read(self) -> Staged:
        """Raises `MetadataRefused` for files that are not metadata."""
        return Staged(self._read(Root, ROOT), self._read(Targets, TARGETS), self._read(Root, REFERENCE))

    def put(
        self,
        *,
        root: Metadata[Root] | None = None,
        targets: Metadata[Targets] | None = None,
        reference: Metadata[Root] | None = None,
    ) -> None:
        """Replaces those that are given."""
        durable.make_directory(self.directory)
        for name, metadata in ((REFERENCE, reference), (TARGETS, targets), (ROOT, root)):
            if metadata is not None:
                durable.replace(self.directory / name, metadata.to_bytes())

    def clear(self) -> None:
        """Nothing waits any more."""
        for name in (ROOT, TARGETS, REFERENCE):
            durable.remove(self.directory / name)

    def merge(self, carried: Path) -> None:
        """Takes over the valid signatures of a carried copy. Raises `NotPublishable` if it is of something else."""
        ours, theirs = self.read(), Staging(carried).read()
        for role, metadata in ours.waiting.items():
            other = theirs.waiting.get(role)
            if other is None or other.signed_bytes != metadata.signed_bytes:
                raise NotPublishable(
                    f"the {role} in {carried} is not the one that is staged here",
                    remedy="something was staged since it was carried away: let them sign the present one",
                )
            for judge in ours.judges(role):
                for key_id in judge.get_verification_result(role, other.signed_bytes, other.signatures).signed:
                    metadata.signatures[key_id] = other.signatures[key_id]
        self.put(root=ours.root, targets=ours.targets)

    def _read(self, kind: type[T], name: str) -> Metadata[T] | None:
        try:
            return parse(kind, read_beneath(self.directory, name, _LIMIT), name)
        except FileNotFoundError:
            return None


def sign_staged(staging: Staging, shown: Staged, signer: Signer) -> list[str]:
    """Signs all that this person may sign of what they were shown; the roles.

    Raises `KeyRefusedHere` if that is nothing, `NotPublishable` if something else is staged by now.
    """
    staged = staging.read()
    if _payloads(staged) != _payloads(shown):
        raise NotPublishable(
            f"what is staged in {staging.directory} changed while it was being read", remedy="read it again, then sign"
        )
    roles = [role for role in staged.waiting if signer.key_id in staged.signers(role)]
    if not roles:
        people = sorted({name for role in staged.waiting for name in staged.signers(role).values()})
        raise KeyRefusedHere(
            f"the key {signer.key_id} has nothing to sign in {staging.directory}",
            expected=f"the key of one of: {', '.join(people)}" if people else "something that was staged",
            remedy="give the directory with what is staged, and a key that the depot's root names",
        )
    for role in roles:
        sign(staged.waiting[role], signer)
    staging.put(root=staged.root, targets=staged.targets)
    return roles


def _payloads(staged: Staged) -> dict[str, bytes]:
    return {role: metadata.signed_bytes for role, metadata in staged.waiting.items()}
