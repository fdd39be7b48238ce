"""Why the depot says no: one class per cause, each with what to do about it."""

from freehold.model.errors import FreeholdError


class DepotError(FreeholdError):
    """The depot cannot be used as asked."""


class DepotMissing(DepotError):
    """There is no depot, or nothing was published in it yet."""


class PeopleRefused(DepotError):
    """The operators are too few, or a key and a person do not belong to each other alone."""


class KeyRefusedHere(DepotError):
    """A key that cannot sign what it was asked to sign."""


class NotPublishable(DepotError):
    """What is staged lacks signatures, or does not follow on what is published."""


class PackageRefused(DepotError):
    """A package that is not what it is said to be, or that would make another one ambiguous."""


class VendorSignatureRefused(DepotError):
    """The vendor's signature does not verify under the keys that the operator trusts."""


class MetadataRefused(DepotError):
    """TUF metadata that is not trusted; the classes below say why."""


class MetadataExpired(MetadataRefused):
    """Too old: a freeze attack looks like this, and so does a depot that nobody renewed."""


class MetadataReplayed(MetadataRefused):
    """Older than what was seen before: a rollback."""


class MetadataUnsigned(MetadataRefused):
    """Fewer valid signatures than the root asks for."""


class MetadataIncomplete(MetadataRefused):
    """Missing, cut, or mixed from several states: half-copied media, or a mix-and-match attack."""


class DataEndless(MetadataRefused):
    """More bytes than there can be."""


class TargetNotFound(DepotError):
    """The trusted metadata lists no such package (any more)."""


class PackageForAnotherModel(DepotError):
    """The package exists, but not for this model."""


class PackageForAnotherSite(DepotError):
    """The image or agent exists, but was made for another site."""


class TargetChanged(DepotError):
    """The bytes are not those that the operators signed."""


class BelowSecurityFloor(DepotError):
    """The version is below the recorded security floor, and no valid downgrade ticket allows it."""


class VersionsNotComparable(DepotError):
    """Two version strings of which it cannot be told which one is newer."""


class TrustedStateLost(DepotError):
    """The record of what was seen before is missing, or older than it must be: a rollback could not be noticed."""
