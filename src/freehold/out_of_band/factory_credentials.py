"""Does the BMC still take what its factory put on it? One attempt for each documented credential, and few enough that
no account can be locked by them.

`candidates` and `allowance` decide and are pure; `try_credentials` does it, over TLS to the BMC that is recognised.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from enum import StrEnum

from freehold.model.findings import Finding, Severity
from freehold.out_of_band.advisories import Firmware
from freehold.out_of_band.errors import OutOfBandError, PasswordChangeRequired, WrongCredential
from freehold.out_of_band.posture import AccountFact, AccountPolicy
from freehold.out_of_band.redfish import Credential, RedfishClient

IN_USE, UNTRIED = "bmc-default-credential", "bmc-defaults-untried"
UNKNOWN_POLICY, NO_LOCKOUT = 1, 10
"""Attempts where the BMC does not tell its threshold, and where it has none."""
WINDOW = 1800.0
"""Seconds after which a BMC that does not say so is taken to have forgotten a refused log-in."""

_ROWS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("dell", "avocent"), "root", "calvin"),
    (("supermicro", "super micro"), "ADMIN", "ADMIN"),
    (("lenovo", "ibm"), "USERID", "PASSW0RD"),
    (("openbmc", "ibm", "nvidia"), "root", "0penBmc"),
    (("gigabyte", "giga computing"), "admin", "password"),
    (("ibm", "ami", "american megatrends", "gigabyte"), "admin", "admin"),
    (("ami", "american megatrends"), "sysadmin", "superuser"),
    (("intel", "quanta"), "root", "superuser"),
    (("oracle",), "root", "changeme"),
    (("huawei",), "Administrator", "Admin@9000"),  # from memory
    (("quanta",), "admin", "cmb9.admin"),  # no manual was seen: tools for Quanta's servers carry it
    (("intel", "quanta"), "", ""),
)
"""Words of the vendor's name, user, password: as the vendors' manuals have them, the surest first: the budget may end
before the list does. HPE's, and all that came after California's SB-327, are different on each board, so nobody can try
them. Gigabyte's is that of boards shipped before March 2020 (its security announcement 1762). The user without a name
is User 1 of IPMI, off from the factory (QSSC-S4R, table 194); a BMC that takes it over Redfish takes anybody."""


class Trial(StrEnum):
    TAKEN = "taken"
    REFUSED = "refused"
    UNKNOWN = "unknown"


def candidates(firmware: Firmware, accounts: Sequence[AccountFact], own: str) -> tuple[Credential, ...]:
    """What the vendor documents; never for our own account. Enabled accounts first, then those that are not listed."""
    named = " ".join((*firmware.vendors, firmware.product, firmware.bmc)).lower()
    words = set("".join(each if each.isalnum() else " " for each in named).split())
    found = [
        Credential(user, password)
        for vendors, user, password in _ROWS
        if user.lower() != own.lower() and any(set(vendor.split()) <= words for vendor in vendors)
    ]
    listed = {account.username: account.enabled for account in accounts}
    return tuple(sorted(found, key=lambda each: {True: 0, None: 1, False: 2}[listed.get(each.username)]))


def allowance(policy: AccountPolicy) -> int:
    """Attempts that are safe, over all accounts together: some BMCs count by address. Two stay below the threshold."""
    threshold = policy.lockout_threshold
    if threshold is None:
        return UNKNOWN_POLICY
    return NO_LOCKOUT if threshold == 0 else max(0, threshold - 2)


async def try_credentials(
    connect: Callable[[Credential], RedfishClient], credentials: Sequence[Credential]
) -> tuple[tuple[str, Trial], ...]:
    """(user, what came of it) of one attempt each; an answer that is neither yes nor no ends it. Once a user is let in,
    its other passwords are not tried: they could only be refused, and be counted."""
    tried: list[tuple[str, Trial]] = []
    for credential in credentials:
        if (credential.username, Trial.TAKEN) in tried:
            continue
        try:
            async with connect(credential):
                pass
            tried.append((credential.username, Trial.TAKEN))
        except PasswordChangeRequired:  # only who has the password is asked to change it
            tried.append((credential.username, Trial.TAKEN))
        except WrongCredential:
            tried.append((credential.username, Trial.REFUSED))
        except OutOfBandError:
            tried.append((credential.username, Trial.UNKNOWN))
            break
    return tuple(tried)


def default_findings(
    server: str, wanted: Sequence[Credential], tried: Sequence[tuple[str, Trial]], policy: AccountPolicy
) -> tuple[Finding, ...]:
    """What is taken is critical; what was not tried is said, a user with several passwords if any of them was not.
    Passwords are in neither. Pure."""
    taken = [user for user, trial in tried if trial is Trial.TAKEN]
    left = Counter(each.username for each in wanted)
    left -= Counter(user for user, trial in tried if trial is not Trial.UNKNOWN)
    untried = [user for user in left if user not in taken]
    found = []
    if taken:
        found.append(
            Finding(
                severity=Severity.CRITICAL,
                kind=IN_USE,
                subject=server,
                detail=f"the BMC takes the factory's documented password for {', '.join(map(_named, taken))}",
                remedy="disable the account, or give it a password of its own",
                evidence=f"a log-in with it succeeded: {', '.join(map(_named, taken))}",
            )
        )
    if untried or not wanted:
        threshold = policy.lockout_threshold
        said = f"AccountLockoutThreshold is {'not told' if threshold is None else threshold}"
        found.append(
            Finding(
                severity=Severity.INFO,
                kind=UNTRIED,
                subject=server,
                detail=f"factory credentials were not tried: {', '.join(map(_named, untried))}"
                if wanted
                else "no factory credential is documented for this vendor, so none was tried",
                remedy="try them by hand, one attempt each, when the BMC has forgotten earlier ones",
                evidence=said,
            )
        )
    return tuple(found)


def _named(user: str) -> str:
    return repr(user) if user else "the user without a name"
