"""IPMI over LAN on the wire: what is asked before anybody has logged in. Pure: bytes in, values out.

Sources: DMTF DSP0136 (RMCP, ASF presence ping) and the IPMI specification v2.0 rev. 1.1; sections are named below. A
reader returns None for a datagram that is not a well-formed answer to its question: whoever can reach our port may
send anything.
"""

import struct

import msgspec

_RMCP_ASF, _RMCP_IPMI = b"\x06\x00\xff\x06", b"\x06\x00\xff\x07"  # version 1.0, no acknowledgement, class
_ASF_IANA = 4542
_PING, _PONG = 0x80, 0x40
_AUTH_NONE, _AUTH_RMCP_PLUS = 0x00, 0x06  # format field of the session header, 13.6
_BMC, _US = 0x20, 0x81  # responder's and requester's address, 13.8
_APP, _APP_ANSWER = 0x06 << 2, 0x07 << 2
GET_CHANNEL_AUTHENTICATION_CAPABILITIES, GET_SESSION_CHALLENGE, GET_CHANNEL_CIPHER_SUITES = 0x38, 0x39, 0x54
_THIS_CHANNEL = 0x0E
_OPEN_REQUEST, _OPEN_RESPONSE, _RAKP_1, _RAKP_2 = 0x10, 0x11, 0x12, 0x13  # payload types, table 13-16

PRIVILEGES = {"callback": 1, "user": 2, "operator": 3, "administrator": 4}
AUTH_TYPES = {"none": 0, "md2": 1, "md5": 2, "password": 4, "oem": 5}  # 13.6; "password" is sent in the clear

SUITES: dict[int, tuple[int, int, int]] = {
    0: (0, 0, 0), 1: (1, 0, 0), 2: (1, 1, 0), 3: (1, 1, 1), 4: (1, 1, 2), 5: (1, 1, 3),
    6: (2, 0, 0), 7: (2, 2, 0), 8: (2, 2, 1), 9: (2, 2, 2), 10: (2, 2, 3),
    11: (2, 3, 0), 12: (2, 3, 1), 13: (2, 3, 2), 14: (2, 3, 3),
    15: (3, 0, 0), 16: (3, 4, 0), 17: (3, 4, 1), 18: (3, 4, 2), 19: (3, 4, 3),
}  # fmt: skip
"""Cipher suite -> (authentication, integrity, confidentiality) algorithm, table 22-20. 0 is none in each."""


class Answer(msgspec.Struct, frozen=True):
    """A command's response: completion code (5.2; 0 is success) and data."""

    code: int
    data: bytes


class AuthCapabilities(msgspec.Struct, frozen=True, kw_only=True):
    """22.13. `anonymous`: a user without name and password is enabled; `null_user`: one without a name is."""

    auth_types: tuple[str, ...]
    anonymous: bool
    null_user: bool
    v15: bool
    v20: bool


class OpenSession(msgspec.Struct, frozen=True):
    """13.18. `accepted` are the algorithms that the BMC chose, which need not be those that were proposed."""

    status: int
    console_id: int = 0
    managed_id: int = 0
    accepted: tuple[int, int, int] | None = None


class Rakp2(msgspec.Struct, frozen=True):
    """13.21. `code_length` is of the key exchange authentication code: a keyed hash of the user's password. The code
    itself is not kept: whoever has it can guess the password offline."""

    status: int
    code_length: int


# ---- presence


def presence_ping(tag: int) -> bytes:
    return _RMCP_ASF + struct.pack(">IBBBB", _ASF_IANA, _PING, tag, 0, 0)


def read_pong(datagram: bytes, tag: int) -> bool | None:
    """Whether the answer to `presence_ping` says that IPMI is spoken here (DSP0136, 3.2.4.3)."""
    if len(datagram) < 28 or datagram[:4] != _RMCP_ASF:
        return None
    iana, kind, answered, _, length = struct.unpack_from(">IBBBB", datagram, 4)
    if (iana, kind, answered) != (_ASF_IANA, _PONG, tag) or length < 16:
        return None
    return bool(datagram[20] & 0x80)


# ---- commands outside a session (IPMI 1.5 packet format)


def command(number: int, data: bytes, sequence: int) -> bytes:
    """A request with authentication type none and session 0, as the commands before a log-in are sent (13.6, 13.8)."""
    head = bytes((_BMC, _APP))
    body = bytes((_US, sequence << 2, number)) + data
    message = head + _checksum(head) + body + _checksum(body)
    return _RMCP_IPMI + struct.pack("<BIIB", _AUTH_NONE, 0, 0, len(message)) + message


def read_answer(datagram: bytes, number: int, sequence: int) -> Answer | None:
    if len(datagram) < 22 or datagram[:4] != _RMCP_IPMI or datagram[4] != _AUTH_NONE:
        return None
    message = datagram[14 : 14 + datagram[13]]
    if len(message) != datagram[13] or len(message) < 8:
        return None
    if _checksum(message[:2]) != message[2:3] or _checksum(message[3:-1]) != message[-1:]:
        return None
    if message[0] != _US or message[1] & 0xFC != _APP_ANSWER or message[4] >> 2 != sequence or message[5] != number:
        return None
    return Answer(message[6], message[7:-1])


def _checksum(part: bytes) -> bytes:
    """Two's complement, so that part and checksum add up to 0 (13.8)."""
    return bytes((-sum(part) & 0xFF,))


def capabilities_request(privilege: int) -> bytes:
    return bytes((0x80 | _THIS_CHANNEL, privilege))  # bit 7: the v2.0 part of the answer, too


def read_capabilities(data: bytes) -> AuthCapabilities | None:
    """The data of a successful answer; None if it is too short."""
    if len(data) < 4:
        return None
    _, offered, status, extended = data[:4]
    v20 = bool(offered & 0x80 and extended & 0x02)
    return AuthCapabilities(
        auth_types=tuple(name for name, bit in AUTH_TYPES.items() if offered & 1 << bit),
        anonymous=bool(status & 0x01),
        null_user=bool(status & 0x02),
        v15=not offered & 0x80 or bool(extended & 0x01),
        v20=v20,
    )


def challenge_request(auth_type: str, name: str) -> bytes:
    """22.16. The answer to it proves that the user exists; only an Activate Session after it would be a log-in."""
    return bytes((AUTH_TYPES[auth_type],)) + _name(name).ljust(16, b"\0")


def cipher_suites_request(index: int) -> bytes:
    return bytes((_THIS_CHANNEL, 0, 0x80 | index))  # of payload type IPMI, listed by suite (22.15)


def read_cipher_suites(records: bytes) -> tuple[int, ...]:
    """The suites in the concatenated records of 22.15.1, in order; OEM suites are left out. Stray bytes are skipped."""
    found: list[int] = []
    at = 0
    while at < len(records):
        start = records[at]
        if start == 0xC0 and at + 1 < len(records):
            found.append(records[at + 1])
        at += {0xC0: 2, 0xC1: 5}.get(start, 1)
    return tuple(dict.fromkeys(found))


# ---- opening an RMCP+ session (IPMI 2.0)


def open_session(tag: int, console_id: int, suite: int) -> bytes:
    """13.17: propose exactly the algorithms of one cipher suite, at the highest privilege that they allow."""
    payload = struct.pack("<BBHI", tag, 0, 0, console_id)
    for kind, algorithm in enumerate(SUITES[suite]):
        payload += bytes((kind, 0, 0, 8, algorithm, 0, 0, 0))
    return _rmcp_plus(_OPEN_REQUEST, payload)


def read_open_session(datagram: bytes, tag: int, console_id: int) -> OpenSession | None:
    payload = _payload(datagram, _OPEN_RESPONSE, tag)
    if payload is None:
        return None
    status = payload[1]
    if status:
        return OpenSession(status)  # an error ends behind the session ID, or earlier (OpenIPMI's BMC)
    if len(payload) < 36 or struct.unpack_from("<I", payload, 4)[0] != console_id:
        return None
    (managed_id,) = struct.unpack_from("<I", payload, 8)
    accepted = (payload[16] & 0x3F, payload[24] & 0x3F, payload[32] & 0x3F)
    return OpenSession(0, console_id, managed_id, accepted)


def rakp_1(tag: int, managed_id: int, nonce: bytes, name: str) -> bytes:
    """13.20: ask for privilege user, looked up by name only. `nonce` is 16 bytes."""
    wanted = 0x10 | PRIVILEGES["user"]
    user = _name(name)
    return _rmcp_plus(_RAKP_1, struct.pack("<BxxxI16sBxxB", tag, managed_id, nonce, wanted, len(user)) + user)


def read_rakp_2(datagram: bytes, tag: int, console_id: int) -> Rakp2 | None:
    payload = _payload(datagram, _RAKP_2, tag)
    if payload is None:
        return None
    status = payload[1]
    if status:
        return Rakp2(status, 0)  # what follows an error is keyed with nobody's password
    if len(payload) < 40 or struct.unpack_from("<I", payload, 4)[0] != console_id:
        return None
    return Rakp2(0, len(payload) - 40)


def _rmcp_plus(kind: int, payload: bytes) -> bytes:
    return _RMCP_IPMI + struct.pack("<BBIIH", _AUTH_RMCP_PLUS, kind, 0, 0, len(payload)) + payload


def _payload(datagram: bytes, kind: int, tag: int) -> bytes | None:
    """The payload of an answer outside a session: of this type and with our message tag in front."""
    if len(datagram) < 18 or datagram[:4] != _RMCP_IPMI:
        return None
    form, found, session, _, length = struct.unpack_from("<BBIIH", datagram, 4)
    payload = datagram[16 : 16 + length]
    if (form, found, session) != (_AUTH_RMCP_PLUS, kind, 0) or len(payload) != length or length < 2:
        return None
    return payload if payload[0] == tag else None


def _name(name: str) -> bytes:
    """IPMI user names have at most 16 bytes (22.28)."""
    return name.encode()[:16]
