"""Run the host's tools (Debian 12), and say what is missing or what failed."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from freehold.provisioning.images.errors import ImageBuildError

PACKAGE_OF = {  # the tools that the builders call, and the Debian package that brings each
    "apt-cache": "apt",
    "apt-config": "apt",
    "apt-get": "apt",
    "busybox": "busybox-static",
    "chroot": "coreutils",
    "cp": "coreutils",
    "debugfs": "e2fsprogs",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "mcopy": "mtools",
    "mformat": "mtools",
    "mkfs.ext4": "e2fsprogs",
    "mksquashfs": "squashfs-tools",
    "mmd": "mtools",
    "mmdebstrap": "mmdebstrap",
    "readelf": "binutils",
    "rm": "coreutils",
    "sfdisk": "fdisk",
    "systemctl": "systemd",
    "unshare": "util-linux",
    "xorriso": "xorriso",
    "zstd": "zstd",
}
SYSTEM_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin"


def run(
    *command: str | Path,
    stdin: bytes | None = None,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """Run a command to its end and return what it printed; a failure carries the end of that.

    An interrupt is passed on to the command, which is given the time to clean up after itself.
    """
    words = [str(word) for word in command]
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "PATH": SYSTEM_PATH, **(env or {})}
    if not (program := shutil.which(words[0], path=SYSTEM_PATH)):
        package = PACKAGE_OF.get(words[0], words[0])
        raise ImageBuildError(f"the tool {words[0]} is not installed", remedy=f"apt-get install {package}")
    with subprocess.Popen(
        [program, *words[1:]],
        stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        pass_fds=pass_fds,
        cwd=cwd,
    ) as process:
        try:
            output = process.communicate(stdin)[0].decode(errors="replace")
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise ImageBuildError(f"{' '.join(words)} ended with code {process.returncode}:\n{output[-2000:]}")
    return output


def words(text: str) -> tuple[str, ...]:
    """A tuple of the words of a text: for long lists of names."""
    return tuple(text.split())


def missing_packages() -> list[str]:
    """The Debian packages to install before anything can be built, in order; empty if nothing is missing."""
    return sorted({package for tool, package in PACKAGE_OF.items() if not shutil.which(tool, path=SYSTEM_PATH)})


def require_build_host() -> None:
    """Refuse early and with the whole list, instead of at each tool in turn."""
    if missing := missing_packages():
        raise ImageBuildError("tools are missing on this host", remedy=f"apt-get install {' '.join(missing)}")
    if os.geteuid():
        raise ImageBuildError(
            "images are built as root: a Debian tree has files of many owners", remedy="run the command as root"
        )
