"""Progress for the person who waits: one line a step, with its seconds."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TextIO


class Progress:
    def __init__(self, stream: TextIO = sys.stderr, *, quiet: bool = False) -> None:
        self._stream, self._quiet = stream, quiet

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[None]:
        begun = time.monotonic()
        self._say(f"lab: {what} … ")
        try:
            yield
        except BaseException:
            self._say("failed\n")
            raise
        self._say(f"{time.monotonic() - begun:.1f} s\n")

    def _say(self, text: str) -> None:
        if not self._quiet:
            self._stream.write(text)
            self._stream.flush()
