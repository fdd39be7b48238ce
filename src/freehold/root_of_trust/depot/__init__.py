"""The depot: one TUF repository for firmware, OS images and the agent.

Two of at least three operators sign what may be installed, each with one key; a key in the vault keeps it fresh.
Vendors' signatures are checked when a package comes in, TUF's at the moment of use, on the bytes that are handed out.
"""

from freehold.root_of_trust.depot.client import DepotClient, Wanted
from freehold.root_of_trust.depot.depot import Depot
from freehold.root_of_trust.depot.errors import (
    BelowSecurityFloor,
    DataEndless,
    DepotError,
    DepotMissing,
    MetadataExpired,
    MetadataIncomplete,
    MetadataRefused,
    MetadataReplayed,
    MetadataUnsigned,
    PackageForAnotherModel,
    PackageForAnotherSite,
    TargetChanged,
    TargetNotFound,
    TrustedStateLost,
)
from freehold.root_of_trust.depot.expiry import expiring
from freehold.root_of_trust.depot.floors import Downgrade, DowngradeTicket, downgrade_allowed
from freehold.root_of_trust.depot.mirror import mirror
from freehold.root_of_trust.depot.package import Description, Kind, Target, VendorSignature
from freehold.root_of_trust.depot.seen import Seen

__all__ = [
    "BelowSecurityFloor",
    "DataEndless",
    "Depot",
    "DepotClient",
    "DepotError",
    "DepotMissing",
    "Description",
    "Downgrade",
    "DowngradeTicket",
    "Kind",
    "MetadataExpired",
    "MetadataIncomplete",
    "MetadataRefused",
    "MetadataReplayed",
    "MetadataUnsigned",
    "PackageForAnotherModel",
    "PackageForAnotherSite",
    "Seen",
    "Target",
    "TargetChanged",
    "TargetNotFound",
    "TrustedStateLost",
    "VendorSignature",
    "Wanted",
    "downgrade_allowed",
    "expiring",
    "mirror",
]
