"""Accounts and who may log in: hashing, lockout, password policy. The resources are in `account_service`."""

import hashlib
import hmac
import secrets
from collections.abc import Callable

from freehold_lab.bmc.messages import RedfishError
from freehold_lab.bmc.state import Account, Store

ROLES: dict[str, tuple[str, ...]] = {
    "Administrator": ("Login", "ConfigureManager", "ConfigureUsers", "ConfigureSelf", "ConfigureComponents"),
    "Operator": ("Login", "ConfigureSelf", "ConfigureComponents"),
    "ReadOnly": ("Login", "ConfigureSelf"),
}
FOREVER = -1.0
# Small on purpose: two BMCs share a lab host's two cores with their machines.
SCRYPT_N = 2**12


class Accounts:
    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._fast_key = secrets.token_bytes(32)
        self._proven: dict[str, tuple[str, bytes]] = {}  # account id -> (password hash, MAC of the password)
        self._decoy = hash_password(secrets.token_hex(16))

    def ensure_factory(self, user_name: str, password: str) -> None:
        """Make the factory's administrator if there is no account at all."""
        if not self._store.data.accounts:
            self.add(user_name, password, "Administrator", check_policy=False)
            self._store.save()

    def all(self) -> dict[str, Account]:
        return self._store.data.accounts

    def by_name(self, user_name: str) -> Account | None:
        return next((account for account in self.all().values() if account.user_name == user_name), None)

    def add(self, user_name: str, password: str, role: str, *, check_policy: bool = True) -> Account:
        if self.by_name(user_name):
            raise RedfishError("ResourceAlreadyExists", "ManagerAccount", "UserName", user_name)
        if check_policy:
            self.check_password(password)
        number = next(str(n) for n in range(1, 10_000) if str(n) not in self.all())
        account = Account(number, user_name, role, hash_password(password))
        self.all()[number] = account
        return account

    def set_password(self, account: Account, password: str) -> None:
        self.check_password(password)
        account.password_hash = hash_password(password)
        account.password_change_required = False

    def check_password(self, password: str) -> None:
        policy = self._store.data.policy
        if not policy.min_password_length <= len(password) <= policy.max_password_length:
            raise RedfishError(
                "PasswordLength", policy.min_password_length, policy.max_password_length, pointer="Password"
            )

    def locked(self, account: Account) -> bool:
        return account.locked_until == FOREVER or self._clock() < account.locked_until

    def login(self, user_name: str, password: str) -> tuple[Account | None, bool]:
        """(The account or None, whether this failure locked it). A locked account refuses the right password too, and
        the answer does not tell why (DSP0266, 13.3)."""
        account = self.by_name(user_name)
        if account is None:
            verify_password(password, self._decoy)  # so that time does not tell which names exist
            return None, False
        if self.locked(account):
            return None, False
        if not self._verify(account, password):
            return None, self._count_failure(account)
        if not account.enabled:
            return None, False
        if account.failures or account.locked_until:
            account.failures, account.locked_until = 0, 0.0
            self._store.save()
        return account, False

    def _verify(self, account: Account, password: str) -> bool:
        """scrypt is slow and HTTP Basic comes with every request, so a proven password is remembered as a MAC."""
        mac = hmac.digest(self._fast_key, password.encode(), "sha256")
        known = self._proven.get(account.id)
        if known and known[0] == account.password_hash and hmac.compare_digest(known[1], mac):
            return True
        if not verify_password(password, account.password_hash):
            return False
        self._proven[account.id] = (account.password_hash, mac)
        return True

    def _count_failure(self, account: Account) -> bool:
        """AccountService.AccountLockoutThreshold, …CounterResetAfter, …Duration. True if the account is now locked."""
        policy, now = self._store.data.policy, self._clock()
        if now - account.last_failure > policy.lockout_counter_reset_after:
            account.failures = 0
        account.failures += 1
        account.last_failure = now
        locks = 0 < policy.lockout_threshold <= account.failures
        if locks:
            account.locked_until = now + policy.lockout_duration if policy.lockout_duration else FOREVER
            account.failures = 0
        self._store.save()
        return locks


def hash_password(password: str) -> str:
    salt = secrets.token_bytes(16)
    return f"{salt.hex()}:{_scrypt(password, salt).hex()}"


def verify_password(password: str, hashed: str) -> bool:
    salt, _, digest = hashed.partition(":")
    return hmac.compare_digest(_scrypt(password, bytes.fromhex(salt)).hex(), digest)


def _scrypt(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=SCRYPT_N, r=8, p=1, dklen=32)
