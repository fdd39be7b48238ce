"""Find other DHCP servers on the provisioning segment: ask, and report every offer that is not ours.

A rogue server can hand a booting machine another boot file. Secure Boot refuses to run it, but the machine would not
come up, so the operator must know who answers. Packets by RFC 2131 and RFC 2132.
"""

import asyncio
import ipaddress
import os
import socket
import struct
import time

import msgspec

from freehold.model.errors import FreeholdError
from freehold.model.findings import Finding, Severity

COOKIE = bytes.fromhex("63825363")
FIXED = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s")
BROADCAST = 0x8000
DISCOVER, OFFER = 1, 2
PAD, END, ROUTER, OVERLOAD, MESSAGE_TYPE, SERVER_ID, PARAMETERS, VENDOR_CLASS, BOOT_FILE = (
    0,
    255,
    3,
    52,
    53,
    54,
    55,
    60,
    67,
)
SO_BINDTODEVICE = 25


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A DHCPOFFER: who sent it, what it offers. `source` is the address the packet really came from."""

    source: str
    server_id: str | None
    offered: str
    boot_file: str
    next_server: str
    routers: tuple[str, ...]


def discover(transaction: int, mac: bytes) -> bytes:
    """A broadcast DHCPDISCOVER of a UEFI HTTP boot client (class HTTPClient, as attackers would answer it)."""
    head = FIXED.pack(1, 1, 6, 0, transaction, 0, BROADCAST, b"", b"", b"", b"", mac, b"", b"")
    vendor = b"HTTPClient:Arch:00016:UNDI:003001"
    options = bytes([MESSAGE_TYPE, 1, DISCOVER, PARAMETERS, 5, 1, 3, 6, 60, 67, VENDOR_CLASS, len(vendor)]) + vendor
    return (head + COOKIE + options + bytes([END])).ljust(300, b"\0")


def parse_offer(packet: bytes, source: str, transaction: int) -> Offer | None:
    """The offer in a BOOTP packet; None if it is not a well-formed DHCPOFFER for this transaction."""
    if len(packet) < FIXED.size + 4 or packet[FIXED.size : FIXED.size + 4] != COOKIE:
        return None
    op, _, _, _, number, _, _, _, yours, server, _, _, sname, file = FIXED.unpack_from(packet)
    if op != 2 or number != transaction:
        return None
    options = parse_options(packet[FIXED.size + 4 :])
    if options is None or options.get(MESSAGE_TYPE) != bytes([OFFER]):
        return None
    overload = options.get(OVERLOAD, b"\0")[:1]
    for bit, area in ((1, file), (2, sname)):  # RFC 2132, 9.3: fields that carry more options
        if overload and overload[0] & bit:
            options = (parse_options(area) or {}) | options
    named = b"" if overload and overload[0] & 1 else file
    boot_file = options.get(BOOT_FILE) or named
    routers = options.get(ROUTER, b"")
    server_id = options.get(SERVER_ID, b"")
    return Offer(
        source=source,
        server_id=str(ipaddress.IPv4Address(server_id)) if len(server_id) == 4 else None,
        offered=str(ipaddress.IPv4Address(yours)),
        boot_file=boot_file.split(b"\0")[0].decode("ascii", "replace"),
        next_server=str(ipaddress.IPv4Address(server)),
        routers=tuple(str(ipaddress.IPv4Address(routers[i : i + 4])) for i in range(0, len(routers) // 4 * 4, 4)),
    )


def parse_options(data: bytes) -> dict[int, bytes] | None:
    """Option values by code, repeated ones joined (RFC 3396); None when a length runs out of the packet."""
    options: dict[int, bytes] = {}
    at = 0
    while at < len(data) and data[at] != END:
        if data[at] == PAD:
            at += 1
            continue
        if at + 2 > len(data) or at + 2 + data[at + 1] > len(data):
            return None
        options[data[at]] = options.get(data[at], b"") + data[at + 2 : at + 2 + data[at + 1]]
        at += 2 + data[at + 1]
    return options


def judge(offers: list[Offer], allowed: frozenset[str], interface: str) -> list[Finding]:
    """One critical finding for each foreign server. An offer counts as ours only if source and server id both are."""
    foreign = {
        (offer.source, offer.server_id): offer
        for offer in offers
        if offer.source not in allowed or offer.server_id not in allowed
    }
    return [
        Finding(
            severity=Severity.CRITICAL,
            kind="rogue-dhcp",
            subject=interface,
            detail=(
                f"a DHCP server that is not ours answers on {interface}: from {offer.source}, calls itself "
                f"{offer.server_id or 'nothing'}, boot file {offer.boot_file or 'none'!r} on {offer.next_server}, "
                f"routers {', '.join(offer.routers) or 'none'}"
            ),
            remedy="find the port of that machine in the switch's MAC table and shut it; turn DHCP snooping on",
            evidence=f"it offered {offer.offered}",  # another address each time, and the same stranger
        )
        for _, offer in sorted(foreign.items(), key=str)
    ]


async def probe(
    interface: str, *, wait: float = 3.0, ports: tuple[int, int] = (67, 68), target: str = "255.255.255.255"
) -> list[Offer]:
    """Broadcast one DISCOVER from a random, locally administered MAC and collect offers for `wait` seconds. Needs root.

    Our own dnsmasq knows no such MAC and stays silent, so on a clean segment nobody answers at all. In a thread: uvloop
    has no datagram calls on plain sockets.
    """
    return await asyncio.to_thread(_ask, interface, wait, ports, target)


def _ask(interface: str, wait: float, ports: tuple[int, int], target: str) -> list[Offer]:
    mac = bytes([0x02, *os.urandom(5)])
    transaction = int.from_bytes(os.urandom(4), "big")
    server_port, client_port = ports
    offers: list[Offer] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, interface.encode() + b"\0")
            sock.bind(("", client_port))
            sock.sendto(discover(transaction, mac), (target, server_port))
        except OSError as error:
            raise FreeholdError(
                f"cannot look for rogue DHCP servers on {interface}: {error}",
                remedy="run the controller as root, and check that the provisioning interface is up",
            ) from error
        end = time.monotonic() + wait
        while (left := end - time.monotonic()) > 0:
            sock.settimeout(left)
            try:
                packet, (source, _) = sock.recvfrom(4096)
            except TimeoutError:
                break
            if offer := parse_offer(packet, source, transaction):
                offers.append(offer)
    return offers


async def find_rogues(interface: str, allowed: frozenset[str], *, wait: float = 3.0) -> list[Finding]:
    """Probe and judge; `allowed` holds the addresses of our own servers."""
    return judge(await probe(interface, wait=wait), allowed, interface)
