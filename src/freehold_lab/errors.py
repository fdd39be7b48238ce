"""The lab's errors: a sentence for the person who must act."""


class LabError(Exception):
    """Something in the lab cannot go on. `str()` says what, where, and what to do."""

    def __init__(self, what: str, *, server: str | None = None, remedy: str | None = None) -> None:
        self.what, self.server, self.remedy = what, server, remedy
        super().__init__(what)

    def __str__(self) -> str:
        subject = f"{self.server}: {self.what}" if self.server else self.what
        return f"{subject.rstrip('.')}. {self.remedy}" if self.remedy else subject


class UsageError(LabError):
    """The command line itself is wrong."""
