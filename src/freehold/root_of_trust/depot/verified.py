"""A file whose every byte is checked again in the moment in which it is handed out.

Between a check and a use a file can be changed. A private copy would help, and cost as much disk or memory as the file
(writing it took longer than hashing it). So the first reading, which has to give the signed SHA-256, keeps the state of
that very hash before each chunk. To hand out a chunk is to read it, go on from the state before it, and arrive at the
state behind it: other bytes cannot, they would be a collision. One pass of SHA-256, nothing written, any part in any
order.
"""

import hashlib
import hmac
import io
import os
from typing import Any

from freehold.root_of_trust.depot.errors import DataEndless, TargetChanged
from freehold.root_of_trust.depot.files import CHUNK, Progress, silent
from freehold.root_of_trust.depot.package import Target


class VerifiedFile(io.RawIOBase):
    """Raw and seekable. It has no `fileno`: what is read past it is not checked. Owns `file`."""

    def __init__(self, file: io.FileIO, target: Target, progress: Progress = silent) -> None:
        """Reads `file` once. Raises `TargetChanged`, or `DataEndless` at the first byte that is too many."""
        super().__init__()
        self._file, self._target = file, target
        self._position, self._chunk_number, self._chunk = 0, -1, b""
        self._states = [hashlib.sha256()]
        for start in range(0, target.length, CHUNK):
            state = self._states[-1].copy()
            state.update(self._read_at(start))
            self._states.append(state)
            progress(min(start + CHUNK, target.length), target.length)
        if os.pread(file.fileno(), 1, target.length):
            raise DataEndless(f"{target.path} goes on behind its {target.length} bytes", remedy=_REMEDY)
        if not hmac.compare_digest(self._states[-1].hexdigest(), target.sha256):
            raise self._changed(f"it has SHA-256 {self._states[-1].hexdigest()}")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._target.length}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """Fills part of the buffer; 0 at the end. Raises `TargetChanged`."""
        number, within = divmod(self._position, CHUNK)
        if self._position >= self._target.length:
            return 0
        if number != self._chunk_number:
            chunk, state = self._read_at(number * CHUNK), self._states[number].copy()
            state.update(chunk)
            if not hmac.compare_digest(state.digest(), self._states[number + 1].digest()):
                raise self._changed(f"it was changed at byte {number * CHUNK} or behind, after it had been checked")
            self._chunk_number, self._chunk = number, chunk
        part = self._chunk[within : within + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)

    def close(self) -> None:
        self._file.close()
        super().close()

    def _read_at(self, offset: int) -> bytes:
        """A whole chunk, or what is left of the length that was signed."""
        data, wanted = b"", min(CHUNK, self._target.length - offset)
        while piece := os.pread(self._file.fileno(), wanted - len(data), offset + len(data)):
            data = data + piece if data else piece
        if len(data) < wanted:
            raise self._changed(f"it ends at byte {offset + len(data)}")
        return data

    def _changed(self, what: str) -> TargetChanged:
        return TargetChanged(
            f"{self._target.path} is not what the operators signed: {what}",
            expected=f"{self._target.length} bytes with SHA-256 {self._target.sha256}",
            remedy=_REMEDY,
        )


_REMEDY = "import it again from the vendor's file, or mirror the depot again; find out who changed it"
