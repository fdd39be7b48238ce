"""`freehold depot import`, `withdraw`, `list`: what goes into the depot, and what is in it."""

import stat
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from io import BufferedReader, BytesIO, FileIO
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click
import msgspec

from freehold.interfaces.cli.common import (
    output_option,
    printable,
    run,
    show_json,
    show_page,
    show_table,
    site_store,
    state_option,
)
from freehold.model.errors import FreeholdError
from freehold.model.findings import Finding
from freehold.root_of_trust import pki
from freehold.root_of_trust.depot import (
    Depot,
    DepotClient,
    Description,
    Kind,
    Target,
    VendorSignature,
    expiring,
    jcat,
    vendor,
)
from freehold.root_of_trust.depot.depot import Received
from freehold.root_of_trust.depot.files import Progress
from freehold.root_of_trust.depot.metadata import public_keys_of
from freehold.root_of_trust.depot.people import people_findings
from freehold.root_of_trust.depot.trusted import View
from freehold.root_of_trust.operators import Operators

F = TypeVar("F", bound=Callable[..., Any])
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
PACKAGE_COLUMNS = ("PACKAGE", "VENDOR", "COMPONENT", "VERSION", "MODELS", "FLOOR", "BYTES", "VENDOR SIGNATURE")
CABINET_LIMIT = 512 << 20
QUIET_SECONDS = 2.0


class Meter:
    """Progress on stderr, for what takes longer than two seconds: written over on a terminal, else a line at times."""

    def __init__(self, what: str) -> None:
        self._what, self._terminal = what, sys.stderr.isatty()
        self._next = time.monotonic() + QUIET_SECONDS

    def of(self, name: str) -> Progress:
        def progress(done: int, total: int) -> None:
            now = time.monotonic()
            if now < self._next:
                return
            self._next = now + (0.2 if self._terminal else 5.0)
            share = f", {100 * done // total} %" if total else ""
            text = f"  {self._what} {printable(name)}: {done >> 20} MiB{share}"
            click.echo(f"\r{text}" if self._terminal else text, err=True, nl=not self._terminal or done >= total)

        return progress


class Incoming(NamedTuple):
    """What is to be copied in. `called`: how the vendor calls it. `signature`: the one found with it, if any.
    `signed_by`: names of all files beside it that may hold its signature."""

    source: FileIO | BytesIO
    size: int
    called: str
    signature: bytes | None
    signed_by: tuple[str, ...]


@click.command("import")
@click.argument("file", type=FILE)
@click.option("--kind", type=click.Choice([each.value for each in Kind]), default="firmware", show_default=True)
@click.option("--vendor", "maker", required=True, help="Who made it: the name that the BMC reports.")
@click.option("--component", required=True, help="What it is for, e.g. bios, bmc, nic; for an image, its name.")
@click.option("--version", "version", required=True, help="Its version, as the BMC reports it once installed.")
@click.option("--model", "models", multiple=True, help="Firmware: exact name of a model that it is for. Repeatable.")
@click.option("--floor", help="Security floor: from now on nothing older than this version is installed.")
@click.option("--by", "person", required=True, help="You, as one of the operators: who looked at the signature.")
@click.option("--trust", type=FILE, help="The vendor's keys: an OpenPGP keyring, or certificates in PEM.")
@click.option("--signature", type=FILE, help="Detached signature: OpenPGP, PKCS #7, or a jcat catalogue.")
@click.option("--member", metavar="NAME", help="FILE is a cabinet (LVFS): take this file and the catalogue out of it.")
@click.option("--as-of", type=click.DateTime(["%Y-%m-%d"]), help="Check certificates as of this day; default: today.")
@click.option("--unsigned-because", metavar="TEXT", help="Import without a vendor's signature; why is recorded.")
@click.option("--name", help="File name in the depot; default: the file's own.")
@click.option("--pcr", "pcrs", multiple=True, metavar="INDEX=HEX",
              help="What it measures: the PCR's value (SHA-256), or, of firmware, its events in order.")  # fmt: skip
@click.option("--site", help="OS image, agent: the Site that it was made for.")
@click.option("--sbom-sha256", metavar="HEX", help="SHA-256 of its bill of materials.")
@state_option
@output_option()
def import_package(
    file: Path,
    kind: str,
    maker: str,
    component: str,
    version: str,
    models: Sequence[str],
    floor: str | None,
    person: str,
    trust: Path | None,
    signature: Path | None,
    member: str | None,
    as_of: datetime | None,
    unsigned_because: str | None,
    name: str | None,
    pcrs: Sequence[str],
    site: str | None,
    sbom_sha256: str | None,
    state: Path,
    output: str,
) -> None:
    """Check the vendor's signature of FILE, copy it into the depot, and stage it for the operators' signatures.

    Of an OS image and an agent it finds out what they make PCR 4 and 11: that is signed with them, and the controller
    holds every boot against it. `freehold image list` names os.raw; agent.efi lies beside it.

    \b
    Example:
      freehold depot import bios.bin --signature bios.bin.asc --trust acme.asc --by alice \\
        --vendor ACME --component bios --version 2.6.1 --model "M1 Gen2" --floor 2.4.0   # freehold asks nobody else
      freehold depot import state/images/5f1b2c…/os.raw --kind os-image --site lab --by alice \\
        --vendor Example --component debian-12 --version 12.8.1 --unsigned-because "built by freehold"
    """  # fmt: skip
    if (trust is None) == (unsigned_because is None):
        raise click.UsageError("give the vendor's keys with --trust, or the reason with --unsigned-because")
    if trust is None and (signature or as_of):
        raise click.UsageError("--signature and --as-of need --trust")
    if (kind == Kind.FIRMWARE) != (site is None):
        raise click.UsageError("an OS image or agent, and nothing else, needs --site: the Site that it was made for")
    here, now = Depot(state / "depot"), pki.utc_now()
    require_operator(here, person)
    about = Description(
        kind=Kind(kind),
        vendor=maker,
        component=component,
        version=version,
        models=tuple(models),
        security_floor=floor,
        unsigned_because=unsigned_because,
        measurements=read_measurements(pcrs),
        sbom_sha256=sbom_sha256,
        site=site,
    )
    incoming = open_incoming(file, member, signature)
    if unsigned_because is not None and incoming.signed_by:
        raise FreeholdError(
            f"{incoming.called} is not unsigned: {', '.join(incoming.signed_by)} lies beside it",
            expected="its signature, checked with the vendor's keys",
            remedy="give the vendor's keys with --trust; whoever really has none takes the file out, away from its"
            " signature, and says so in --unsigned-because",
        )
    meter = Meter("import").of(file.name)
    with incoming.source as source, here.receiving(source, incoming.size, meter) as received:
        if trust is not None:
            seen = look_at(received, incoming, trust.read_bytes(), person, as_of, now)
            about = msgspec.structs.replace(about, vendor_signature=seen)
        if about.kind is not Kind.FIRMWARE:
            about = msgspec.structs.replace(about, measurements=predicted(received, about))
        target = here.add(received, name or incoming.called, about, now)
    if output == "json":
        show_json({"target": target, "staged": str(here.staging.directory)})
        return
    click.echo(f"imported {target.path}: {target.length} bytes, SHA-256 {target.sha256}")
    click.echo(f"vendor's signature: {signature_of(target)}")
    click.echo("two operators sign it: freehold depot sign --key FILE; then freehold depot publish")


@click.command()
@click.argument("package")
@state_option
@output_option()
def withdraw(package: str, state: Path, output: str) -> None:
    """Stage the list without PACKAGE (KIND/FILE). Once signed and published, it cannot be used any more.

    \b
    Example:
      freehold depot withdraw firmware/bios.bin
    """
    here = Depot(state / "depot")
    here.withdraw(package, pki.utc_now())
    if output == "json":
        show_json({"withdrawn": package, "staged": str(here.staging.directory)})
        return
    click.echo(f"staged: the list without {package}")
    click.echo("two operators sign it: freehold depot sign --key FILE; then freehold depot publish")


@click.command("list")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Length of a page.")
@click.option("--after", default="", metavar="PACKAGE", help="Begin behind this package: the next page.")
@state_option
@output_option()
def list_packages(limit: int, after: str, state: Path, output: str) -> None:
    """List the packages, those published (verified now) and those staged, and say what expires soon.

    \b
    Example:
      freehold depot list
    """
    here = Depot(state / "depot")
    client = DepotClient.look(here.directory) if (here.directory / "trusted").exists() else None
    published = {target.path: target for target in client.view.packages} if client else {}
    pending = {target.path: target for target in here.packages()} if here.publishes else published
    if not client and not here.publishes:
        raise FreeholdError(f"there is no depot in {here.directory}", remedy="begin one with `freehold depot init`")
    found = sorted(path for path in {*published, *pending} if path > after)
    page = [(pending.get(path) or published[path], condition(path, published, pending)) for path in found[:limit]]
    following = found[limit - 1] if len(found) > limit else None
    if output == "json":
        items = [{"condition": word, **msgspec.to_builtins(target)} for target, word in page]
        show_page("--after", items, following, output)
        return
    show_table(("IS", *PACKAGE_COLUMNS), [(word, *package_row(target)) for target, word in page])
    show_page("--after", [], following, output)
    if client:
        show_findings(findings_of(client.view, state))


COMMANDS: tuple[click.Command, ...] = (import_package, withdraw, list_packages)


def condition(path: str, published: Mapping[str, Target], pending: Mapping[str, Target]) -> str:
    if path not in published:
        return "staged"
    return "published" if path in pending else "withdrawal staged"


def require_operator(here: Depot, person: str) -> None:
    """Who is recorded as having looked must be one of those who sign."""
    people = sorted(here.people())
    if person not in people:
        raise FreeholdError(
            f"{person} is no operator of the depot in {here.directory}",
            expected=f"one of: {', '.join(sorted(people))}"
            if people
            else "a depot: begin one with `freehold depot init`",
            remedy="say with --by who looks at the vendor's signature",
        )


def read_measurements(pcrs: Sequence[str]) -> dict[int, tuple[str, ...]]:
    found: dict[int, tuple[str, ...]] = {}
    for each in pcrs:
        index, _, digest = each.partition("=")
        if not index.isdecimal() or not digest:
            raise click.BadParameter(f"{each!r} is not INDEX=HEX", param_hint="--pcr")
        found[int(index)] = (*found.get(int(index), ()), digest)
    return found


def predicted(received: Received, about: Description) -> dict[int, tuple[str, ...]]:
    """What an OS image or agent makes the PCRs, from its own bytes; what somebody says with --pcr must be that."""
    from freehold.orchestration.measurements import BootedImage  # late, as `vault_of` in `depot`
    from freehold.provisioning.images import disk

    file = BufferedReader(received.file)
    uki = disk.loader_of(file) if about.kind is Kind.OS_IMAGE else file.read()
    file.detach()
    booted = BootedImage.of(about.component, uki)
    found: dict[int, tuple[str, ...]] = {index: (value,) for index, value in booted.predicted.items()}
    for index, digests in about.measurements.items():
        if found.get(index) != digests:
            raise FreeholdError(
                f"PCR {index} will be {', '.join(found.get(index, ())) or 'what nobody can predict'}, not"
                f" {', '.join(digests)}, as --pcr says",
                remedy="find out why it is another image than was announced; do not adapt --pcr to the file",
            )
    received.file.seek(0)
    return found


def open_incoming(file: Path, member: str | None, signature: Path | None) -> Incoming:
    """FILE itself, or one file out of it with the catalogue beside that."""
    given = signature.read_bytes() if signature else None
    if not stat.S_ISREG(file.stat().st_mode):
        raise FreeholdError(f"{file} is not a regular file", remedy="give the package itself")
    source = FileIO(file, "rb")
    size = file.stat().st_size
    if member is None:
        beside = tuple(name for name in jcat.signature_files(file.name) if file.with_name(name).exists())
        return Incoming(source, size, file.name, given, beside)
    with source:
        if not jcat.is_cabinet(source.read(4)) or size > CABINET_LIMIT:
            raise FreeholdError(f"{file} is no cabinet of at most {CABINET_LIMIT >> 20} MiB", remedy="omit --member")
        found = jcat.extract(file.read_bytes(), member)
    return Incoming(BytesIO(found.data), len(found.data), member, given or found.catalogue, found.signed_by)


def look_at(
    received: Received, incoming: Incoming, trust: bytes, person: str, as_of: datetime | None, now: datetime
) -> VendorSignature:
    """The vendor's signature over what came in."""
    if incoming.signature is None:
        raise click.UsageError("there is no signature: give it with --signature, or take --member out of a cabinet")
    moment = as_of.replace(tzinfo=UTC) if as_of else None
    found = vendor.verify(received.file, received.sha256, incoming.called, incoming.signature, trust, moment)
    return VendorSignature(
        scheme=found.scheme,
        fingerprint=found.fingerprint,
        verified_by=person,
        at=f"{now:%Y-%m-%dT%H:%M:%SZ}",
        as_of=f"{as_of:%Y-%m-%d}" if as_of else None,
    )


def signature_of(target: Target) -> str:
    """In a few words."""
    found = target.about.vendor_signature
    if found is None:
        return f"none: {target.about.unsigned_because}"
    return f"{found.scheme} {found.fingerprint}, verified by {found.verified_by}"


def package_row(target: Target) -> tuple[object, ...]:
    about = target.about
    models = ", ".join(about.models) or (f"site {about.site}" if about.site else "any")
    return (
        target.path, about.vendor, about.component, about.version, models, about.security_floor or "-", target.length,
        signature_of(target),
    )  # fmt: skip


def site_operators(state: Path) -> Operators:
    """Those of the site in this state directory; nobody, if there is none: a depot does not need one."""
    if not (state / "freehold.db").exists():
        return Operators({})

    async def work() -> Operators:
        async with site_store(state) as store:
            return await store.approvals.operators()

    return run(work())


def findings_of(view: View, state: Path) -> tuple[Finding, ...]:
    """What expires soon, and who should not sign."""
    return (
        *expiring(view.expiries, pki.utc_now()),
        *people_findings(public_keys_of(view.root), site_operators(state)),
    )


def show_findings(findings: Sequence[Finding]) -> None:
    """On stderr."""
    for finding in findings:
        click.echo(f"{finding.severity}: {finding.detail}\n  what to do: {finding.remedy}", err=True)
