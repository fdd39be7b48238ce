"""Take one secret out of the vault, by the word of two people."""

from freehold.root_of_trust.operators import THRESHOLD, NotApproved
from freehold.root_of_trust.vault import Vault, VaultError


def export_secret(vault: Vault, path: str, approvers: tuple[str, ...]) -> bytes:
    """The secret at `path`. `approvers`: the names that `operators.require_approval` returned for this very path.

    Raises `NotApproved` for fewer than two different names, before the vault is read; `VaultError` if nothing is there.
    """
    names = {name.strip() for name in approvers} - {""}
    if len(names) < THRESHOLD:
        raise NotApproved(
            f"taking {path} out of the vault was approved by {', '.join(sorted(names)) or 'nobody'}",
            expected=f"{THRESHOLD} different people",
            remedy="ask a second operator to approve the break-glass request",
        )
    secret = vault.get(path)
    if secret is None:
        raise VaultError(f"the vault holds nothing at {path}", remedy="list what it holds: `freehold vault audit`")
    return secret
