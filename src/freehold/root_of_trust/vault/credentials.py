"""A user name with its password, and its change in two phases."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from freehold.root_of_trust.vault.interface import Vault, VaultError, check_path


@dataclass(frozen=True, slots=True)
class Credential:
    """A user name and a password that no repr shows.

    `note`: numbers that must survive with it, such as log-in tries counted before they are made.
    """

    username: str
    password: str = field(repr=False)
    note: dict[str, float] = field(default_factory=dict)


class CredentialSlots:
    """A credential and its successor, for a change that may crash between the vault and the BMC.

        slots.stage("freehold", new_password)   # durable before the BMC hears of it
        …change it on the BMC, log in with it…
        slots.commit()                          # or discard(), if the BMC refused
        slots.drop_previous()

    The three slots are one record, so every step is atomic: what the BMC has is in `current`, `pending` or `previous`.
    """

    def __init__(self, vault: Vault, path: str) -> None:
        self._vault, self._path = vault, check_path(path)

    def __repr__(self) -> str:
        return f"CredentialSlots({self._path!r})"

    def current(self) -> Credential | None:
        """The credential that is known to work."""
        return self._read().get("current")

    def pending(self) -> Credential | None:
        """The staged credential, of which it is not known whether the BMC has it."""
        return self._read().get("pending")

    def previous(self) -> Credential | None:
        """What `current` was before the last commit, until `drop_previous`."""
        return self._read().get("previous")

    def stage(
        self, username: str, password: str, note: dict[str, float] | None = None, *, replace: bool = False
    ) -> None:
        """Records the successor, or a new `note` of the same successor.

        Raises `VaultError` if another password is pending, as the BMC may have it already; `replace` is for a caller
        who knows that it has not.
        """

        def change(slots: dict[str, Credential]) -> dict[str, Credential]:
            old = slots.get("pending")
            if old and not replace and (old.username, old.password) != (username, password):
                raise VaultError(
                    f"a credential is already staged at {self._path}",
                    remedy="try it on the BMC, then commit or discard it",
                )
            return {**slots, "pending": Credential(username, password, note or {})}

        self._change(change)

    def commit(self) -> None:
        """`pending` becomes `current`, and `current` becomes `previous`. Raises `VaultError` if nothing is pending."""

        def change(slots: dict[str, Credential]) -> dict[str, Credential]:
            if "pending" not in slots:
                raise VaultError(f"no credential is staged at {self._path}")
            kept = {"previous": slots["current"]} if "current" in slots else {}
            return {"current": slots["pending"], **kept}

        self._change(change)

    def discard(self) -> None:
        """Forgets `pending`; nothing happens if there is none."""
        self._change(lambda slots: {name: value for name, value in slots.items() if name != "pending"})

    def drop_previous(self) -> None:
        """Forgets `previous`; nothing happens if there is none."""
        self._change(lambda slots: {name: value for name, value in slots.items() if name != "previous"})

    def _read(self) -> dict[str, Credential]:
        return _decode(self._vault.get(self._path))

    def _change(self, change: Callable[[dict[str, Credential]], dict[str, Credential]]) -> None:
        self._vault.update(self._path, lambda data: _encode(change(_decode(data))))


def _encode(slots: dict[str, Credential]) -> bytes:
    return json.dumps({name: [value.username, value.password, value.note] for name, value in slots.items()}).encode()


def _decode(data: bytes | None) -> dict[str, Credential]:
    return {name: Credential(*value) for name, value in json.loads(data or b"{}").items()}
