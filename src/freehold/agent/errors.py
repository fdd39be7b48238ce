"""The agent's own failure type: it shares no code with the controller, but speaks to the same person."""


class AgentError(Exception):
    """What is wrong and what to do; both reach the operator through the controller and the serial console."""

    def __init__(self, what: str, *, remedy: str) -> None:
        super().__init__(f"{what}; what to do: {remedy}")
        self.what, self.remedy = what, remedy

    def to_dict(self) -> dict[str, str]:
        """The shape of `error` in an order's result."""
        return {"what": self.what, "remedy": self.remedy}
