"""Bounded reading of what strangers send; anything that does not fit is a MalformedEvidenceError."""

from typing import Literal

from freehold.root_of_trust.attestation.errors import MalformedEvidenceError

LONGEST_TEXT = 200


def printable(text: str) -> str:
    """A stranger's text on one line, without anything that a terminal or a log would obey."""
    cut = text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in cut)


class Reader:
    """Takes fields from the front of `data`; `what` names the structure in errors."""

    def __init__(self, data: bytes, what: str, order: Literal["big", "little"]) -> None:
        self.data, self.what, self.order, self.at = data, what, order, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise MalformedEvidenceError(
                f"{self.what}: a field of {size} bytes at offset {self.at} runs past the end ({len(self.data)} bytes)"
            )
        self.at += size
        return self.data[self.at - size : self.at]

    def u8(self) -> int:
        return self.take(1)[0]

    def u16(self) -> int:
        return int.from_bytes(self.take(2), self.order)

    def u32(self) -> int:
        return int.from_bytes(self.take(4), self.order)

    def u64(self) -> int:
        return int.from_bytes(self.take(8), self.order)

    def sized(self, most: int = 0xFFFF) -> bytes:
        """A TPM2B: 16-bit size, then that many bytes."""
        size = self.u16()
        if size > most:
            raise self.wrong(f"a field of {size} bytes at offset {self.at} where at most {most} may stand")
        return self.take(size)

    def end(self) -> None:
        if self.left:
            raise self.wrong(f"{self.left} bytes too many at offset {self.at}")

    def wrong(self, what: str) -> MalformedEvidenceError:
        return MalformedEvidenceError(f"{self.what}: {what}")
