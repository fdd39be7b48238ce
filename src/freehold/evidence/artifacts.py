"""Files that statements name by SHA-256 because they are too bulky for the log: quotes, event logs.

    predicate["artifacts"] = {"quote": artifacts.keep(quote), "event_log": artifacts.keep(log)}

A file's name is its digest, so the same event log of a thousand boots is kept once, and a changed file shows.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

from freehold.evidence import durable

FIELD = "artifacts"
_NAME = re.compile(r"[0-9a-f]{64}\Z")


class Artifacts:
    """The keeper of one site's artifacts, a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def keep(self, data: bytes) -> str:
        """Keep `data`; its SHA-256 in hex. On return it survives a power cut."""
        name = hashlib.sha256(data).hexdigest()
        path = self._directory / name
        if not path.exists():
            durable.make_directory(self._directory, 0o700)
            durable.replace(path, data, 0o600)
        return name

    def all(self) -> dict[str, bytes]:
        """Every artifact by its name, as a bundle wants them."""
        if not self._directory.is_dir():
            return {}
        return {path.name: path.read_bytes() for path in sorted(self._directory.iterdir()) if _NAME.match(path.name)}


def named_by(predicate: dict[str, Any]) -> dict[str, str]:
    """What a statement's predicate names: kind -> SHA-256 in hex."""
    named = predicate.get(FIELD)
    return {str(kind): str(digest) for kind, digest in named.items()} if isinstance(named, dict) else {}
