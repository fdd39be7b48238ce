"""One exception per cause; each is a FreeholdError, so its text is for the person who must act."""

from freehold.model.errors import FreeholdError


class AttestationError(FreeholdError):
    """Base: this evidence proves nothing."""


class MalformedEvidenceError(AttestationError):
    """Bytes that do not follow their specification."""


class EndorsementKeyError(AttestationError):
    """The EK is not one that a trusted TPM vendor certified, or not one of the expected kind."""


class AttestationKeyError(AttestationError):
    """The AK is not a restricted signing key that only its TPM can use."""


class QuoteError(AttestationError):
    """The quote is not a fresh signature of this AK over exactly the PCRs that were asked for."""


class ChallengeError(AttestationError):
    """The challenge is spent, expired, unknown, or its secret was not recovered."""
