"""The Debian 12 OS image: a small root file system, and what one site adds to it.

The tree and its ext4 file system are the same for every site and cached. A site adds /etc/freehold and its signed OS
UKI, which takes seconds.
"""

import shutil
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from freehold.provisioning.images import disk
from freehold.provisioning.images.artifacts import Cache, digest_of, remove, source_digest, tree_digest
from freehold.provisioning.images.debian import Apt
from freehold.provisioning.images.errors import ImageBuildError
from freehold.provisioning.images.guest import first_boot
from freehold.provisioning.images.kernel import Flavour, Kernel
from freehold.provisioning.images.tools import run, words

PACKAGES = (
    "systemd-sysv", "udev", "openssh-server", "iproute2", "kmod", "e2fsprogs", "fdisk", "sudo",
    "python3-minimal", "libpython3.11-stdlib",
)  # fmt: skip
LEFT_OUT = (
    *(f"/usr/share/{name}/*" for name in words("doc man info locale i18n zoneinfo bash-completion bug lintian")),
    "/usr/lib/udev/hwdb.d/*", "/lib/udev/hwdb.d/*",  # names for keyboards and mice; 20 MB with its index
    "/usr/lib/x86_64-linux-gnu/gconv/*",
    *(f"/usr/lib/python3.11/{name}/*" for name in words("test lib2to3 idlelib tkinter turtledemo ensurepip")),
)  # fmt: skip
MODULES = (
    "virtio_pci",
    "virtio_net",
    "virtio_blk",
    "virtio_rng",
    "efivarfs",
    "vfat",
    "nls_ascii",
    "nls_cp437",
    "nls_utf8",
)
CMDLINE = "quiet loglevel=3 panic=30 rootfstype=ext4 rootwait rw systemd.show_status=0"
CONSOLE = {
    Flavour.CLOUD: "console=ttyS0,115200",
    Flavour.GENERIC: "console=tty0 console=ttyS0,115200",
}
# As a boot entry names it. It is the default path too, so that the server still starts if its boot entries are lost.
LOADER = "\\" + disk.LOADER_PATH.replace("/", "\\")
NAMESPACE = uuid.UUID("6f1c0d0e-5d0e-4b0a-9c55-0f7265686f6c")
EPOCH = {"E2FSPROGS_FAKE_TIME": "1700000000", "SOURCE_DATE_EPOCH": "1700000000"}

# Why each unit is masked: nothing that is here needs it, and on one slow CPU each costs start-up time.
MASKED = {
    "PCR 11 must stay what the signed UKI alone makes it, so that it can be predicted": (
        "systemd-pcrphase.service", "systemd-pcrphase-initrd.service", "systemd-pcrphase-sysinit.service"),
    "updates come as new images": ("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer"),
    "done when the image is built": (
        "ldconfig.service", "systemd-hwdb-update.service", "systemd-journal-catalog-update.service",
        "systemd-firstboot.service", "systemd-update-done.service", "systemd-sysusers.service"),
    "there is no D-Bus, no LVM, and no password to log in with on a console": (
        "systemd-logind.service", "e2scrub_all.timer", "e2scrub_reap.service", "getty@.service",
        "serial-getty@.service", "getty-static.service", "systemd-update-utmp.service",
        "systemd-update-utmp-runlevel.service"),
    "the few modules load by device; the network comes from the seed": (
        "modprobe@.service", "systemd-modules-load.service", "systemd-network-generator.service"),
    "for who debugs a kernel: mount them by hand": ("sys-kernel-debug.mount", "sys-kernel-tracing.mount"),
}  # fmt: skip

# systemd starts every generator at every boot, before any unit, and half a second goes by. Left is the one for fstab.
MASKED_GENERATORS = {
    "nothing here is encrypted, none of its tools are here": ("cryptsetup", "integritysetup", "veritysetup"),
    "every service here has a unit": ("sysv", "rc-local"),
    "the command line names the root, and nobody changes the command line": ("gpt-auto", "debug", "run"),
    "updates come as new images, and servers do not hibernate": ("system-update", "hibernate-resume"),
    "the consoles have no log-in": ("getty",),
}
# udev asks each rule about each device.
MASKED_RULES = {
    "what servers do not have": (
        "60-autosuspend", "60-drm", "60-evdev", "60-fido-id", "60-input-id", "60-persistent-alsa",
        "60-persistent-input", "60-persistent-v4l", "60-sensor", "70-camera", "70-joystick", "70-mouse",
        "70-power-switch", "70-touchpad", "78-sound-card"),
    "no seats without systemd-logind": ("70-uaccess", "71-seat", "73-seat-late"),
    "systemd has set the clock": ("85-hwclock",),
}  # fmt: skip

AGENT_UNIT = """[Unit]
Description=Freehold agent: attestation and orders
After=systemd-networkd.service freehold-first-boot.service
Wants=systemd-networkd.service
ConditionPathExists=/etc/freehold/site.json
StartLimitIntervalSec=0
[Service]
ExecStart=/usr/bin/python3 -I -m freehold.agent --mode os
Restart=always
RestartSec=2
StandardOutput=journal+console
StandardError=journal+console
[Install]
WantedBy=multi-user.target
"""
FIRST_BOOT_UNIT = f"""[Unit]
Description=Freehold first boot: host name, users, keys, network
DefaultDependencies=no
ConditionPathExists=!{first_boot.RECORD}
After=local-fs.target systemd-remount-fs.service
Before=network-pre.target systemd-networkd.service ssh.service freehold-agent.service shutdown.target
Wants=network-pre.target
Conflicts=shutdown.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/python3 -I -S /usr/lib/freehold/first_boot.py
StandardOutput=journal+console
StandardError=journal+console
[Install]
WantedBy=multi-user.target
"""
GROW = """#!/bin/sh
# Grow the root partition, which is the last one, to the end of its disk, and its file system with it.
set -eu
partition=$(readlink -f "/sys/dev/block/$(mountpoint -d /)")
number=$(cat "$partition/partition")
disk=/dev/$(basename "$(dirname "$partition")")
echo ', +' | sfdisk -q --no-reread --no-tell-kernel --force -N "$number" "$disk"
partx --update --nr "$number" "$disk"
resize2fs "/dev/$(basename "$partition")"
touch /var/lib/freehold/grown
"""
GROW_UNIT = """[Unit]
Description=Grow the root file system to its disk
ConditionPathExists=!/var/lib/freehold/grown
[Service]
Type=oneshot
Nice=19
IOSchedulingClass=idle
ExecStart=/usr/lib/freehold/grow-root
"""
GROW_TIMER = """[Unit]
Description=Grow the root file system, but not while the server is starting
ConditionPathExists=!/var/lib/freehold/grown
[Timer]
OnActiveSec=30s
[Install]
WantedBy=timers.target
"""
SSH_UNIT = """[Unit]
After=freehold-first-boot.service
[Service]
# The configuration is part of the image; checking it again at each start costs half a second on a slow CPU.
ExecStartPre=
"""
SSHD = """HostKey /etc/ssh/ssh_host_ed25519_key
PasswordAuthentication no
KbdInteractiveAuthentication no
"""
# For what the seed says nothing about: in the lab and at most sites, the provisioning network.
DEFAULT_NETWORK = """[Match]
Type=ether
[Network]
DHCP=ipv4
IPv6AcceptRA=no
[DHCPv4]
RouteMetric=2048
UseHostname=no
"""
FILES = {
    "etc/systemd/system/freehold-agent.service": AGENT_UNIT,
    "etc/systemd/system/freehold-first-boot.service": FIRST_BOOT_UNIT,
    "etc/systemd/system/freehold-grow-root.service": GROW_UNIT,
    "etc/systemd/system/freehold-grow-root.timer": GROW_TIMER,
    "etc/systemd/system/ssh.service.d/freehold.conf": SSH_UNIT,
    "etc/ssh/sshd_config.d/freehold.conf": SSHD,
    "etc/systemd/network/90-default.network": DEFAULT_NETWORK,
    "etc/hostname": "freehold\n",
    "etc/machine-id": "",  # empty: each server makes its own at its first boot
    "usr/lib/freehold/grow-root": GROW,
}
EXECUTABLE = {"usr/lib/freehold/grow-root"}
ENABLED = (
    "systemd-networkd.service",
    "ssh.service",
    "freehold-agent.service",
    "freehold-first-boot.service",
    "freehold-grow-root.timer",
)


@dataclass(frozen=True)
class OsRoot:
    """The cached root file system: an ext4 image, and the partition UUID by which the kernel finds it."""

    ext4: Path
    partuuid: str
    kernel: Kernel

    @property
    def cmdline(self) -> str:
        """The kernel command line of the OS UKI."""
        return f"{CONSOLE[self.kernel.flavour]} {CMDLINE} root=PARTUUID={self.partuuid}"


def os_root(cache: Cache, apt: Apt, kernel: Kernel, agent: Path, extra_packages: tuple[str, ...] = ()) -> OsRoot:
    """Debian with systemd, OpenSSH, the agent and the kernel's modules, as an ext4 image."""
    packages = (*PACKAGES, *extra_packages)
    tree = apt.tree(cache, "os-packages", packages, extract=False, leave_out=LEFT_OUT)
    inputs = {
        "source": source_digest(__file__, first_boot.__file__), "packages": tree.name, "kernel": kernel.tree.name,
        "agent": tree_digest(agent),
    }  # fmt: skip
    partuuid = str(uuid.uuid5(NAMESPACE, digest_of(inputs)))

    def build(out: Path) -> None:
        root = out.with_name("root")
        run("cp", "-a", tree, root)
        customize(root, kernel, agent, partuuid)
        make_ext4(root, out, partuuid)
        remove(root)

    return OsRoot(cache.artifact("os-root", inputs, build), partuuid, kernel)


def customize(root: Path, kernel: Kernel, agent: Path, partuuid: str) -> None:
    """Turn a tree of installed packages into the OS of a server."""
    for name, text in {**FILES, "etc/fstab": f"PARTUUID={partuuid} / ext4 defaults 0 1\n"}.items():
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(0o755 if name in EXECUTABLE else 0o644)
    for name in ("etc/freehold", "var/lib/freehold"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for leftover in [
        *root.glob("etc/ssh/ssh_host_*"),
        *root.glob("usr/lib/udev/hwdb.bin"),
        *root.glob("etc/udev/hwdb.bin"),
    ]:
        leftover.unlink()
    (root / "var/lib/dbus/machine-id").unlink(missing_ok=True)
    shutil.copy(first_boot.__file__, root / "usr/lib/freehold/first_boot.py")
    package = root / "usr/lib/python3/dist-packages/freehold"
    shutil.copytree(agent, package / "agent", ignore=shutil.ignore_patterns("__pycache__"))
    (package / "__init__.py").touch()
    copy_modules(kernel, root)
    mask_files(root, "systemd/system-generators", "systemd-{}-generator", MASKED_GENERATORS)
    mask_files(root, "udev/rules.d", "{}.rules", MASKED_RULES)
    for change in ("enable", *ENABLED), ("set-default", "multi-user.target"), ("mask", *sum(MASKED.values(), ())):
        run("systemctl", "--root", root, *change)
    run(
        "unshare", "--mount", "chroot", root, "/usr/bin/python3", "-I", "-S", "-m", "compileall", "-q",
        "--invalidation-mode", "unchecked-hash", "/usr/lib/python3.11", "/usr/lib/python3/dist-packages/freehold",
    )  # fmt: skip
    run("chroot", root, "/usr/sbin/usermod", "--lock", "root")


def mask_files(root: Path, folder: str, pattern: str, names: Mapping[str, tuple[str, ...]]) -> None:
    """Take files of usr/lib/FOLDER out of use, as an administrator would: by links to /dev/null in etc/FOLDER."""
    (root / "etc" / folder).mkdir(parents=True, exist_ok=True)
    for name in map(pattern.format, sum(names.values(), ())):
        if not (root / "usr/lib" / folder / name).exists():
            raise ImageBuildError(f"usr/lib/{folder}/{name} is to be masked, but the packages have no such file")
        (root / "etc" / folder / name).symlink_to("/dev/null")


def copy_modules(kernel: Kernel, root: Path) -> None:
    """The modules that the OS needs: a few on virtual machines, all of them on real servers."""
    target = root / "usr/lib/modules" / kernel.version
    if kernel.flavour is Flavour.GENERIC:
        shutil.copytree(kernel.directory, target)
        return
    for name in (*kernel.modules(*MODULES), "modules.builtin", "modules.builtin.modinfo", "modules.order"):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(kernel.directory / name, target / name)
    run("depmod", "-b", root, kernel.version)


def make_ext4(root: Path, out: Path, uuid_text: str) -> None:
    """An ext4 image with the tree and some room; the same tree gives the same bytes."""
    used_mib = int(run("du", "-sm", root).split()[0])
    run(
        "mkfs.ext4", "-q", "-F", "-L", disk.ROOT_LABEL, "-m", "0", "-U", uuid_text, "-d", root,
        "-E", f"hash_seed={uuid_text},lazy_itable_init=0", out, f"{used_mib * 118 // 100 + 24}M", env=EPOCH,
    )  # fmt: skip


def assemble(root: OsRoot, uki: bytes, site_files: Mapping[str, bytes], out: Path) -> Path:
    """The raw disk image of a site: the signed OS UKI in the ESP, the site's files in /etc/freehold of the root."""
    disk_uuid = str(uuid.uuid5(NAMESPACE, f"disk {root.partuuid}"))
    with tempfile.TemporaryDirectory(prefix="freehold-os-", dir=out.parent) as work:
        ext4 = Path(work, "root.ext4")
        run("cp", "--sparse=always", root.ext4, ext4)
        add_files(ext4, "/etc/freehold", site_files, Path(work))
        disk.assemble(out, ext4, root.partuuid, disk_uuid, {disk.LOADER_PATH: uki})
    return out


def add_files(ext4: Path, directory: str, files: Mapping[str, bytes], work: Path) -> None:
    """Write files into a directory of an ext4 image, and read them back: debugfs ends well even if it failed."""
    commands = []
    for name, data in files.items():
        (work / name).write_bytes(data)
        commands += [f"write {work / name} {directory}/{name}", f"sif {directory}/{name} mode 0100644"]
        commands += [f"sif {directory}/{name} {owner} 0" for owner in ("uid", "gid")]
    script = work / "debugfs.commands"
    script.write_text("\n".join(commands) + "\n")
    run("debugfs", "-w", "-f", script, ext4, env=EPOCH)
    for name, data in files.items():
        back = work / f"{name}.back"
        run("debugfs", "-R", f"dump {directory}/{name} {back}", ext4)
        if not back.exists() or back.read_bytes() != data:
            raise ImageBuildError(f"{directory}/{name} did not get into the root file system")
