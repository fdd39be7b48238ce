"""A random password that a BMC takes."""

import secrets
import string

from freehold.out_of_band.errors import TakeoverStopped
from freehold.out_of_band.posture import AccountPolicy

_LETTERS = "".join(sorted(set(string.ascii_letters) - set("Il O".replace(" ", ""))))
_DIGITS = "23456789"
_MARKS = "-_."  # the marks that no vendor's web form, IPMI tool or shell stumbles over
_LENGTH = 16  # IPMI 1.5 and older BMCs keep 16 characters; 16 of 61 are 94 bits


def generate_password(policy: AccountPolicy | None) -> str:
    """A random password within the BMC's own limits, with a letter of each case, a digit and a mark; letter first."""
    shortest = (policy.min_password_length if policy else None) or 0
    longest = (policy.max_password_length if policy else None) or max(_LENGTH, shortest)
    length = min(max(_LENGTH, shortest), longest)
    if length < 8 or shortest > longest:
        raise TakeoverStopped(
            f"the BMC allows passwords of {shortest} to {longest} characters",
            expected="at least 8",
            remedy="set MinPasswordLength and MaxPasswordLength of its AccountService",
        )
    alphabet = _LETTERS + _DIGITS + _MARKS
    classes = (string.ascii_lowercase, string.ascii_uppercase, string.digits, _MARKS)
    while True:
        password = secrets.choice(_LETTERS) + "".join(secrets.choice(alphabet) for _ in range(length - 1))
        if all(set(password) & set(wanted) for wanted in classes):
            return password
