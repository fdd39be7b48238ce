"""DHCP by dnsmasq, as a child: it answers only the servers that are due to boot, and nobody else on the segment.

`dnsmasq_config` and `hosts_file` are pure; `Dnsmasq` writes them and runs the daemon. A change of who may boot is a new
hosts file and SIGHUP, so running leases are not disturbed (dnsmasq(8), --dhcp-hostsfile).
"""

import asyncio
import ctypes
import ipaddress
import logging
import re
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from freehold.model.errors import FreeholdError

log = logging.getLogger(__name__)
MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
HOST = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
WORD = re.compile(r"[\x21-\x2b\x2d-\x7e]+")  # printable, no blank and no comma: cannot start another option or line
PR_SET_PDEATHSIG = 1
STOP_S = 5.0


class BootHost(msgspec.Struct, frozen=True, kw_only=True):
    """A server that is due to boot: its MAC, and optionally a fixed address and a name. Lower case."""

    mac: str
    address: str | None = None
    hostname: str | None = None
    boots: bool = True
    """Due to boot from us; otherwise it gets an address and is not told of anything to boot."""


class DhcpSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One provisioning network. `boot_url` is the signed UKI for HTTP boot; `tftp_root` and `tftp_file` add PXE.

    `gateway` None sends no router option: a machine that is being provisioned needs nothing outside its segment.
    """

    interface: str
    server: str
    first: str
    last: str
    netmask: str
    boot_url: str
    gateway: str | None = None
    lease_seconds: int = 3600
    tftp_root: str | None = None
    tftp_file: str = "agent.efi"


def dnsmasq_config(settings: DhcpSettings, directory: Path) -> str:
    """The configuration file; `directory` holds `hosts` and `leases`. FreeholdError on values that inject."""
    words = [settings.interface, settings.boot_url, str(directory), settings.tftp_root or "-", settings.tftp_file]
    if bad := next((word for word in words if not WORD.fullmatch(word)), None):
        raise FreeholdError(f"DHCP settings: {bad!r} has blanks or commas", remedy="choose a plain name or path")
    first, last = ipaddress.IPv4Address(settings.first), ipaddress.IPv4Address(settings.last)
    network = ipaddress.IPv4Network(f"{settings.server}/{settings.netmask}", strict=False)
    if not (first <= last and first in network and last in network):
        raise FreeholdError(
            f"DHCP range {first} to {last} does not lie in {network}",
            remedy="correct the Network resource of provisioning",
        )
    lines = [
        "port=0",  # no DNS
        "keep-in-foreground", "log-facility=-", "log-dhcp", "pid-file=",
        f"interface={settings.interface}", "bind-interfaces", "except-interface=lo",
        "no-ping", "dhcp-authoritative", "dhcp-rapid-commit", "no-resolv", "no-hosts",
        f"dhcp-leasefile={directory}/leases", f"dhcp-hostsfile={directory}/hosts",
        f"dhcp-range={first},{last},{settings.netmask},{settings.lease_seconds}s",
        "dhcp-ignore=tag:!known",  # `known` is set by a line of the hosts file
        f"dhcp-option=option:router{f',{ipaddress.IPv4Address(settings.gateway)}' if settings.gateway else ''}",
        "dhcp-option=option:dns-server",  # none: a name look-up would leave the site
        # UEFI HTTP boot (UEFI 2.10, 24.7): the client names itself HTTPClient and wants the same word back.
        "dhcp-vendorclass=set:http,HTTPClient", "dhcp-option-force=tag:http,tag:boots,60,HTTPClient",
        f"dhcp-boot=tag:http,tag:boots,{settings.boot_url}",  # `boots` too is set by a line of the hosts file
    ]  # fmt: skip
    if settings.tftp_root:
        lines += [
            "dhcp-vendorclass=set:pxe,PXEClient", "enable-tftp", f"tftp-root={settings.tftp_root}", "tftp-secure",
            f"dhcp-boot=tag:pxe,tag:!http,tag:boots,{settings.tftp_file},,{settings.server}",
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


def hosts_file(hosts: Iterable[BootHost]) -> str:
    """The dhcp-hostsfile: one `mac[,set:boots][,address][,name]` a line. FreeholdError if one is bad or double."""
    lines: dict[str, str] = {}
    addresses: set[str] = set()
    for host in hosts:
        if not MAC.fullmatch(host.mac) or (host.hostname is not None and not HOST.fullmatch(host.hostname)):
            raise FreeholdError(
                f"DHCP: {host.mac!r} {host.hostname!r} is not a MAC address and a host name, both in lower case",
                remedy="correct the server's NIC declaration",
            )
        if host.mac in lines or (host.address is not None and host.address in addresses):
            raise FreeholdError(
                f"DHCP: MAC {host.mac} or address {host.address} is declared twice", remedy="correct the servers' NICs"
            )
        parts = [host.mac, *(["set:boots"] if host.boots else [])]
        if host.address is not None:
            addresses.add(host.address)
            parts.append(str(ipaddress.IPv4Address(host.address)))
        lines[host.mac] = ",".join([*parts, *([host.hostname] if host.hostname else [])])
    return "".join(f"{lines[mac]}\n" for mac in sorted(lines))


class Dnsmasq:
    """The daemon as a child of this process, in this process's network namespace. It dies with its parent."""

    def __init__(self, settings: DhcpSettings, directory: Path, *, binary: str = "dnsmasq") -> None:
        self._settings, self._directory, self._binary = settings, directory.resolve(), binary
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._last_lines: list[str] = []

    @property
    def running(self) -> bool:
        """False before start, after stop, and when it died."""
        return self._process is not None and self._process.returncode is None

    async def start(self, hosts: Iterable[BootHost] = ()) -> None:
        """Write the files, start, and wait until it is bound; FreeholdError carries dnsmasq's own words."""
        if self.running:
            raise FreeholdError("dnsmasq already runs", remedy="stop it first")
        self._directory.mkdir(parents=True, exist_ok=True)
        config = self._directory / "dnsmasq.conf"
        config.write_text(dnsmasq_config(self._settings, self._directory))
        self._write_hosts(hosts)
        command = [self._binary, f"--conf-file={config}", "--user=root", "--group=root"]
        started = asyncio.get_running_loop().create_future()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE, preexec_fn=die_with_parent(),
            )  # fmt: skip
        except FileNotFoundError as error:
            raise FreeholdError(f"{self._binary} is not installed", remedy="install dnsmasq-base") from error
        self._reader = asyncio.create_task(self._follow(self._process, started))
        if not await started:
            await self.stop()
            raise FreeholdError(
                f"dnsmasq did not start: {' / '.join(self._last_lines[-3:])}",
                remedy="check the provisioning interface, its address, and that no other DHCP server runs here",
            )

    async def reload(self, hosts: Iterable[BootHost]) -> None:
        """From now on exactly these servers are answered. FreeholdError if the daemon has died.

        By a new start, about a tenth of a second: dnsmasq 2.90 crashes at the first request after it has read tagged
        host lines again (SIGHUP). Clients ask again after a second or more, and leases are in a file.
        """
        if self._process is None or not self.running:
            raise FreeholdError(
                f"dnsmasq is not running: {' / '.join(self._last_lines[-3:])}", remedy="start the controller again"
            )
        wanted = list(hosts)
        if hosts_file(wanted) != (self._directory / "hosts").read_text():
            await self.stop()
            await self.start(wanted)

    async def stop(self) -> None:
        """End the child, by its own process handle; no matter if it never ran."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_S)
            except TimeoutError:
                process.kill()
                await process.wait()
        if self._reader is not None:
            await self._reader
            self._reader = None

    def _write_hosts(self, hosts: Iterable[BootHost]) -> None:
        target = self._directory / "hosts"
        draft = target.with_suffix(".new")
        draft.write_text(hosts_file(hosts))
        draft.replace(target)

    async def _follow(self, process: asyncio.subprocess.Process, started: "asyncio.Future[bool]") -> None:
        """Keep the daemon's log. Its `DHCP, IP range` line says that it is configured and bound."""
        assert process.stderr is not None
        async for raw in process.stderr:
            line = raw.decode(errors="replace").strip()
            log.info("%s", line)
            self._last_lines = [*self._last_lines[-19:], line]
            if "DHCP, IP range" in line and not started.done():
                started.set_result(True)
        await process.wait()
        if not started.done():
            started.set_result(False)


def die_with_parent() -> Callable[[], None]:
    """For preexec_fn: SIGKILL when the parent's thread ends. The library is loaded here, before the fork."""
    libc = ctypes.CDLL(None)

    def set_signal() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    return set_signal
