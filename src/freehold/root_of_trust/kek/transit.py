"""A key-encryption key in OpenBao's transit engine: it wraps there and is never read. The records stay on our disk.

The record's context is transit's `associated_data` (AES-256-GCM).
"""

import os
from base64 import b64decode, b64encode
from typing import Any

from hvac.exceptions import InvalidPath, InvalidRequest

from freehold.root_of_trust.kek import CustodyUnavailable
from freehold.root_of_trust.openbao import OpenBao


class TransitKek:
    """`mount` and `name` say which key; `key_id` is our own random name for it, as transit gives keys none."""

    def __init__(self, bao: OpenBao, mount: str, name: str, key_id: str) -> None:
        self._bao, self._mount, self._name = bao, mount, name
        self._key_id = key_id

    def __repr__(self) -> str:
        return f"TransitKek({self.key_id}, {self._bao.address}, {self._mount}/{self._name})"

    @classmethod
    def open(cls, bao: OpenBao, mount: str, name: str, key_id: str | None = None) -> "TransitKek":
        """`key_id` None: a new vault. Raises `CustodyUnavailable` if there is no such key, or one that can be read."""
        key = bao.call("read the transit key's settings", lambda client: _settings(client, mount, name))
        if key is None:
            raise CustodyUnavailable(
                f"OpenBao at {bao.address} has no transit key {mount}/{name}",
                remedy=f"make it: `bao write -f {mount}/keys/{name}`; if it was deleted, recover with two people: "
                "`freehold vault recover`",
            )
        wrong = [setting for setting in ("exportable", "allow_plaintext_backup", "deletion_allowed") if key[setting]]
        if key["type"] != "aes256-gcm96" or wrong:
            why = ", ".join([key["type"], *wrong])
            raise CustodyUnavailable(
                f"the transit key {mount}/{name} of OpenBao at {bao.address} is not fit: {why}",
                expected="aes256-gcm96, not exportable, no plaintext backup, deletion not allowed",
                remedy=f"make another: `bao write -f {mount}/keys/…`",
            )
        return cls(bao, mount, name, key_id or os.urandom(16).hex())

    @property
    def key_id(self) -> str:
        """A random name, kept in custody.json and in the vault."""
        return self._key_id

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """`vault:v1:…` in ASCII. Raises `CustodyUnavailable`."""

        def encrypt(client: Any) -> str:
            answer = client.secrets.transit.encrypt_data(
                self._name, plaintext=_text(key), associated_data=_text(context), mount_point=self._mount
            )
            return str(answer["data"]["ciphertext"])

        return self._bao.call("wrap a key", encrypt).encode("ascii")

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Raises ValueError if the key, the context or a byte is another, `CustodyUnavailable` if nobody can tell."""

        def decrypt(client: Any) -> str | None:
            try:
                answer = client.secrets.transit.decrypt_data(
                    self._name,
                    ciphertext=wrapped.decode("ascii"),
                    associated_data=_text(context),
                    mount_point=self._mount,
                )
            except InvalidRequest:
                return None
            return str(answer["data"]["plaintext"])

        plaintext = self._bao.call("unwrap a key", decrypt)
        if plaintext is None:
            self.wrap(bytes(32), b"probe")  # transit says 400 for a deleted key too; one that encrypts is there
            raise ValueError("the wrapped key does not unwrap")
        return b64decode(plaintext)


def _settings(client: Any, mount: str, name: str) -> Any:
    try:
        return client.secrets.transit.read_key(name, mount_point=mount)["data"]
    except InvalidPath:
        return None


def _text(data: bytes) -> str:
    return b64encode(data).decode("ascii")
