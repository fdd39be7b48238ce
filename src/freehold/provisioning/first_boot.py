"""First-boot configuration: the three NoCloud documents that cloud-init (or Freehold's own first-boot service) reads.

Pure. It carries no secret: names, public keys and addresses only, since it is written before the OS has attested.
"""

import ipaddress
import json
from collections.abc import Mapping, Sequence

from freehold.model.resources import NetworkSpec, Nic, User


def nocloud(
    instance: str, hostname: str, users: Sequence[User], nics: Sequence[Nic], networks: Mapping[str, NetworkSpec]
) -> dict[str, bytes]:
    """`meta-data`, `user-data`, `network-config` (version 2). `instance` changes with every deployment, so a second
    tenant's first boot is a first boot. JSON is valid YAML, and cannot be led astray by a name that looks like YAML."""
    metadata = {"instance-id": instance, "local-hostname": hostname}
    accounts = [
        {
            "name": user.name,
            "ssh_authorized_keys": list(user.ssh_keys),
            "lock_passwd": True,
            "shell": "/bin/bash",
            "sudo": "ALL=(ALL) NOPASSWD:ALL",
        }
        for user in users
    ]
    config = {"hostname": hostname, "users": accounts, "ssh_pwauth": False, "disable_root": False}
    ethernets = {f"nic{number}": interface(nic, networks[nic.network]) for number, nic in enumerate(nics)}
    return {
        "meta-data": _document(metadata),
        "user-data": b"#cloud-config\n" + _document(config),
        "network-config": _document({"version": 2, "ethernets": ethernets}),
    }


def interface(nic: Nic, network: NetworkSpec) -> dict[str, object]:
    """One `ethernets` entry: static if the document gives an address, else DHCP. Only production gets a gateway."""
    entry: dict[str, object] = {"match": {"macaddress": nic.mac.lower()}}
    if nic.address is None:
        return entry | {"dhcp4": True}
    prefix = ipaddress.ip_network(network.prefix).prefixlen
    entry |= {"dhcp4": False, "addresses": [f"{nic.address.partition('/')[0]}/{prefix}"]}
    if network.role == "production" and network.gateway is not None:
        entry["gateway4"] = network.gateway
    if network.dns:
        entry["nameservers"] = {"addresses": list(network.dns)}
    return entry


def _document(value: object) -> bytes:
    return json.dumps(value, indent=1).encode() + b"\n"
