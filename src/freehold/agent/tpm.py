"""A small TPM 2.0 client: the raw command protocol over a transport, with `struct` and nothing else.

    with Tpm.open() as tpm, tpm.create_ek() as ek, tpm.create_ak() as ak:
        secret = tpm.activate_credential(ak, ek, credential_blob, encrypted_secret)
        attest, signature = tpm.quote(ak, qualifying_data, {"sha256": [0, 4, 7, 11]})

Clauses are of the TPM 2.0 Library, Part 2 (structures) and Part 3 (commands); EK templates are in `endorsement`. All
authorizations are the empty password, as on a TPM that nobody took ownership of.
"""

import os
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, Self

from freehold.agent import endorsement
from freehold.agent.tpm_codes import COMMANDS, TpmError, TpmResponseError

OWNER, NULL, PASSWORD_SESSION = 0x40000001, 0x40000007, 0x40000009
LOCKOUT, ENDORSEMENT, PLATFORM = 0x4000000A, 0x4000000B, 0x4000000C
NO_SESSIONS, SESSIONS = 0x8001, 0x8002
ALG_NULL = 0x0010
HASHES = {"sha1": 0x0004, "sha256": 0x000B, "sha384": 0x000C, "sha512": 0x000D}
TRANSIENT_FIRST, EK_NV_FIRST = 0x80000000, 0x01C00000
CAP_HANDLES, CAP_PCRS = 1, 5

# fixedTPM | fixedParent | sensitiveDataOrigin | userWithAuth | noDA | restricted | sign.
# TPMT_PUBLIC: ECC, SHA-256, attributes, no policy, no cipher, ECDSA with SHA-256, P-256, no KDF, no unique data.
AK_TEMPLATE = struct.pack(">HHIH", 0x0023, 0x000B, 0x00050472, 0) + struct.pack(
    ">HHHHHHH", ALG_NULL, 0x0018, 0x000B, 0x0003, ALG_NULL, 0, 0
)

CLEAR, CREATE_PRIMARY, ACTIVATE_CREDENTIAL, NV_READ, POLICY_SECRET, QUOTE, FLUSH_CONTEXT = list(COMMANDS)[:7]
NV_READ_PUBLIC, START_AUTH_SESSION, GET_CAPABILITY, GET_RANDOM, PCR_READ, PCR_EXTEND = list(COMMANDS)[7:]

TRY_AGAIN, TRIES = {"RETRY", "YIELDED", "TESTING"}, 10


class Transport(Protocol):
    """One command in, its response out."""

    def exchange(self, command: bytes) -> bytes: ...

    def close(self) -> None: ...


class DeviceTransport:
    """The kernel's character device: one write is one command, one read its whole response."""

    def __init__(self, path: str) -> None:
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise TpmError(
                f"{path} cannot be opened: {error.strerror}", "turn the TPM 2.0 on in the firmware's setup"
            ) from error

    def exchange(self, command: bytes) -> bytes:
        os.write(self._file, command)
        return os.read(self._file, 8192)

    def close(self) -> None:
        os.close(self._file)


class SocketTransport:
    """The data channel of `swtpm socket --server type=unixio,path=…`."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise TpmError(f"no TPM answers on {path}: {error.strerror}") from error

    def exchange(self, command: bytes) -> bytes:
        self._socket.sendall(command)
        header = self._receive(10)
        (size,) = struct.unpack_from(">I", header, 2)
        return header + self._receive(max(0, min(size, 8192) - 10))

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self._socket.recv(size - len(data))
            if not part:
                raise TpmError("the TPM closed its connection in the middle of a response")
            data += part
        return data

    def close(self) -> None:
        self._socket.close()


class Key:
    """A loaded key: `public` is its TPMT_PUBLIC. Leaving its `with` block flushes it."""

    def __init__(self, tpm: "Tpm", handle: int, public: bytes) -> None:
        self._tpm, self.handle, self.public = tpm, handle, public

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tpm.flush(self)


class _Reader:
    """Takes fields from the front of a response; running off its end is a TpmError."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise TpmError("the TPM's response is shorter than its own lengths say")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def sized(self) -> bytes:
        return self.take(self.number(2))


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def _authorization(session: int) -> bytes:
    """TPMS_AUTH_COMMAND with no nonce, no attributes (the session ends with the command), an empty authValue."""
    return struct.pack(">IHBH", session, 0, 0, 0)


def _selection(selection: Mapping[str, Iterable[int]]) -> bytes:
    """TPML_PCR_SELECTION (Part 2, 10.9.7) with 3-byte bitmaps."""
    out = struct.pack(">I", len(selection))
    for bank, indices in selection.items():
        if bank not in HASHES or not all(0 <= index < 24 for index in indices):
            raise TpmError(f"no such PCR selection: {bank} {sorted(indices)}")
        bitmap = sum(1 << index for index in set(indices))
        out += struct.pack(">HB", HASHES[bank], 3) + bitmap.to_bytes(3, "little")
    return out


class Tpm:
    """A TPM behind a transport. Not thread-safe; what was loaded is flushed by `close()`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._loaded: set[int] = set()

    @classmethod
    def open(cls) -> Self:
        """The kernel's TPM; the resource manager's device where there is one."""
        path = "/dev/tpmrm0" if os.path.exists("/dev/tpmrm0") else "/dev/tpm0"
        return cls(DeviceTransport(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Flush every object and session of this client, then close the transport."""
        try:
            for handle in list(self._loaded):
                self._flush(handle)
        finally:
            self._transport.close()

    def create_ek(self) -> Key:
        """The endorsement key that the vendor certified; always the same one until the TPM's vendor seed changes."""
        return self._create_primary(endorsement.TEMPLATES.get(self._ek_index() or 0, endorsement.EK_TEMPLATE))

    def create_ak(self) -> Key:
        """The attestation key: restricted ECDSA P-256 SHA-256, derived from the endorsement seed: always the same."""
        return self._create_primary(AK_TEMPLATE)

    def flush(self, key: Key) -> None:
        """Free the key's slot; a second call does nothing."""
        if key.handle in self._loaded:
            self._flush(key.handle)

    def ek_certificate(self) -> bytes | None:
        """What the NV index of the EK's certificate holds (DER, padded by some), or None where the vendor put none."""
        if (index := self._ek_index()) is None:
            return None
        public = _Reader(self._run(NV_READ_PUBLIC, [index]).sized())
        public.take(6)  # nvIndex, nameAlg
        attributes, _, size = public.number(4), public.sized(), public.number(2)
        # AUTHREAD: the index's own empty password; otherwise OWNERREAD, as the TCG profile asks for.
        reader = index if attributes & 1 << 18 else OWNER
        data = b""
        while len(data) < size:
            part = struct.pack(">HH", min(512, size - len(data)), len(data))
            data += self._run(NV_READ, [reader, index], part, [PASSWORD_SESSION]).sized()
        return data

    def _ek_index(self) -> int | None:
        """The first of the NV indices for EK certificates that exists."""
        there = self._handles(EK_NV_FIRST)
        return next((index for index in endorsement.TEMPLATES if index in there), None)

    def activate_credential(self, ak: Key, ek: Key, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """The secret of a TPM2_MakeCredential for this AK's name and this EK.

        The arguments are a whole TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET; a blob for other keys is TPM_RC_INTEGRITY.
        """
        handles, blobs = [ak.handle, ek.handle], credential_blob + encrypted_secret
        if not endorsement.used_by_policy(ek.public):
            return self._run(ACTIVATE_CREDENTIAL, handles, blobs, [PASSWORD_SESSION, PASSWORD_SESSION]).sized()
        start = _sized(os.urandom(16)) + _sized(b"") + struct.pack(">BHH", 1, ALG_NULL, HASHES["sha256"])
        session = self._run(START_AUTH_SESSION, [NULL, NULL], start, returns_handle=True).number(4)
        try:
            no_limits = _sized(b"") * 3 + struct.pack(">i", 0)  # nonceTPM, cpHashA, policyRef; expiration
            self._run(POLICY_SECRET, [ENDORSEMENT, session], no_limits, [PASSWORD_SESSION])
            secret = self._run(ACTIVATE_CREDENTIAL, handles, blobs, [PASSWORD_SESSION, session]).sized()
        except BaseException:
            self._flush(session)
            raise
        self._loaded.discard(session)  # the TPM ended it with the command
        return secret

    def quote(self, ak: Key, qualifying_data: bytes, selection: Mapping[str, Sequence[int]]) -> tuple[bytes, bytes]:
        """TPMS_ATTEST and TPMT_SIGNATURE over the selected PCRs, e.g. `{"sha256": [0, 4, 7], "sha384": [0, 4, 7]}`.

        A bank that this TPM does not know is left out. One that it knows and that is turned off is in the TPMS_ATTEST
        without PCRs: so the TPM itself says that it is off.
        """
        known = self.banks()
        asked = {bank: indices for bank, indices in selection.items() if HASHES.get(bank) in known}
        parameters = _sized(qualifying_data) + struct.pack(">H", ALG_NULL) + _selection(asked)
        response = self._run(QUOTE, [ak.handle], parameters, [PASSWORD_SESSION])
        attest = response.sized()
        return attest, response.data[response.at :]

    def banks(self) -> set[int]:
        """The hash algorithms (TPM_ALG_ID) of the PCR banks that the TPM has, turned on or off."""
        response = self._run(GET_CAPABILITY, [], struct.pack(">III", CAP_PCRS, 0, 1))
        response.take(5)  # moreData, capability
        found = set()
        for _ in range(response.number(4)):
            found.add(response.number(2))
            response.take(response.number(1))
        return found

    def pcr_read(self, bank: str, indices: Iterable[int]) -> dict[int, bytes]:
        """Values by index. A TPM returns at most 8 digests a call, so this may take several."""
        values: dict[int, bytes] = {}
        missing = sorted(set(indices))
        while missing:
            response = self._run(PCR_READ, [], _selection({bank: missing}))
            response.take(4)  # pcrUpdateCounter
            got = self._read_selection(response)
            digests = [response.sized() for _ in range(response.number(4))]
            if not digests or len(digests) != len(got):
                raise TpmError(f"the TPM has no PCR bank {bank}", "turn the SHA-256 bank on in the firmware's setup")
            values |= zip(got, digests, strict=True)
            missing = [index for index in missing if index not in values]
        return values

    @staticmethod
    def _read_selection(response: _Reader) -> list[int]:
        indices = []
        for _ in range(response.number(4)):
            response.take(2)
            bitmap = int.from_bytes(response.take(response.number(1)), "little")
            indices += [index for index in range(24) if bitmap & 1 << index]
        return indices

    def pcr_extend(self, index: int, digests: Mapping[str, bytes]) -> None:
        """Extend PCR `index` with one digest per bank, e.g. `{"sha256": …}`."""
        values = b"".join(struct.pack(">H", HASHES[bank]) + digest for bank, digest in digests.items())
        self._run(PCR_EXTEND, [index], struct.pack(">I", len(digests)) + values, [PASSWORD_SESSION])

    def get_random(self, size: int) -> bytes:
        """`size` bytes of the TPM's generator."""
        data = b""
        while len(data) < size:
            data += self._run(GET_RANDOM, [], struct.pack(">H", min(32, size - len(data)))).sized()
        return data

    def clear(self) -> None:
        """TPM2_Clear: new storage seed, owner's objects gone; the EK stays.

        By platform authority where the firmware left it open (a wrong guess there costs nothing), else by lockout.
        """
        try:
            self._run(CLEAR, [PLATFORM], b"", [PASSWORD_SESSION])
            return
        except TpmResponseError as error:
            if error.name not in {"BAD_AUTH", "AUTH_FAIL", "HIERARCHY", "AUTH_UNAVAILABLE", "VALUE"}:
                raise
        try:
            self._run(CLEAR, [LOCKOUT], b"", [PASSWORD_SESSION])
        except TpmResponseError as error:
            raise TpmError(
                f"the TPM does not let itself be cleared: {error}",
                "clear it in the firmware's setup, or by a physical presence request, and run this again",
            ) from error

    def _create_primary(self, template: bytes) -> Key:
        # TPM2B_SENSITIVE_CREATE with nothing in it, the template, no outside info, no creation PCRs.
        parameters = struct.pack(">HHH", 4, 0, 0) + _sized(template) + struct.pack(">HI", 0, 0)
        try:
            response = self._run(CREATE_PRIMARY, [ENDORSEMENT], parameters, [PASSWORD_SESSION], returns_handle=True)
        except TpmResponseError as error:
            if error.name != "OBJECT_MEMORY":
                raise
            # Slots that a dead process left behind: /dev/tpm0 can be opened only once, so they are nobody's.
            for handle in self._handles(TRANSIENT_FIRST):
                if handle not in self._loaded:
                    self._flush(handle)
            response = self._run(CREATE_PRIMARY, [ENDORSEMENT], parameters, [PASSWORD_SESSION], returns_handle=True)
        handle = response.number(4)
        response.take(4)  # parameterSize
        return Key(self, handle, response.sized())

    def _handles(self, first: int) -> list[int]:
        """The handles in use from `first` on, at most 64."""
        response = self._run(GET_CAPABILITY, [], struct.pack(">III", CAP_HANDLES, first, 64))
        response.take(5)  # moreData, capability
        return [response.number(4) for _ in range(response.number(4))]

    def _flush(self, handle: int) -> None:
        self._loaded.discard(handle)
        self._run(FLUSH_CONTEXT, [], struct.pack(">I", handle))

    def _run(
        self,
        command: int,
        handles: Sequence[int],
        parameters: bytes = b"",
        sessions: Sequence[int] = (),
        returns_handle: bool = False,
    ) -> _Reader:
        """Send one command. The reader stands at the returned handle if there is one, else at the first parameter."""
        body = struct.pack(f">{len(handles)}I", *handles)
        if sessions:
            area = b"".join(map(_authorization, sessions))
            body += struct.pack(">I", len(area)) + area
        body += parameters
        request = struct.pack(">HII", SESSIONS if sessions else NO_SESSIONS, 10 + len(body), command) + body
        for attempt in range(1, TRIES + 1):
            response = _Reader(self._transport.exchange(request))
            response.take(2)
            size, code = response.number(4), response.number(4)
            if code == 0:
                break
            error = TpmResponseError(command, code)
            if error.name not in TRY_AGAIN or attempt == TRIES:
                raise error
        if size != len(response.data):
            raise TpmError(f"TPM2_{COMMANDS[command]} answered {len(response.data)} bytes and says {size}")
        if returns_handle:
            (handle,) = struct.unpack_from(">I", response.data, response.at)
            self._loaded.add(handle)
        elif sessions:
            response.data = response.take(response.number(4))  # without the sessions' answers behind it
            response.at = 0
        return response
