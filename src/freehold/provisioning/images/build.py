"""Build all boot artifacts: once what is the same everywhere, then, in seconds, what belongs to one site.

base = build_base(Cache(default_root(), progress))
site = assemble_site(base, SiteMaterial(...), state / "images", progress)
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import freehold.agent
from freehold.provisioning.images import agent_ramdisk, manifest, os_image, uki
from freehold.provisioning.images.agent_ramdisk import SitePart
from freehold.provisioning.images.artifacts import Cache, Progress, digest_of, file_sha256, silent, timed
from freehold.provisioning.images.debian import Apt
from freehold.provisioning.images.kernel import Flavour, Kernel, kernel
from freehold.provisioning.images.stage2 import stage2
from freehold.provisioning.images.tools import require_build_host, run

AGENT_SOURCE = Path(freehold.agent.__file__).parent


@dataclass(frozen=True)
class BaseArtifacts:
    """What is the same for every site, in the cache."""

    kernel: Kernel
    initrd: Path
    stage2: Path
    os_root: os_image.OsRoot

    @property
    def version(self) -> str:
        """Twelve hex digits that change with anything that is in the OS image."""
        return digest_of([self.kernel.tree.name, self.os_root.ext4.name])[:12]


@dataclass(frozen=True)
class SiteMaterial:
    """What a site gives: its addresses, its public keys as PEM, and `sign`, which signs what its servers start.

    `boot_url` is the base of the boot server, e.g. http://172.30.2.2:8080/boot.
    """

    site: str
    controller_url: str
    boot_url: str
    agent_ca_pem: bytes
    image_public_key_pem: bytes
    sign: Callable[[bytes], bytes]


@dataclass(frozen=True)
class SiteArtifacts:
    """Files of a site, in one directory. `stage2` is served below `boot_url` under its file name."""

    agent_efi: Path
    agent_iso: Path
    stage2: Path
    stage2_sha256: str
    os_efi: Path  # the signed OS UKI that is also in the image: what PCR 4 and 11 are predicted from
    os_raw: Path
    os_name: str
    os_version: str
    os_content: manifest.Content

    def manifest(self, boot: manifest.BootValues) -> manifest.ImageManifest:
        """The manifest of the OS image, with the boot values that the caller predicted from `os_efi`."""
        return manifest.image_manifest(self.os_name, self.os_version, self.os_content, boot)


def build_base(
    cache: Cache,
    mirror: str | None = None,
    flavour: Flavour = Flavour.CLOUD,
    agent: Path = AGENT_SOURCE,
    extra_packages: tuple[str, ...] = (),
) -> BaseArtifacts:
    """Build, or find in the cache, what is the same everywhere. Needs root and the tools of Debian 12.

    Packages come from the host's own APT sources, or from `mirror`. Raises ImageBuildError.
    """
    require_build_host()
    apt = Apt.of_mirror(mirror, cache.root / "apt") if mirror else Apt.of_host()
    linux = kernel(cache, apt, flavour)
    return BaseArtifacts(
        linux,
        agent_ramdisk.initrd(cache, linux),
        stage2(cache, apt, agent),
        os_image.os_root(cache, apt, linux, agent, extra_packages),
    )


def assemble_site(base: BaseArtifacts, site: SiteMaterial, out: Path, progress: Progress = silent) -> SiteArtifacts:
    """Make a site's files in `out`, in seconds, in place of older ones."""
    out.mkdir(parents=True, exist_ok=True)
    linux = base.kernel.image.read_bytes()
    osrel = f"ID=freehold\nNAME=Freehold\nPRETTY_NAME=Freehold\nVERSION_ID={base.version}\n".encode()
    with timed("second stage", progress):
        digest = file_sha256(base.stage2)
        second = out / f"stage2-{digest[:32]}.squashfs"
        run("cp", base.stage2, second)
        for older in set(out.glob("stage2-*.squashfs")) - {second}:
            older.unlink()  # no agent UKI of this site names it any more
    part = SitePart(
        site.site, site.controller_url, f"{site.boot_url}/{second.name}", digest,
        site.agent_ca_pem, site.image_public_key_pem,
    )  # fmt: skip

    def signed(name: str, cmdline: str, initrd: bytes | None = None) -> Path:
        with timed(name, progress):
            unsigned = uki.assemble(linux, cmdline, osrel, initrd)
            path = out / name
            path.write_bytes(site.sign(unsigned))
            return path

    initrd = base.initrd.read_bytes() + part.archive()
    agent_efi = signed("agent.efi", agent_ramdisk.CMDLINE[base.kernel.flavour], initrd)
    os_efi = signed("os.efi", base.os_root.cmdline)
    with timed("agent.iso", progress):
        agent_iso = uki.make_iso(agent_efi.read_bytes(), out / "agent.iso")
    with timed("os.raw", progress):
        os_raw = os_image.assemble(base.os_root, os_efi.read_bytes(), part.files(), out / "os.raw")
        content = manifest.describe(os_raw)
    return SiteArtifacts(
        agent_efi, agent_iso, second, digest, os_efi, os_raw, "debian-12", base.version, content
    )  # fmt: skip
