"""Debian packages: which versions there are, a package unpacked, a tree of packages installed."""

import re
from pathlib import Path

from freehold.provisioning.images.artifacts import Cache, digest_of, source_digest
from freehold.provisioning.images.errors import ImageBuildError
from freehold.provisioning.images.tools import run

SUITE = "bookworm"
SUITES = {SUITE, f"{SUITE}-updates", f"{SUITE}-security"}
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# Settings of the host that a build inside a fresh tree needs as well: proxies, and whether old indices are accepted.
CARRIED_SETTINGS = re.compile(r"^(Acquire::(?:Check-|https?::Proxy).*);$", re.MULTILINE)


class Apt:
    """APT on this host: with the host's own sources, or with one mirror and indices of its own.

    Everything that asks for versions works offline, from the indices fetched last.
    """

    def __init__(self, sources: list[Path], options: tuple[str, ...] = ()) -> None:
        self.sources, self.options = sources, options

    @classmethod
    def of_host(cls, etc: Path = Path("/etc/apt")) -> "Apt":
        """The sources of the host that offer Debian 12; other vendors' repositories are left out."""
        files = [
            etc / "sources.list",
            *sorted(etc.glob("sources.list.d/*.list")),
            *sorted(etc.glob("sources.list.d/*.sources")),
        ]
        sources = [file for file in files if file.is_file() and offers_debian(file.read_text())]
        if not sources:
            raise ImageBuildError(
                f"no APT source of this host offers Debian {SUITE}",
                remedy=f"build on a Debian 12 host, or name a mirror, for example one that has dists/{SUITE}",
            )
        return cls(sources)

    @classmethod
    def of_mirror(cls, mirror: str, work: Path) -> "Apt":
        """One mirror (base URL); its indices are fetched into `work`."""
        work.mkdir(parents=True, exist_ok=True)
        source = work / "mirror.list"
        source.write_text(f"deb [signed-by={KEYRING}] {mirror} {SUITE} main\n")
        for directory in "lists/partial", "cache/archives/partial":
            (work / directory).mkdir(parents=True, exist_ok=True)
        settings = {
            "Dir::Etc::sourcelist": source,
            "Dir::Etc::sourceparts": "-",
            "Dir::State::lists": work / "lists",
            "Dir::Cache": work / "cache",
        }
        apt = cls([source], tuple(word for key, value in settings.items() for word in ("-o", f"{key}={value}")))
        run("apt-get", *apt.options, "-q", "update")
        return apt

    def closure(self, *packages: str) -> list[str]:
        """`name version` of the packages and of all that they need on an empty system, sorted."""
        said = run(
            "apt-get", *self.options, "-s", "-o", "Dir::State::status=/dev/null", "--no-install-recommends",
            "install", *packages,
        )  # fmt: skip
        found = sorted(f"{name} {version}" for name, version in re.findall(r"^Inst (\S+) \((\S+)", said, re.MULTILINE))
        if not found:
            raise ImageBuildError(f"APT knows no {', '.join(packages)}", remedy="apt-get update")
        return found

    def dependency(self, metapackage: str, pattern: str) -> str:
        """The package that a metapackage depends on today, e.g. the kernel of linux-image-cloud-amd64."""
        said = run("apt-cache", *self.options, "depends", "--important", metapackage)
        if not (found := re.search(rf"^\s+(?:Pre)?Depends: ({pattern})$", said, re.MULTILINE)):
            raise ImageBuildError(f"{metapackage} depends on nothing like {pattern}", remedy="apt-get update")
        return found[1]

    def unpack(self, package: str, out: Path) -> None:
        """Download one package and unpack its files below `out`."""
        out.mkdir()
        run("apt-get", *self.options, "-q", "-o", "APT::Sandbox::User=root", "download", package, cwd=out)
        for archive in out.glob("*.deb"):
            run("dpkg-deb", "-x", archive, out)
            archive.unlink()

    def tree(
        self, cache: Cache, name: str, packages: tuple[str, ...], *, extract: bool, leave_out: tuple[str, ...] = ()
    ) -> Path:
        """A directory with the packages and all that they need, by mmdebstrap: only unpacked, or installed.

        `leave_out` are dpkg path patterns; they count for installed trees only.
        """
        wanted = packages if extract else ("?essential", "apt", *packages)
        inputs = {
            "source": source_digest(__file__), "packages": self.closure(*wanted), "extract": extract,
            "leave_out": leave_out,
        }  # fmt: skip

        def build(out: Path) -> None:
            carried = CARRIED_SETTINGS.findall(run("apt-config", "dump"))
            run(
                "unshare", "--mount",  # so that an interrupted build leaves no mount behind
                "mmdebstrap", f"--variant={'extract' if extract else 'apt'}", f"--include={','.join(packages)}",
                # Instead of the package usrmerge, which needs perl.
                *([] if extract else ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"]),
                *(f"--aptopt={setting}" for setting in carried),
                *(f"--dpkgopt=path-exclude={pattern}" for pattern in leave_out),
                SUITE, out, *self.sources,
            )  # fmt: skip

        return cache.artifact(name, inputs, build)


def offers_debian(text: str) -> bool:
    """Whether an APT source file, one-line or deb822, has a suite of Debian 12."""
    suites = re.findall(r"^Suites:\s*(.+)$", text, re.MULTILINE)
    suites += re.findall(r"^deb\s+(?:\[[^\]]*\]\s+)?\S+\s+(\S+)", text, re.MULTILINE)
    return any(SUITES & set(line.split()) for line in suites)


def package_digest(closure: list[str]) -> str:
    """One value for a list of packages with versions."""
    return digest_of(closure)
