"""What a package is: the `custom` part of a TUF target, decoded strictly. Pure."""

import re
from enum import StrEnum
from typing import Any

import msgspec
from tuf.api.metadata import TargetFile

from freehold.root_of_trust.depot import versions
from freehold.root_of_trust.depot.errors import PackageRefused

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_TEXT_LENGTH = 128


class Kind(StrEnum):
    FIRMWARE = "firmware"
    OS_IMAGE = "os-image"
    AGENT = "agent"


class Scheme(StrEnum):
    """How the vendor signed: an OpenPGP or PKCS #7 signature of the file, or one in a jcat catalogue (LVFS)."""

    PGP = "pgp"
    PKCS7 = "pkcs7"
    JCAT_PGP = "jcat-pgp"
    JCAT_PKCS7 = "jcat-pkcs7"


class VendorSignature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was verified at import. `fingerprint`: of the OpenPGP primary key (40 or 64 hex digits), or SHA-256 of the
    signer's certificate. `verified_by`: the person who ran the import. `at`: when, RFC 3339. `as_of`: the day for which
    certificates were checked, if not the day of the import."""

    scheme: Scheme
    fingerprint: str
    verified_by: str
    at: str
    as_of: str | None = None


class Description(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the operators sign about a package.

    `site`: the Site that an OS image or an agent was made for; None: whichever has the keys that start it.
    `models`: exact model names that firmware is for; empty for the other kinds. `security_floor`: the oldest version
    that may still be installed once this package is known. `unsigned_because`: why there is no vendor signature.
    `measurements`: PCR index to SHA-256 digests in hex. Of firmware: the value of the PCR, or the digests of its events
    in order. Of what is started: the value of PCR 4 under Secure Boot, and of PCR 11.
    """

    kind: Kind
    vendor: str
    component: str
    version: str
    models: tuple[str, ...] = ()
    security_floor: str | None = None
    vendor_signature: VendorSignature | None = None
    unsigned_because: str | None = None
    measurements: dict[int, tuple[str, ...]] = {}
    sbom_sha256: str | None = None
    site: str | None = None


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A package that the operators signed: `path` in the depot, `length` in bytes, `sha256` in hex."""

    path: str
    length: int
    sha256: str
    about: Description

    @property
    def stored_name(self) -> str:
        """Its name below `targets/`: consistent snapshots put the digest before the file name (TUF 6.2)."""
        folder, _, name = self.path.rpartition("/")
        return f"{folder}/{self.sha256}.{name}"


def new_target(name: str, length: int, sha256: str, about: Description) -> Target:
    """The target for a file of this name. Raises `PackageRefused` if the description does not hold together."""
    if not _FILE_NAME.fullmatch(name):
        raise PackageRefused(f"{name!r} cannot be a file name in the depot", expected="letters, digits and . _ + -")
    if problem := _problem(about):
        raise PackageRefused(f"{name}: {problem}")
    return Target(path=f"{about.kind}/{name}", length=length, sha256=sha256, about=about)


def to_tuf(target: Target) -> TargetFile:
    """As it stands in the targets metadata."""
    custom = msgspec.to_builtins(target.about, str_keys=True)
    return TargetFile(target.length, {"sha256": target.sha256}, target.path, {"custom": custom})


def from_tuf(file: TargetFile) -> Target:
    """Raises `PackageRefused` for a target that Freehold did not describe, or that a newer Freehold did."""
    try:
        about = msgspec.convert(file.custom, Description, str_keys=True)
    except msgspec.ValidationError as error:
        raise _not_ours(file.path, str(error)) from error
    folder, _, name = file.path.partition("/")
    problem = _problem(about)
    if folder != about.kind or not _FILE_NAME.fullmatch(name):
        problem = "the path is not KIND/FILE"
    if list(file.hashes) != ["sha256"] or not _DIGEST.fullmatch(file.hashes["sha256"]):
        problem = "the only digest must be SHA-256"
    if problem:
        raise _not_ours(file.path, problem)
    return Target(path=file.path, length=file.length, sha256=file.hashes["sha256"], about=about)


def overlap(one: Target, other: Target) -> bool:
    """Whether a request could mean both: same kind, vendor, component and version, and a model or a site in
    common."""
    a, b = one.about, other.about
    same = (a.kind, a.vendor, a.component, a.version) == (b.kind, b.vendor, b.component, b.version)
    elsewhere = None not in (a.site, b.site) and a.site != b.site
    return same and not elsewhere and (not a.models or not b.models or bool(set(a.models) & set(b.models)))


def _problem(about: Description) -> str | None:
    """What does not hold together, in words."""
    texts = [about.vendor, about.component, about.version, *about.models]
    texts += [text for text in (about.security_floor, about.unsigned_because, about.site) if text is not None]
    if bad := next((text for text in texts if not _is_line(text)), None):
        return f"{bad!r} is not a line of 1 to {_TEXT_LENGTH} printable characters"
    if "" in texts:
        return "vendor, component, version and models cannot be empty"
    if bad := next(
        (each for each in (about.version, about.security_floor or "0") if not re.search(r"[0-9]", each)), None
    ):
        return f"the version {bad!r} holds no number"
    if (about.kind is Kind.FIRMWARE) != bool(about.models):
        return "firmware, and only firmware, names the models that it is for"
    if about.kind is Kind.FIRMWARE and about.site is not None:
        return "firmware is for models, not for a site"
    if len(set(about.models)) != len(about.models):
        return "a model is named twice"
    if (about.vendor_signature is None) != (about.unsigned_because is not None):
        return "either the vendor's signature was verified, or it says why there is none"
    digests = [digest for values in about.measurements.values() for digest in values]
    if about.sbom_sha256 is not None:
        digests.append(about.sbom_sha256)
    if bad := next((digest for digest in digests if not _DIGEST.fullmatch(digest)), None):
        return f"{bad!r} is not a SHA-256 digest in lower-case hex"
    if any(index not in range(24) for index in about.measurements):
        return "a PCR has an index from 0 to 23"
    if about.security_floor is not None and versions.compare(about.version, about.security_floor) < 0:
        return f"version {about.version} is below its own security floor {about.security_floor}"
    return None


def _is_line(text: str) -> bool:
    return len(text) <= _TEXT_LENGTH and text.isprintable() and text == text.strip()


def _not_ours(path: Any, problem: str) -> PackageRefused:
    return PackageRefused(
        f"the signed description of {path} cannot be used: {problem}",
        remedy="use the Freehold version that the package was imported with, or withdraw the package",
    )
