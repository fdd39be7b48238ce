"""Secrets that are given in files: key files, and the PINs and passphrases that a service is started with.

A secret is never an argument and never the value of an environment variable, because other processes can read both.
An environment variable may name a file of mode 0600; under systemd, `LoadCredential=` puts it into a folder that only
the service can read.
"""

import os
import stat
from pathlib import Path

from freehold.model.errors import FreeholdError

_LONGEST = 4096


class KeyFileRefused(FreeholdError):
    """A file with a secret that others can read, or that is none."""


def read_private(path: Path, what: str = "key file") -> bytes:
    """The content of a regular file that belongs to us and that nobody else can read or write."""
    return _read(path, what, private=True)


def given_secret(name: str, variable: str, what: str) -> str:
    """The secret out of the file that the environment variable `variable` names, or else out of the systemd credential
    `name`; without the line end. Raises `KeyFileRefused` if neither is there."""
    if path := os.environ.get(variable):
        return read_secret(Path(path), what)
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if folder and (credential := Path(folder) / name).exists():
        # systemd answers for its folder; with an ACL for the service's user, the mode shows a group that is none.
        return _text(credential, what, _read(credential, what, private=False))
    raise KeyFileRefused(
        f"nobody said where the {what} is",
        remedy=f"write it to a file of mode 0600 and name that file in {variable}, "
        f"or give the service the systemd credential {name}",
    )


def read_secret(path: Path, what: str) -> str:
    """The one line of a private file."""
    return _text(path, what, read_private(path, f"{what} file"))


def _text(path: Path, what: str, data: bytes) -> str:
    try:
        text = data.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise KeyFileRefused(f"{path} is no {what}: it is not UTF-8") from None
    if not text or len(data) == _LONGEST:
        raise KeyFileRefused(f"{path} holds no {what}", expected=f"one line, shorter than {_LONGEST} bytes")
    return text


def _read(path: Path, what: str, *, private: bool) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | (os.O_NOFOLLOW if private else 0))
    except FileNotFoundError:
        raise KeyFileRefused(f"there is no {what} {path}", remedy="restore it; the vault needs it") from None
    except OSError as error:
        raise KeyFileRefused(f"the {what} {path} cannot be read: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileRefused(f"{path} is not a regular file")
        if private and status.st_mode & 0o077:
            raise KeyFileRefused(
                f"others can read the {what} {path} (mode {stat.S_IMODE(status.st_mode):04o})",
                expected="mode 0600",
                remedy=f"chmod 600 {path}; if others had access, make a new vault",
            )
        if private and status.st_uid != os.geteuid():
            raise KeyFileRefused(f"{path} belongs to user {status.st_uid}", expected=f"user {os.geteuid()}")
        return os.read(descriptor, _LONGEST)
    finally:
        os.close(descriptor)
