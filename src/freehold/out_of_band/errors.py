"""What can go wrong between the controller and a BMC: one class per cause, each with what to do next."""

from freehold.model.errors import FreeholdError


class OutOfBandError(FreeholdError):
    """Base of every failure on the out-of-band network."""


class BmcUnreachable(OutOfBandError):
    """No answer: refused, reset, timed out. If the call changes something its outcome is unknown: re-read the state."""


class BmcIdentityChanged(OutOfBandError):
    """The BMC shows neither the pinned key nor a certificate of the operator's CA. Nothing was sent to it."""


class BmcAnswerUnreadable(OutOfBandError):
    """The BMC answered, but not with JSON that we accept: HTML, garbage, or more bytes than the cap."""


class WrongCredential(OutOfBandError):
    """The BMC refused user name or password. Never retried: every try counts against the BMC's lockout."""


class AccountLocked(OutOfBandError):
    """The BMC says that the account is locked out."""


class PasswordChangeRequired(OutOfBandError):
    """The account may do nothing but change its own password (DSP0266, 13.2.8.2). `account` is its URI, or empty."""

    def __init__(self, what: str, *, account: str, server: str | None = None, remedy: str | None = None) -> None:
        super().__init__(what, server=server, remedy=remedy)
        self.account = account


class NotSupported(OutOfBandError):
    """This BMC does not have the resource, action or method. `status` (HTTP) is its answer; None: it was not asked."""

    def __init__(
        self,
        what: str,
        *,
        status: int | None = None,
        server: str | None = None,
        expected: str | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(what, server=server, expected=expected, remedy=remedy)
        self.status = status


class BmcError(OutOfBandError):
    """The BMC refused with a reason: `status` (HTTP) and `message_ids` (e.g. `Base.1.18.PropertyValueNotInList`)."""

    def __init__(
        self,
        what: str,
        *,
        status: int,
        message_ids: tuple[str, ...] = (),
        server: str | None = None,
        expected: str | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(what, server=server, expected=expected, remedy=remedy)
        self.status, self.message_ids = status, message_ids


class ChangeRefused(OutOfBandError):
    """The BMC said no to a new password: it does not take effect, now or later."""


class TakeoverStopped(OutOfBandError):
    """The take-over cannot go on by itself without risking a lockout or an unknown password. `wait`: seconds after
    which it can; None: a person is needed."""

    def __init__(
        self,
        what: str,
        *,
        server: str | None = None,
        expected: str | None = None,
        remedy: str | None = None,
        wait: float | None = None,
    ) -> None:
        super().__init__(what, server=server, expected=expected, remedy=remedy)
        self.wait = wait


class CsrRefused(OutOfBandError):
    """The BMC's certificate request is not what we asked for. Nothing was issued."""


class EnrolmentFailed(OutOfBandError):
    """After the writes the Secure Boot databases do not hold what was written."""


class UpdateUnderWay(OutOfBandError):
    """A task of the BMC is not over, so no firmware was sent."""
