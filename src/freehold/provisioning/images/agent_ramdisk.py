"""The first stage of the agent: a small initrd inside the signed UKI, and the site's part of it.

Firmware fetches slowly and hashes what it fetched several times, so the UKI carries no more than busybox, drivers and
`/init`. That brings up the network, fetches the second stage (`stage2.py`), compares it with the SHA-256 inside the
signed UKI, and starts the agent from it. Plain HTTP is enough: what was changed on the way is not run.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

from freehold.provisioning.images import cpio
from freehold.provisioning.images.artifacts import Cache, source_digest
from freehold.provisioning.images.errors import ImageBuildError
from freehold.provisioning.images.kernel import Flavour, Kernel
from freehold.provisioning.images.tools import SYSTEM_PATH, run

CMDLINE = {
    Flavour.CLOUD: "console=ttyS0,115200 quiet loglevel=3 panic=10",
    Flavour.GENERIC: "console=tty0 console=ttyS0,115200 quiet loglevel=3 panic=10",
}
# Loaded by /init in this order, without asking what hardware there is.
ALWAYS = (
    "virtio_pci", "virtio_net", "virtio_blk", "virtio_rng", "virtio_scsi", "sr_mod", "loop", "squashfs", "efivarfs",
)  # fmt: skip
# Carried in the ramdisk of real servers only, and loaded for the devices that are there.
BY_DEVICE = (
    "nvme", "ahci", "sd_mod", "megaraid_sas", "mpt3sas", "smartpqi", "aacraid", "hpsa",
    "e1000e", "igb", "igc", "ixgbe", "i40e", "ice", "tg3", "bnxt_en", "bnx2x", "mlx4_en", "mlx5_core", "qede", "sfc",
    "ena", "gve", "tpm_tis", "tpm_crb", "ipmi_si", "ipmi_devintf", "xhci_pci", "ehci_pci", "usb_storage", "uas",
)  # fmt: skip
SITE = "etc/freehold"  # where the site's part is, in the first stage and in the second

INIT = f"""#!/bin/sh
# First stage of the Freehold agent. Says on the console what it does, and why it cannot.
say() {{ echo "freehold: $*"; }}

mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
say "agent ramdisk started"
mount -t tmpfs -o mode=755 run /run
mount -t securityfs securityfs /sys/kernel/security
while read module; do insmod "/$module" 2>/dev/null || say "cannot load $module"; done </etc/modules
[ -d /sys/firmware/efi/efivars ] && mount -t efivarfs efivarfs /sys/firmware/efi/efivars
if [ -s /etc/by-device ]; then  # twice: a bridge or a controller brings up what is behind it
    for pass in 1 2; do modprobe -a -b -q $(cat /sys/bus/*/devices/*/modalias | sort -u); done
    modprobe -a -b -q usb_storage uas  # a BMC's virtual CD is a USB device, which appears later than this
fi

network() {{
    for interface in $(ls /sys/class/net); do
        [ -e "/sys/class/net/$interface/device" ] || continue
        ip link set "$interface" up
        udhcpc -q -n -t 10 -T 1 -A 1 -i "$interface" -s /etc/dhcp >/dev/null 2>&1 &
    done
    for tenth in $(seq 120); do
        ip -4 route | grep -q . && return 0
        usleep 100000
    done
    say "no address by DHCP on any network interface: $(ls /sys/class/net | tr '\\n' ' ')"
    return 1
}}

second_stage() {{  # not wget -T: busybox 1.35, static, crashes with it
    url=$(cat /{SITE}/stage2.url)
    timeout 120 wget -q -O /run/stage2 "$url" || {{ say "cannot fetch $url"; return 1; }}
    (cd /run && sha256sum -c -s /{SITE}/stage2.sha256) || {{
        say "REFUSED: $url is not what this signed image expects, SHA-256 $(cut -d ' ' -f 1 /{SITE}/stage2.sha256)," \\
            "but $(sha256sum /run/stage2 | cut -d ' ' -f 1)"
        return 1
    }}
    mount -t squashfs -o loop,ro /run/stage2 /stage2 || {{ say "cannot mount the second stage"; return 1; }}
    for directory in dev proc sys {SITE}; do mount -o rbind "/$directory" "/stage2/$directory"; done
    mount -o bind /bin/busybox /stage2/bin/busybox
    mount -t tmpfs -o mode=755 run /stage2/run
    mount -t tmpfs -o mode=1777 tmp /stage2/tmp
}}

stage=network
for attempt in $(seq 20); do
    if [ $stage = network ] && network; then
        say "network up:" $(ip -4 -o addr show scope global | cut -d ' ' -f 2-7)
        stage=fetch
    fi
    if [ $stage = fetch ]; then if second_stage; then stage=agent; else rm -f /run/stage2; stage=network; fi; fi
    if [ $stage = agent ]; then
        say "starting the agent"
        env -i PATH=/usr/bin:/usr/sbin:/bin:/sbin HOME=/run LANG=C.UTF-8 \\
            chroot /stage2 /usr/bin/python3.11 -I -S -m freehold.agent --mode ramdisk
        say "the agent ended with code $?"
    fi
    say "attempt $attempt of 20; the next one follows in 3 seconds"
    sleep 3
done
say "giving up: power off"
poweroff -f
"""
DHCP = """#!/bin/sh
# Called by udhcpc: the lease's values are in the environment.
[ "$1" = bound ] || exit 0
ip addr replace "$ip/${mask:-24}" dev "$interface"
for hop in $router; do ip route add default via "$hop" dev "$interface" metric 1024 2>/dev/null; done
exit 0
"""


@dataclass(frozen=True)
class SitePart:
    """What one site adds to the cached initrd; all of it is covered by the signature of the UKI."""

    site: str
    controller: str  # https://host:port of the agent API
    stage2_url: str
    stage2_sha256: str
    agent_ca_pem: bytes
    image_public_key_pem: bytes

    def files(self) -> dict[str, bytes]:
        """The files of /etc/freehold that agent and OS read: name to content."""
        facts = {
            "site": self.site, "controller": self.controller,
            "stage2_url": self.stage2_url, "stage2_sha256": self.stage2_sha256,
        }  # fmt: skip
        return {
            "site.json": msgspec.json.format(msgspec.json.encode(facts)) + b"\n",
            "ca.pem": self.agent_ca_pem,
            "image.pub": self.image_public_key_pem,
        }

    def archive(self) -> bytes:
        """An initrd to append: those files, and two more that spare /init a JSON parser."""
        extra = {"stage2.url": f"{self.stage2_url}\n", "stage2.sha256": f"{self.stage2_sha256}  stage2\n"}
        content = self.files() | {name: text.encode() for name, text in extra.items()}
        return cpio.archive(cpio.file(f"{SITE}/{name}", data) for name, data in content.items())


def initrd(cache: Cache, kernel: Kernel) -> Path:
    """The initrd without a site's part, compressed, its size a multiple of 4 bytes."""
    busybox = busybox_binary()
    inputs = {
        "source": source_digest(__file__, cpio.__file__), "kernel": kernel.tree.name,
        "busybox": [busybox.stat().st_size, run(busybox, "--help").splitlines()[0]],
    }  # fmt: skip

    def build(out: Path) -> None:
        out.write_bytes(cpio.padded(compress(cpio.archive(entries(kernel, busybox)))))

    return cache.artifact("agent-initrd", inputs, build)


def busybox_binary() -> Path:
    """The host's static busybox."""
    found = shutil.which("busybox", path=SYSTEM_PATH)
    if not found or "INTERP" in run("readelf", "--program-headers", "--wide", found):
        raise ImageBuildError("busybox is missing or not static", remedy="apt-get install busybox-static")
    return Path(found)


def entries(kernel: Kernel, busybox: Path) -> list[cpio.Entry]:
    """All that the initrd holds."""
    by_device = [name for name in BY_DEVICE if kernel.has(name)] if kernel.flavour is Flavour.GENERIC else []
    always, all_modules = kernel.modules(*ALWAYS), kernel.modules(*ALWAYS, *by_device)
    below = f"lib/modules/{kernel.version}"
    applets = sorted(set(run(busybox, "--list").split()) - {"busybox"})
    found = [
        cpio.file("init", INIT.encode(), 0o755),
        cpio.file("bin/busybox", busybox.read_bytes(), 0o755),
        *(cpio.link(f"bin/{applet}", "busybox") for applet in applets),
        cpio.file("etc/dhcp", DHCP.encode(), 0o755),
        cpio.file("etc/nsswitch.conf", b"hosts: files\nservices: files\n"),  # a static glibc can load no other
        cpio.file("etc/hosts", b"127.0.0.1 localhost\n"),
        cpio.file("etc/modules", "".join(f"{below}/{path}\n" for path in always).encode()),
        cpio.file("etc/by-device", "".join(f"{name}\n" for name in by_device).encode()),
        *(cpio.file(f"{below}/{path}", (kernel.directory / path).read_bytes()) for path in all_modules),
        *(cpio.directory(name) for name in ("dev", "proc", "sys", "run", "stage2", "tmp", "usr", "sbin")),
    ]
    if by_device:
        names = ("modules.dep", "modules.alias", "modules.softdep")
        found += [cpio.file(f"{below}/{name}", (kernel.directory / name).read_bytes()) for name in names]
    return found


def compress(data: bytes) -> bytes:
    """zstd, at the level that is worth the time of a build that is cached."""
    with tempfile.TemporaryDirectory(prefix="freehold-initrd-") as work:
        plain, packed = Path(work, "initrd"), Path(work, "initrd.zst")
        plain.write_bytes(data)
        run("zstd", "-19", "-q", plain, "-o", packed)
        return packed.read_bytes()
