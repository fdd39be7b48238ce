"""What a BMC's IPMI port gives to whoever can reach it. Asks only what may be asked before a log-in.

No log-in is ever attempted, so no account can be locked out. A log-in is Activate Session in IPMI 1.5 (22.17) and RAKP
message 3 in 2.0 (13.22): only these carry a proof of the password, and neither is ever sent. What stays behind at the
BMC is a handful of half-open sessions, which it forgets by itself.
"""

import secrets
from collections.abc import Sequence
from functools import partial

import msgspec

from freehold.out_of_band.errors import BmcUnreachable
from freehold.out_of_band.ipmi import packets as p
from freehold.out_of_band.ipmi.channel import Channel, channel

PORT = 623
DEFAULT_USERS = ("", "ADMIN", "admin", "Administrator", "root", "USERID", "sysadmin")
"""The factories' users: no name (Intel, Quanta), Supermicro, AMI and others, HPE, Dell and OpenBMC, Lenovo, AMI."""

_HMAC_SUITES = (3, 17, 8)  # one for each hash: SHA-1, SHA-256, MD5
_CIPHER_LIST_PAGES = 64  # the list index has six bits, 22.15


class IpmiPosture(msgspec.Struct, frozen=True, kw_only=True):
    """What came back from one UDP port. `""` is the name of the null user.

    `silence`: why it is held for not present. `auth_types`: of IPMI 1.5, at any privilege. `anonymous`, `null_user`: a
    user without name and password, without name is enabled. `cipher_zero`: a session without authentication was opened.
    `challenged`: users that may begin an IPMI 1.5 session without a password. `users`: names that exist. `hashes`:
    names for which RAKP message 2 carried a hash of the password; with `any_name` a made-up name was answered so, too,
    and a name among them need not exist. `unanswered`: what is not known because no answer came.
    """

    address: str
    port: int = PORT
    present: bool = False
    silence: str = ""
    versions: tuple[str, ...] = ()
    auth_types: tuple[str, ...] = ()
    anonymous: bool = False
    null_user: bool = False
    cipher_suites: tuple[int, ...] = ()
    cipher_zero: bool = False
    challenged: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    hashes: tuple[str, ...] = ()
    any_name: bool = False
    unanswered: tuple[str, ...] = ()


async def probe_ipmi(
    address: str, *, port: int = PORT, users: Sequence[str] = DEFAULT_USERS, timeout: float = 1.0, budget: float = 30.0
) -> IpmiPosture:
    """Ask the BMC at `address` (a host, without a port). Seconds: `timeout` of one attempt, `budget` of the probe.

    A port that does not answer is not present. Raises `BmcUnreachable` if this host has no way to the address.
    """
    try:
        async with channel(address, port, timeout=timeout, budget=budget) as opened:
            return await _Probe(opened, tuple(dict.fromkeys(users))).run(address, port)
    except OSError as error:
        raise BmcUnreachable(
            f"UDP port {port} of {address}: {error.strerror or error}", remedy="check the out-of-band network"
        ) from error


class _Probe:
    """The questions in order. `made_up` is a name that no BMC has: the control experiment for all names."""

    def __init__(self, opened: Channel, users: tuple[str, ...]) -> None:
        self._channel, self._users = opened, users
        self._made_up = f"fh{secrets.token_hex(6)}"
        self._number = 0
        self._unanswered: list[str] = []

    async def run(self, address: str, port: int) -> IpmiPosture:
        levels = [await self._capabilities("administrator")]
        if not self._channel.heard and not await self._pong():
            return IpmiPosture(address=address, port=port, silence=self._silence())
        levels += [await self._capabilities(privilege) for privilege in ("operator", "user", "callback")]
        known = [level for level in levels if level is not None]
        offered = {name for level in known for name in level.auth_types}
        auth_types = tuple(name for name in p.AUTH_TYPES if name in offered)
        challenged = await self._challenged(auth_types[0]) if auth_types else ()
        suites = await self._cipher_suites()
        # A BMC that says it has no 2.0 is not asked in it: one (OpenIPMI's) dies of a RAKP message then.
        claimed = not known or any(level.v20 for level in known)
        zero = await self._open(0) if claimed else None
        answered = await self._rakp_answers(suites) if zero is not None else {}
        any_name = answered.pop(self._made_up, None) is not None
        users = [name for name in self._users if name in challenged or (name in answered and not any_name)]
        if zero is None and claimed:
            self._unanswered.append("RMCP+ Open Session Request")
        return IpmiPosture(
            address=address,
            port=port,
            present=True,
            versions=("1.5",) * any(level.v15 for level in known)
            + ("2.0",) * (zero is not None or bool(known and claimed)),
            auth_types=auth_types,
            anonymous=any(level.anonymous for level in known),
            null_user="" in users or any(level.null_user for level in known),
            cipher_suites=suites,
            cipher_zero=zero is not None and zero.accepted == p.SUITES[0],
            challenged=challenged if "none" in auth_types else (),
            users=tuple(users),
            hashes=tuple(name for name, hashed in answered.items() if hashed),
            any_name=any_name,
            unanswered=tuple(self._unanswered),
        )

    def _silence(self) -> str:
        if self._channel.closed:
            return "port unreachable (ICMP)"
        return "an RMCP pong that does not name IPMI" if self._channel.heard else "no answer"

    def _next(self) -> int:
        """Message tags and sequence numbers: no two questions in a row have the same; a sequence has six bits."""
        self._number = (self._number + 1) % 64
        return self._number

    async def _pong(self) -> bool | None:
        tag = self._next()
        return await self._channel.ask(p.presence_ping(tag), partial(p.read_pong, tag=tag))

    async def _command(self, number: int, data: bytes) -> p.Answer | None:
        sequence = self._next()
        read = partial(p.read_answer, number=number, sequence=sequence)
        return await self._channel.ask(p.command(number, data, sequence), read)

    async def _capabilities(self, privilege: str) -> p.AuthCapabilities | None:
        """None also if the BMC has no such privilege on this channel, which it says by an error."""
        data = p.capabilities_request(p.PRIVILEGES[privilege])
        answer = await self._command(p.GET_CHANNEL_AUTHENTICATION_CAPABILITIES, data)
        return p.read_capabilities(answer.data) if answer is not None and answer.code == 0 else None

    async def _challenged(self, auth_type: str) -> tuple[str, ...]:
        """Who gets a session challenge; nobody, if a made-up name gets one, for then it shows nothing."""
        found = []
        for name in (self._made_up, *self._users):
            answer = await self._command(p.GET_SESSION_CHALLENGE, p.challenge_request(auth_type, name))
            if answer is None:
                self._unanswered.append("Get Session Challenge")
                break
            if answer.code == 0:
                found.append(name)
        return () if self._made_up in found else tuple(found)

    async def _cipher_suites(self) -> tuple[int, ...]:
        records = b""
        for index in range(_CIPHER_LIST_PAGES):
            answer = await self._command(p.GET_CHANNEL_CIPHER_SUITES, p.cipher_suites_request(index))
            if answer is None or answer.code:
                break  # a BMC of IPMI 1.5 does not have the command
            records += answer.data[1:17]
            if len(answer.data) < 17:
                break
        return p.read_cipher_suites(records)

    async def _open(self, suite: int) -> p.OpenSession | None:
        tag, console = self._next(), 1 + secrets.randbelow(2**32 - 1)
        read = partial(p.read_open_session, tag=tag, console_id=console)
        return await self._channel.ask(p.open_session(tag, console, suite), read)

    async def _rakp_answers(self, suites: tuple[int, ...]) -> dict[str, bool]:
        """Names that the BMC takes in RAKP message 1 -> whether its message 2 carried a hash. How it treats the made-up
        name shows how it refuses one: some say so (status 0x0d), some are silent."""
        suite = await self._hmac_suite(suites)
        if suite is None:
            return {}
        control = await self._rakp(suite, self._made_up)
        found = {} if control is None or control.status else {self._made_up: control.code_length > 0}
        for name in self._users:
            answer = await self._rakp(suite, name, attempts=2 if control else 1)
            if answer is not None and answer.status == 0:
                found[name] = answer.code_length > 0
            elif answer != control:
                status = "no answer" if answer is None else f"status 0x{answer.status:02x}"
                self._unanswered.append(f"RAKP message 1 for {name!r} ({status})")
        return found

    async def _hmac_suite(self, suites: tuple[int, ...]) -> int | None:
        """A suite of those listed, or of all if there is no list, that authenticates by a hash of the password."""
        for suite in [each for each in _HMAC_SUITES if each in suites] or _HMAC_SUITES:
            opened = await self._open(suite)
            if opened is not None and opened.accepted is not None and opened.accepted[0]:
                return suite
        return None

    async def _rakp(self, suite: int, name: str, *, attempts: int = 2) -> p.Rakp2 | None:
        """A session bears one RAKP message 1, so every attempt opens its own."""
        for _ in range(attempts):
            opened = await self._open(suite)
            if opened is None or opened.status:
                return None if opened is None else p.Rakp2(opened.status, 0)
            tag = self._next()
            packet = p.rakp_1(tag, opened.managed_id, secrets.token_bytes(16), name)
            read = partial(p.read_rakp_2, tag=tag, console_id=opened.console_id)
            answer = await self._channel.ask(packet, read, attempts=1)
            if answer is not None:
                return answer
        return None
