"""A key-encryption key sealed in the controller's TPM 2.0: released only while PCR 7 is what it was at the sealing.

PCR 7 measures the Secure Boot state: who may sign what boots. A disk that is put into another machine, or this machine
booted by other keys or without Secure Boot, gets nothing. The key is in this process's memory once it is released.

Everything goes through tpm2-tools over pipes: no secret is an argument or lies in a file. What the TPM and the tools
say to each other about the key is encrypted (a session salted to the storage key), so listening on the TPM's bus
is not enough. Context files of the tools lie in memory (`/dev/shm`) and are gone afterwards.
"""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from freehold.root_of_trust.kek import CustodyUnavailable, MemoryKek

POLICY = "sha256:7"
_TIMEOUT = 60.0
_RECOVER = "recover with two people: `freehold vault recover`"


class SealedKeyRefused(CustodyUnavailable):
    """The TPM does not release the key: another boot state, or another TPM."""


class TpmSealedKek(MemoryKek):
    """`public` and `private` are TPM2B_PUBLIC and TPM2B_PRIVATE of the sealed object: useless without its TPM."""

    def __init__(self, key: bytes, public: bytes, private: bytes) -> None:
        super().__init__(key)
        self.public, self.private = public, private

    @classmethod
    def create(cls) -> "TpmSealedKek":
        """Seals 32 new random bytes. Raises `CustodyUnavailable` if there is no TPM that can."""
        key = os.urandom(32)
        with _tools() as tools:
            tools.storage_key()
            tools("startauthsession", "-S", "trial.ctx")
            tools("policypcr", "-S", "trial.ctx", "-l", POLICY, "-L", "policy")
            tools("flushcontext", "trial.ctx")
            with tools.encrypted_session("--hmac-session") as session:
                arguments = ("-P", f"session:{session}", "-i", "-", "-L", "policy", "-u", "public", "-r", "private")
                tools("create", "-C", "storage.ctx", "-a", "fixedtpm|fixedparent|noda", *arguments, given=key)
            return cls(key, *tools.read("public", "private"))

    @classmethod
    def open(cls, public: bytes, private: bytes) -> "TpmSealedKek":
        """Raises `SealedKeyRefused` if the TPM or PCR 7 is another, `CustodyUnavailable` if there is no TPM."""
        with _tools() as tools:
            tools.write(public=public, private=private)
            tools.storage_key()
            tools("load", "-C", "storage.ctx", "-u", "public", "-r", "private", "-c", "sealed.ctx")
            tools.flush()
            with tools.encrypted_session("--policy-session") as session:
                tools("policypcr", "-S", session, "-l", POLICY)
                key = tools("unseal", "-c", "sealed.ctx", "-p", f"session:{session}")
        return cls(key, public, private)


class _Tools:
    """tpm2-tools in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, tool: str, *arguments: str, given: bytes = b"") -> bytes:
        """Raises `CustodyUnavailable` in the words of the person who must act."""
        command = [f"tpm2_{tool}", *arguments]
        quiet = {**os.environ, "TSS2_LOG": "all+NONE"}
        try:
            done = subprocess.run(
                command, input=given, capture_output=True, cwd=self._folder, env=quiet, timeout=_TIMEOUT, check=False
            )
        except FileNotFoundError:
            raise CustodyUnavailable(f"{command[0]} is not installed", remedy="apt-get install tpm2-tools") from None
        except subprocess.TimeoutExpired:
            raise CustodyUnavailable(
                f"the TPM did not answer {command[0]} within {_TIMEOUT:.0f} s", remedy="reset the machine"
            ) from None
        if done.returncode != 0:
            raise _refused(command[0], done.stderr.decode("utf-8", "replace"))
        return done.stdout

    def storage_key(self) -> None:
        """The owner hierarchy's ECC P-256 storage key, the same at every call."""
        self("createprimary", "-Q", "-C", "o", "-g", "sha256", "-G", "ecc", "-c", "storage.ctx")
        self.flush()

    def flush(self) -> None:
        """Frees the slots of a TPM that no resource manager looks after; what was saved in a file stays."""
        self("flushcontext", "-t")

    @contextmanager
    def encrypted_session(self, kind: str) -> Iterator[str]:
        """Salted and bound to the storage key (`-c`), which turns the encryption of parameters on."""
        name = "session.ctx"
        self("startauthsession", kind, "-S", name, "-c", "storage.ctx")
        self.flush()
        try:
            yield name
        finally:
            with suppress(CustodyUnavailable):  # what went wrong before is what to tell
                self("flushcontext", name)

    def write(self, **files: bytes) -> None:
        for name, data in files.items():
            (self._folder / name).write_bytes(data)

    def read(self, *names: str) -> list[bytes]:
        return [(self._folder / name).read_bytes() for name in names]


@contextmanager
def _tools() -> Iterator[_Tools]:
    memory = Path("/dev/shm")  # noqa: S108 - a private folder in memory is the point
    with tempfile.TemporaryDirectory(prefix="freehold-tpm-", dir=memory if memory.is_dir() else None) as folder:
        yield _Tools(Path(folder))


def _refused(tool: str, said: str) -> CustodyUnavailable:
    """What tpm2-tools printed, told apart by the TPM's response code (TPM 2.0 Part 2, 6.6.3)."""
    last = next((line for line in said.splitlines() if "(0x" in line), said.strip().rpartition("\n")[2])
    if tool == "tpm2_unseal" and "0x99D" in said:  # TPM_RC_POLICY_FAIL
        return SealedKeyRefused(
            "the TPM does not release the vault's key: PCR 7 is not what it was when the key was sealed",
            expected="the same Secure Boot state: PK, KEK, db, dbx, and who signed what booted",
            remedy=f"if nobody should have changed it, treat the machine as tampered with; otherwise {_RECOVER}",
        )
    if tool == "tpm2_load":
        return SealedKeyRefused(
            f"this TPM did not seal the vault's key: {last}",
            expected="the TPM of the machine that the vault was made on, not cleared since",
            remedy=f"move the disk back to that machine; if its TPM was cleared or replaced, {_RECOVER}",
        )
    return CustodyUnavailable(
        f"{tool} failed: {last}",
        expected="a TPM 2.0 whose owner hierarchy has an empty password",
        remedy="turn the TPM on in the firmware's setup and let this user open /dev/tpmrm0 (group tss); "
        "nothing in the vault was changed",
    )
