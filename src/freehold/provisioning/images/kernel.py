"""The Debian kernel, unpacked: its image and its modules with what they depend on."""

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from freehold.provisioning.images.artifacts import Cache, source_digest
from freehold.provisioning.images.debian import Apt
from freehold.provisioning.images.errors import ImageBuildError
from freehold.provisioning.images.tools import run


class Flavour(StrEnum):
    """Which of Debian's kernels, by the name of its metapackage.

    CLOUD has the drivers for virtual machines, NVMe and ext4 and decompresses fast (LZ4); GENERIC has the drivers for
    real servers.
    """

    CLOUD = "linux-image-cloud-amd64"
    GENERIC = "linux-image-amd64"


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel package: `tree` has boot/vmlinuz-VERSION and lib/modules/VERSION."""

    tree: Path
    flavour: Flavour

    @cached_property
    def version(self) -> str:
        """The release, as `uname -r` says it."""
        return next((self.tree / "lib/modules").iterdir()).name

    @property
    def image(self) -> Path:
        """The bzImage; it carries an EFI stub."""
        return self.tree / f"boot/vmlinuz-{self.version}"

    @property
    def directory(self) -> Path:
        """lib/modules/VERSION in the tree."""
        return self.tree / "lib/modules" / self.version

    @cached_property
    def _dependencies(self) -> dict[str, list[str]]:
        return parse_modules_dep((self.directory / "modules.dep").read_text())

    @cached_property
    def _built_in(self) -> set[str]:
        return {module_name(line) for line in (self.directory / "modules.builtin").read_text().splitlines()}

    def modules(self, *names: str) -> list[str]:
        """Paths below `directory` of the named modules and all that they depend on, in the order to load them.

        What is built in is left out. Raises ImageBuildError for a module that this kernel does not have.
        """
        files = {module_name(path): path for path in self._dependencies}
        order: dict[str, None] = {}
        for name in names:
            if name in files:
                path = files[name]
                order |= dict.fromkeys([*reversed(self._dependencies[path]), path])
            elif name not in self._built_in:
                raise ImageBuildError(f"the kernel {self.version} has no module {name}")
        return list(order)

    def has(self, name: str) -> bool:
        """Whether the module exists, as a file or built in."""
        return name in self._built_in or any(module_name(path) == name for path in self._dependencies)


def module_name(path: str) -> str:
    """`kernel/fs/fat/nls-ascii.ko` -> `nls_ascii`, the name under which a module is known."""
    return Path(path).name.partition(".")[0].replace("-", "_")


def parse_modules_dep(text: str) -> dict[str, list[str]]:
    """modules.dep: each module's path, and what it needs, in the order in which modprobe would remove it."""
    lines = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {path: needed.split() for path, _, needed in lines}


def kernel(cache: Cache, apt: Apt, flavour: Flavour = Flavour.CLOUD) -> Kernel:
    """The newest kernel of a flavour, from the cache or downloaded."""
    package = apt.dependency(flavour, r"linux-image-\d\S*")
    version = [line for line in apt.closure(package) if line.startswith(f"{package} ")]

    def build(out: Path) -> None:
        apt.unpack(package, out)
        run("depmod", "-b", out, next((out / "lib/modules").iterdir()).name)

    return Kernel(cache.artifact("kernel", {"source": source_digest(__file__), "package": version}, build), flavour)
