"""The networks of a lab: bridges, namespaces, cables, and the gateway that counts what tries to leave.

What is to be made is decided by pure functions that return text for `ip -batch` and `nft -f`; `build`, `remove` and
the uplink switch only run it. Nothing is made in the host's own network namespace.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from freehold_lab.errors import LabError
from freehold_lab.processes import run

BRIDGES = ("oob", "provisioning", "production", "wan")
PREFIXES = {"oob": "172.30.1", "provisioning": "172.30.2", "production": "172.30.3", "wan": "198.51.100"}
CONTROLLER_HOST, GATEWAY_HOST, CLIENT_HOST, INTERNET_HOST, ROGUE_HOST = 2, 1, 2, 10, 66
SITE = "172.30.0.0/16"
MAX_SERVERS = 80  # .11 to .90: below the DHCP range and the addresses of the roles
NAMESPACES = Path("/run/netns")  # where iproute2 keeps them
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?")


def address(network: str, host: int) -> str:
    return f"{PREFIXES[network]}.{host}"


def bmc_address(server: int) -> str:
    return address("oob", 10 + server)


def taps(server: int) -> dict[str, str]:
    """The fabric's end of each cable of a server: network to interface name (15 characters at most)."""
    return {"provisioning": f"prov{server}", "production": f"prod{server}"}


@dataclass(frozen=True)
class Leg:
    """A cable from a namespace to a bridge of the fabric, with the address of its inner end."""

    network: str
    host: int


@dataclass(frozen=True)
class Layout:
    """The whole network of one lab, as data."""

    lab: str
    servers: int

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.lab):
            raise LabError(
                f"{self.lab!r} cannot be the name of a lab",
                remedy="Use 1 to 20 of a-z, 0-9 and dashes inside, e.g. `lab`.",
            )
        if not 1 <= self.servers <= MAX_SERVERS:
            raise LabError(f"a lab has 1 to {MAX_SERVERS} servers, not {self.servers}")

    def namespace(self, role: str) -> str:
        return f"fh-{self.lab}-{role}"

    @property
    def legs(self) -> dict[str, list[Leg]]:
        """Role of a namespace to its cables. The fabric has none: it holds the bridges."""
        return {
            "controller": [Leg("oob", CONTROLLER_HOST), Leg("provisioning", CONTROLLER_HOST)],
            "gateway": [Leg(network, GATEWAY_HOST) for network in ("provisioning", "production", "wan")],
            "internet": [Leg("wan", INTERNET_HOST)],
            "client": [Leg("production", CLIENT_HOST)],
            **{f"bmc{i}": [Leg("oob", 10 + i)] for i in range(1, self.servers + 1)},
        }

    @property
    def default_routes(self) -> dict[str, str]:
        return {
            "controller": address("provisioning", GATEWAY_HOST),
            "gateway": address("wan", INTERNET_HOST),  # so that any address in the world is tried by way of the wan
            "client": address("production", GATEWAY_HOST),
            "internet": address("wan", GATEWAY_HOST),
        }

    def fabric_batch(self) -> str:
        """For `ip -n <fabric> -batch`: bridges, taps, and both ends of every cable."""
        lines = ["link set lo up"]
        for bridge in BRIDGES:
            lines += [f"link add {bridge} type bridge stp_state 0 forward_delay 0", f"link set {bridge} up"]
        for role, legs in self.legs.items():
            for leg in legs:
                lines += self.cable(role, leg.network)
        for server in range(1, self.servers + 1):
            for network, tap in taps(server).items():
                lines += [f"tuntap add {tap} mode tap", f"link set {tap} master {network} up"]
        return "\n".join(lines) + "\n"

    def cable(self, role: str, network: str) -> list[str]:
        port = f"{network[:4]}-{role[:10]}"
        return [
            f"link add {port} type veth peer name {network} netns {self.namespace(role)}",
            f"link set {port} master {network} up",
        ]

    def role_batch(self, role: str) -> str:
        """For `ip -n <role> -batch`: addresses and the default route."""
        lines = ["link set lo up"]
        for leg in self.legs[role]:
            lines += [
                f"address add {address(leg.network, leg.host)}/24 dev {leg.network}",
                f"link set {leg.network} up",
            ]
        if role in self.default_routes:
            lines.append(f"route add default via {self.default_routes[role]}")
        return "\n".join(lines) + "\n"


# ---- the gateway's rules
COUNTERS = ("left_controller", "left_provisioning", "left_production", "lookups")


def gateway_rules() -> str:
    """nftables of the gateway. Counted before any decision, so that a cut path counts like an open one.

    A packet tries to leave if it came from a site network and its destination lies outside the site. A look-up is any
    packet to port 53, also to the gateway itself; one that is addressed to the outside counts in both.
    """
    counters = "\n".join(f"  counter {name} {{ }}" for name in COUNTERS)
    controller = address("provisioning", CONTROLLER_HOST)
    return f"""table inet egress {{
{counters}
  chain count {{
    type filter hook prerouting priority raw; policy accept;
    meta l4proto {{ tcp, udp }} th dport 53 iifname {{ "provisioning", "production" }} counter name lookups
    ip daddr {{ {SITE}, 224.0.0.0/4, 255.255.255.255, 169.254.0.0/16, 0.0.0.0 }} accept
    ip6 daddr {{ fe80::/10, ff00::/8 }} accept
    ip saddr {controller} iifname "provisioning" counter name left_controller accept
    iifname "provisioning" counter name left_provisioning
    iifname "production" counter name left_production
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    iifname "wan" ct state established,related accept
    iifname {{ "provisioning", "production" }} oifname "wan" jump uplink
  }}
  chain uplink {{
    accept
  }}
}}
"""


INTERNET_RULES = """table ip anywhere {
  chain prerouting {
    type nat hook prerouting priority dstnat; policy accept;
    tcp dport { 53, 80 } redirect
    udp dport 53 redirect
  }
}
"""


# ---- doers
def ip(*arguments: object, stdin: str | None = None) -> str:
    return run("ip", *arguments, stdin=stdin)


def inside(namespace: str) -> tuple[str, ...]:
    """Command prefix that runs what follows in a namespace."""
    return ("ip", "netns", "exec", namespace)


def namespaces(lab: str) -> list[str]:
    """Those that belong to the lab; a lab `a` must not take `fh-a-b-fabric` of a lab `a-b` for its own."""
    own = re.compile(rf"fh-{re.escape(lab)}-(fabric|controller|gateway|internet|client|rogue|bmc\d+)")
    return sorted(path.name for path in NAMESPACES.glob("fh-*") if own.fullmatch(path.name))


def build(layout: Layout) -> None:
    """Make all networks of the lab. If it fails half-way, `remove` takes away what was made."""
    for role in ("fabric", *layout.legs):
        add_namespace(layout.namespace(role))
    ip("-n", layout.namespace("fabric"), "-batch", "-", stdin=layout.fabric_batch())
    for role in layout.legs:
        ip("-n", layout.namespace(role), "-batch", "-", stdin=layout.role_batch(role))
    gateway, internet = layout.namespace("gateway"), layout.namespace("internet")
    set_kernel(gateway, "net/ipv4/ip_forward")
    run(*inside(gateway), "nft", "-f", "-", stdin=gateway_rules())
    run(*inside(internet), "nft", "-f", "-", stdin=INTERNET_RULES)


def add_namespace(name: str) -> None:
    ip("netns", "add", name)
    # The lab is IPv4 only; the chatter of IPv6 autoconfiguration would only blur what is counted.
    set_kernel(name, "net/ipv6/conf/all/disable_ipv6")
    set_kernel(name, "net/ipv6/conf/default/disable_ipv6")


def set_kernel(namespace: str, parameter: str) -> None:
    """Switch a kernel parameter on in a namespace; no effect where the kernel lacks it, e.g. one without IPv6."""
    run(*inside(namespace), "sh", "-c", 'test ! -e "$0" || echo 1 >"$0"', f"/proc/sys/{parameter}")


def processes_inside(namespace: str) -> list[int]:
    return [int(pid) for pid in run("ip", "netns", "pids", namespace, check=False).split()]


def remove(lab: str) -> None:
    """Remove all namespaces of a lab; bridges, taps and cables go with them. Idempotent."""
    for namespace in namespaces(lab):
        delete_namespace(namespace)


def delete_namespace(namespace: str) -> None:
    run("ip", "netns", "delete", namespace, check=False)
    # A crash between making the name and mounting the namespace leaves the name alone behind.
    (NAMESPACES / namespace).unlink(missing_ok=True)


def add_rogue(layout: Layout) -> None:
    """A stranger's host on the provisioning network."""
    add_namespace(layout.namespace("rogue"))
    ip("-n", layout.namespace("fabric"), "-batch", "-", stdin="\n".join(layout.cable("rogue", "provisioning")) + "\n")
    host = address("provisioning", ROGUE_HOST)
    batch = f"link set lo up\naddress add {host}/24 dev provisioning\nlink set provisioning up\n"
    ip("-n", layout.namespace("rogue"), "-batch", "-", stdin=batch)


# ---- the path to the world outside
@dataclass(frozen=True)
class Wan:
    """The uplink of a lab's site and the gateway's counters."""

    layout: Layout

    def cut(self) -> None:
        """Drop at the gateway, and pull the cable."""
        self._switch("drop", "down")

    def restore(self) -> None:
        self._switch("accept", "up")

    def is_connected(self) -> bool:
        return "accept" in run(*self._nft, "list", "chain", "inet", "egress", "uplink")

    def counters(self) -> dict[str, int]:
        """Packets that tried to leave, by origin, their sum as `left`, and `lookups` (see `gateway_rules`)."""
        return parse_counters(run(*self._nft, "-j", "list", "counters"))

    def reset_counters(self) -> None:
        run(*self._nft, "reset", "counters", "table", "inet", "egress")

    @property
    def _nft(self) -> tuple[str, ...]:
        return (*inside(self.layout.namespace("gateway")), "nft")

    def _switch(self, verdict: str, cable: str) -> None:
        rules = f"flush chain inet egress uplink\nadd rule inet egress uplink {verdict}\n"
        run(*self._nft, "-f", "-", stdin=rules)
        ip("-n", self.layout.namespace("fabric"), "link", "set", "wan-gateway", cable)


def parse_counters(text: str) -> dict[str, int]:
    counters = [item["counter"] for item in json.loads(text)["nftables"] if "counter" in item]
    packets = {counter["name"]: int(counter["packets"]) for counter in counters}
    return {"left": sum(packets[name] for name in COUNTERS if name.startswith("left_")), **packets}
