"""The second stage of the agent: a squashfs with Python, the agent, and the tools that it calls.

Its files come from Debian packages that are unpacked, never installed. Python's library is kept as byte code only: an
import then reads one file and checks nothing.
"""

import re
import shutil
from pathlib import Path

from freehold.provisioning.images.artifacts import Cache, remove, source_digest, tree_digest
from freehold.provisioning.images.debian import Apt
from freehold.provisioning.images.errors import ImageBuildError
from freehold.provisioning.images.tools import run, words

PACKAGES = ("python3.11-minimal", "libpython3.11-stdlib", "openssl", "zstd", "nvme-cli", "util-linux")
TOOLS = (
    "usr/bin/python3.11",
    "usr/bin/openssl",
    "usr/bin/zstd",
    "usr/sbin/nvme",
    "usr/sbin/blkdiscard",
    "sbin/blkdiscard",
)
OTHER_FILES = ("etc/ssl/openssl.cnf",)
LIBRARY_FOLDERS = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
LOADER = "ld-linux-x86-64.so.2"  # System V ABI, AMD64 supplement: programs name it as /lib64/LOADER
LINKS = {
    f"usr/lib64/{LOADER}": f"../lib/x86_64-linux-gnu/{LOADER}",
    "usr/lib/ssl/openssl.cnf": "/etc/ssl/openssl.cnf",
    "usr/bin/python3": "python3.11",
}
PYTHON = "usr/lib/python3.11"
LEFT_OUT = frozenset(
    words("""test idlelib lib2to3 distutils tkinter turtledemo ensurepip pydoc_data unittest sqlite3 dbm curses
    wsgiref xmlrpc
    venv msilib xml turtle pydoc doctest mailbox nntplib imaplib poplib smtplib telnetlib ftplib pdb bdb cgi cgitb
    _pydecimal pickletools aifc sunau wave audioop tabnanny this antigravity webbrowser zipapp
    _sysconfigdata__x86_64-linux-gnu sitecustomize __pycache__""")
)
ENCODINGS = frozenset(words("__init__ aliases ascii utf_8 utf_8_sig latin_1 idna utf_16_le utf_16 cp437 punycode"))
EXTENSIONS = (
    "_ssl",
    "_hashlib",
    "_json",
    "_ctypes",
    "mmap",
    "resource",
    "termios",
    "_queue",
    "_asyncio",
    "_uuid",
    "_contextvars",
)
MOUNT_POINTS = ("dev", "proc", "sys", "run", "tmp", "etc/freehold")
APPLETS = ("sh", "ip", "cat", "ls", "mount", "umount", "dmesg", "reboot", "poweroff", "sync", "sleep", "ps")

# Decompressed on an emulated CPU in the lab: lz4 takes the least time, and it is fetched by Linux, which is quick.
COMPRESSION = ("-comp", "lz4", "-Xhc")


def stage2(cache: Cache, apt: Apt, agent: Path) -> Path:
    """The squashfs; `agent` is the directory of the package `freehold.agent`."""
    unpacked = apt.tree(cache, "stage2-packages", PACKAGES, extract=True)
    inputs = {"source": source_digest(__file__), "packages": unpacked.name, "agent": tree_digest(agent)}

    def build(out: Path) -> None:
        tree = out.with_name("tree")
        fill(tree, unpacked, agent)
        run(
            "mksquashfs", tree, out, *COMPRESSION, "-all-root", "-noappend", "-no-xattrs", "-no-progress", "-quiet",
            "-mkfs-time", "0", "-all-time", "0",
        )  # fmt: skip
        remove(tree)

    return cache.artifact("stage2", inputs, build)


def fill(tree: Path, unpacked: Path, agent: Path) -> None:
    """Make the tree of the second stage."""
    for name in MOUNT_POINTS:
        (tree / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (tree / "usr" / name).mkdir(parents=True, exist_ok=True)
        (tree / name).symlink_to(f"usr/{name}")
    present = [unpacked / name for name in (*TOOLS, *OTHER_FILES) if (unpacked / name).exists()]
    extensions = [
        file for name in EXTENSIONS for file in (unpacked / PYTHON / "lib-dynload").glob(f"{name}.cpython-*.so")
    ]
    for file in [*present, *extensions, *libraries(unpacked, [*present, *extensions])]:
        copy(file, tree / merged(file.relative_to(unpacked)))
    for link, target in LINKS.items():
        (tree / link).parent.mkdir(parents=True, exist_ok=True)
        (tree / link).symlink_to(target)
    copy_library(unpacked / PYTHON, tree / PYTHON)
    package = tree / PYTHON / "freehold"
    shutil.copytree(agent, package / "agent", ignore=shutil.ignore_patterns("__pycache__"))
    (package / "__init__.py").touch()
    compile_library(tree)
    (tree / "usr/bin/busybox").touch()  # the first stage mounts its own busybox here
    for applet in APPLETS:
        (tree / "usr/bin" / applet).symlink_to("busybox")
    for path in (tree / PYTHON).rglob("*.py"):
        path.unlink()


def merged(path: Path) -> Path:
    """The place of a file in a tree where /bin, /sbin, /lib and /lib64 are links into /usr."""
    return Path("usr", path) if path.parts[0] in {"bin", "sbin", "lib", "lib64"} else path


def copy(source: Path, target: Path) -> None:
    """Copy a file, or what a relative link leads to; an absolute one would lead to a file of this host."""
    if source.is_symlink() and source.readlink().is_absolute():
        raise ImageBuildError(f"{source} is a link to {source.readlink()}, which is outside the packages")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def copy_library(source: Path, target: Path) -> None:
    """Copy the part of Python's library that an agent may need."""
    for path in sorted(source.rglob("*.py")):
        relative = path.relative_to(source)
        parts = {part.removesuffix(".py") for part in relative.parts}
        wanted = not parts & LEFT_OUT and (relative.parts[0] != "encodings" or path.stem in ENCODINGS)
        if wanted and relative.parts[0] != "lib-dynload":
            copy(path, target / relative)


def compile_library(tree: Path) -> None:
    """Replace source by byte code, with the tree's own interpreter."""
    # -b: module.pyc in place of module.py. The library goes without docstrings; the agent's asserts stay.
    python = ("unshare", "--mount", "chroot", tree, "/usr/bin/python3.11", "-I", "-S", "-B", "-m", "compileall")
    options = ("-b", "-q", "--invalidation-mode", "unchecked-hash")
    run(*python, *options, "-o", "2", "-x", "/freehold/", f"/{PYTHON}")
    run(*python, *options, "-o", "0", f"/{PYTHON}/freehold")


def libraries(unpacked: Path, programs: list[Path]) -> list[Path]:
    """The shared libraries that ELF files need, directly or not, and the loader; found by name below `unpacked`."""
    found: dict[str, Path] = {}
    queue = list(programs)
    while queue:
        for name in needed(queue.pop()):
            if name in found:
                continue
            places = [unpacked / folder / name for folder in LIBRARY_FOLDERS]
            if not (path := next((place for place in places if place.exists()), None)):
                raise ImageBuildError(f"the library {name} is in none of the packages of the second stage")
            found[name] = path
            queue.append(path)
    return list(found.values())


def needed(program: Path) -> list[str]:
    """The names of the libraries and of the loader in an ELF file; none for another file."""
    with program.open("rb") as file:
        if file.read(4) != b"\x7fELF":
            return []
    said = run("readelf", "--dynamic", "--program-headers", "--wide", program)
    interpreter = re.findall(r"program interpreter: (\S+)\]", said)
    return [*(Path(path).name for path in interpreter), *re.findall(r"\(NEEDED\).*\[(\S+)\]", said)]
