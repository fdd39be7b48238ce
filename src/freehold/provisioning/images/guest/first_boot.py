# ruff: noqa: PTH103, PTH110, PTH116, PTH120, PTH123, PTH208
# os and not pathlib: importing pathlib takes a third of a second on a slow CPU, at the first start of every server.
"""First boot of the OS image: apply the NoCloud seed of this disk, before network and SSH start.

Reads `meta-data`, `user-data` and `network-config` (version 2) from the partition named CIDATA on the disk of the root
file system; a seed on another disk or on a USB stick does not count. The documents must be JSON, which is valid
YAML: that is how Freehold writes them, and it saves this image a YAML parser. What is understood is applied and what is
not is reported, on the console and in /var/lib/freehold/first-boot.json; that file also says that this has been done.
"""

import json
import os
import re
import subprocess
import sys

SUPPORTED_USER_DATA = {"hostname", "users", "ssh_authorized_keys", "ssh_pwauth", "disable_root"}
SUPPORTED_USER = {"name", "ssh_authorized_keys", "shell", "sudo", "lock_passwd", "groups"}
SUPPORTED_INTERFACE = {
    "match", "addresses", "dhcp4", "dhcp6", "gateway4", "gateway6", "routes", "nameservers", "mtu", "optional",
}  # fmt: skip
DOCUMENTS = ("meta-data", "user-data", "network-config")
DEFAULT_USER = "debian"  # who gets the keys that the seed gives to no user, as in Debian's cloud images
RECORD = "/var/lib/freehold/first-boot.json"


class Plan:
    """What a seed asks for, as data: nothing has been done yet."""

    def __init__(self) -> None:
        self.hostname = ""
        self.instance = ""
        self.users: list[dict[str, object]] = []
        self.files: dict[str, str] = {}
        self.problems: list[str] = []

    def check(self, where: str, given: "dict[str, object]", supported: "set[str]") -> None:
        """Note the keys that nothing here acts on."""
        self.problems += [
            f"{where}: {key!r} is not supported and was left out" for key in sorted(set(given) - supported)
        ]


def plan(seed: "dict[str, bytes]") -> Plan:
    """Pure: what the documents of a seed ask for."""
    made = Plan()
    documents = {name: document(name, seed.get(name, b""), made) for name in DOCUMENTS}
    user_data = documents["user-data"]
    made.check("user-data", user_data, SUPPORTED_USER_DATA)
    made.instance = str(documents["meta-data"].get("instance-id", ""))
    hostname = str(user_data.get("hostname") or documents["meta-data"].get("local-hostname") or "")
    if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?", hostname):
        made.hostname = hostname
        made.files["/etc/hostname"] = f"{hostname}\n"
        made.files["/etc/hosts"] = f"127.0.0.1 localhost\n127.0.1.1 {hostname}\n::1 localhost\n"
    elif hostname:
        made.problems.append(f"hostname {hostname!r} is not a host name")
    plan_users(made, user_data)
    plan_network(made, documents["network-config"])
    return made


def document(name: str, content: bytes, made: Plan) -> "dict[str, object]":
    """One document as a mapping; an empty one if it is missing or not JSON."""
    text = "\n".join(line for line in content.decode(errors="replace").splitlines() if not line.startswith("#"))
    if not text.strip():
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        made.problems.append(f"{name} is not JSON: {error}")
        return {}
    if not isinstance(value, dict):
        made.problems.append(f"{name} is not a mapping")
        return {}
    return value.get("network", value) if name == "network-config" else value


def plan_users(made: Plan, user_data: "dict[str, object]") -> None:
    """Users with their keys; a user without a valid name or with a key of two lines is refused."""
    entries = list(user_data.get("users") or [])  # type: ignore[call-overload]
    loose = list(user_data.get("ssh_authorized_keys") or [])  # type: ignore[call-overload]
    if loose:
        named = [entry for entry in entries if isinstance(entry, dict)]
        if not named:
            entries.append({"name": DEFAULT_USER, "sudo": "ALL=(ALL) NOPASSWD:ALL"})
            named = entries[-1:]
        named[0]["ssh_authorized_keys"] = [*(named[0].get("ssh_authorized_keys") or []), *loose]
    for entry in entries:
        if entry == "default":
            continue
        if not isinstance(entry, dict) or not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", str(entry.get("name"))):
            made.problems.append(f"user {entry!r} has no valid name and was left out")
            continue
        made.check(f"user {entry['name']}", entry, SUPPORTED_USER)
        keys = [str(key).strip() for key in entry.get("ssh_authorized_keys") or []]
        bad = [key for key in keys if "\n" in key or not re.match(r"(ssh-|ecdsa-|sk-)\S+ \S+", key)]
        made.problems += [f"user {entry['name']}: {key[:20]!r}… is not an SSH public key" for key in bad]
        made.users.append({**entry, "ssh_authorized_keys": [key for key in keys if key not in bad]})
        if rule := entry.get("sudo"):
            if isinstance(rule, str) and re.fullmatch(r"[A-Za-z0-9_=(): ,/.-]+", rule):
                made.files[f"/etc/sudoers.d/90-{entry['name']}"] = f"{entry['name']} {rule}\n"
            else:
                made.problems.append(f"user {entry['name']}: the sudo rule {rule!r} is not understood")


def plan_network(made: Plan, config: "dict[str, object]") -> None:
    """systemd-networkd files for the `ethernets` of a version 2 configuration, and /etc/resolv.conf."""
    if config and config.get("version") != 2:
        made.problems.append(f"network-config has version {config.get('version')!r}, not 2, and was left out")
        return
    made.check("network-config", config, {"version", "ethernets", "renderer"})
    servers: list[str] = []
    ethernets = config.get("ethernets") or {}
    for name, entry in ethernets.items():  # type: ignore[attr-defined]
        made.check(f"network-config {name}", entry, SUPPORTED_INTERFACE)
        made.files[f"/etc/systemd/network/10-{re.sub('[^A-Za-z0-9]', '-', name)}.network"] = network_file(name, entry)
        servers += [server for server in (entry.get("nameservers") or {}).get("addresses", []) if server not in servers]
    if servers:
        made.files["/etc/resolv.conf"] = "".join(f"nameserver {server}\n" for server in servers)


def network_file(name: str, entry: "dict[str, object]") -> str:
    """One systemd.network(5) file. Values with a line break would add settings: they are refused by ValueError."""
    match = entry.get("match") or {}
    mac, device = match.get("macaddress"), match.get("name", name)  # type: ignore[attr-defined]
    v4, v6 = bool(entry.get("dhcp4")), bool(entry.get("dhcp6"))
    lines = ["[Match]", f"MACAddress={mac}" if mac else f"Name={device}"]
    if mtu := entry.get("mtu"):
        lines += ["[Link]", f"MTUBytes={mtu}"]
    lines += ["[Network]", f"DHCP={'yes' if v4 and v6 else 'ipv4' if v4 else 'ipv6' if v6 else 'no'}"]
    lines += ["IPv6AcceptRA=no"] if not v6 else []
    lines += [f"Address={address}" for address in entry.get("addresses") or []]  # type: ignore[attr-defined]
    lines += [f"Gateway={entry[key]}" for key in ("gateway4", "gateway6") if entry.get(key)]
    names = entry.get("nameservers") or {}
    lines += [f"DNS={server}" for server in names.get("addresses", [])]  # type: ignore[attr-defined]
    for route in entry.get("routes") or []:  # type: ignore[attr-defined]
        target = "0.0.0.0/0" if route["to"] == "default" else route["to"]
        lines += ["[Route]", f"Destination={target}", f"Gateway={route['via']}"]
        lines += [f"Metric={route['metric']}"] if "metric" in route else []
    if v4:
        # A lease, e.g. of the provisioning network, must not win over the static default route.
        lines += ["[DHCPv4]", "RouteMetric=2048", "UseHostname=no"]
    if any("\n" in line for line in lines):
        raise ValueError(f"network-config {name}: a value has a line break")
    return "\n".join(lines) + "\n"


def seed_device(label: str = "CIDATA") -> "str | None":
    """The partition with that GPT name on the disk of the root file system."""
    device = os.stat("/").st_dev
    partition = os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    disk = os.path.dirname(partition)
    for name in sorted(os.listdir(disk)):
        try:
            with open(f"{disk}/{name}/uevent") as file:
                facts = dict(line.strip().split("=", 1) for line in file if "=" in line)
        except OSError:
            continue
        if facts.get("PARTNAME") == label:
            return f"/dev/{facts['DEVNAME']}"
    return None


def read_seed() -> "dict[str, bytes]":
    """The documents on the seed partition; none if there is no seed."""
    device, place = seed_device(), "/run/freehold-seed"
    found: dict[str, bytes] = {}
    if device is None:
        return found
    os.makedirs(place, exist_ok=True)
    subprocess.run(["mount", "-t", "vfat", "-o", "ro,nosuid,nodev,noexec", device, place], check=True)
    try:
        for name in DOCUMENTS:
            if os.path.exists(f"{place}/{name}"):
                with open(f"{place}/{name}", "rb") as file:
                    found[name] = file.read(1 << 20)
    finally:
        subprocess.run(["umount", place], check=True)
    return found


def write(path: str, text: str, mode: int = 0o644) -> None:
    """Write a file whole."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
        file.write(text)


def add_user(entry: "dict[str, object]") -> None:
    """The user, without a password, and the keys."""
    import pwd

    name, shell = str(entry["name"]), str(entry.get("shell") or "/bin/bash")
    try:
        pwd.getpwnam(name)
    except KeyError:
        groups = entry.get("groups") or []
        joined = groups if isinstance(groups, str) else ",".join(groups)  # type: ignore[arg-type]
        subprocess.run(["useradd", "-m", "-s", shell, *(["-G", joined] if joined else []), name], check=True)
    account = pwd.getpwnam(name)
    folder = f"{account.pw_dir}/.ssh"
    os.makedirs(folder, mode=0o700, exist_ok=True)
    write(f"{folder}/authorized_keys", "".join(f"{key}\n" for key in entry["ssh_authorized_keys"]), 0o600)  # type: ignore[attr-defined]
    for path in (folder, f"{folder}/authorized_keys"):
        os.chown(path, account.pw_uid, account.pw_gid)


def apply(made: Plan) -> None:
    """Do what the plan says; what one step cannot do is noted, and the others are done."""
    for path, text in made.files.items():
        write(path, text, 0o440 if path.startswith("/etc/sudoers.d/") else 0o644)
    if made.hostname:
        with open("/proc/sys/kernel/hostname", "w") as file:
            file.write(made.hostname)
    for entry in made.users:
        try:
            add_user(entry)
        except (OSError, subprocess.CalledProcessError) as error:
            made.problems.append(f"user {entry['name']}: {error}")
    key = "/etc/ssh/ssh_host_ed25519_key"
    if not os.path.exists(key):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", made.hostname, "-f", key], check=True)


def main() -> int:
    """Exit status 1 if anything in the seed could not be applied; the OS starts all the same."""
    try:
        made = plan(read_seed())
    except (OSError, subprocess.CalledProcessError, ValueError, TypeError, AttributeError, KeyError) as error:
        made = Plan()
        made.problems.append(f"the seed is unusable: {error!r}")
    apply(made)
    for problem in made.problems:
        print(f"freehold first boot: {problem}", flush=True)
    users = [entry["name"] for entry in made.users]
    record = {"instance": made.instance, "hostname": made.hostname, "users": users, "problems": made.problems}
    write(RECORD, json.dumps(record) + "\n")
    print(f"freehold first boot: {made.hostname or 'no seed'} configured", flush=True)
    return 1 if made.problems else 0


if __name__ == "__main__":
    sys.exit(main())
