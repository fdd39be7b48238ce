"""Errors for the person who must act: what is wrong, on which server, what was expected, what to do next."""


class FreeholdError(Exception):
    """A failure in words. `str()` is the whole message; the parts stay readable for `--output json`."""

    def __init__(
        self, what: str, *, server: str | None = None, expected: str | None = None, remedy: str | None = None
    ) -> None:
        self.what, self.server, self.expected, self.remedy = what, server, expected, remedy
        lead = f"server {server}: {what}" if server else what
        parts = [lead, f"expected: {expected}" if expected else None, f"what to do: {remedy}" if remedy else None]
        super().__init__("\n  ".join(part for part in parts if part))

    def to_dict(self) -> dict[str, str | None]:
        """The parts, as `--output json` prints them."""
        return {"what": self.what, "server": self.server, "expected": self.expected, "remedy": self.remedy}
