"""`freehold depot`: found a depot, sign what waits, publish, verify, and take one over from removable media."""

import hashlib
import hmac
import re
from collections.abc import Sequence
from pathlib import Path

import click

from freehold.evidence import PublicKey
from freehold.interfaces.cli import depot_packages
from freehold.interfaces.cli.common import exits, output_option, printable, show_json, show_table, state_option
from freehold.interfaces.cli.depot_downgrade import downgrade
from freehold.interfaces.cli.depot_packages import (
    PACKAGE_COLUMNS,
    Meter,
    findings_of,
    package_row,
    show_findings,
    site_operators,
)
from freehold.model.errors import FreeholdError
from freehold.root_of_trust import online_key, pki
from freehold.root_of_trust.depot import Depot, DepotClient, DepotError, mirror
from freehold.root_of_trust.depot.metadata import Days, online_key_of, people_of, signed_by
from freehold.root_of_trust.depot.package import from_tuf
from freehold.root_of_trust.depot.people import require_site_operators
from freehold.root_of_trust.depot.staging import Staged, Staging, sign_staged
from freehold.root_of_trust.keys import make_depot_key
from freehold.root_of_trust.vault import Vault

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def depot() -> None:
    """Firmware, OS images and the agent: imported once, signed by two operators, verified at every use.

    \b
    Example:
      freehold depot init --operator alice=alice.pub --operator bob=bob.pub --operator carol=carol.pub
      freehold depot sign --key alice.pem
      freehold depot publish
      freehold depot list
    """


def operator_option(command: depot_packages.F) -> depot_packages.F:
    return click.option(
        "--operator", "operators", multiple=True, metavar="NAME=FILE",
        help="A person and their Ed25519 public key (PEM). Three at least; two have to sign.",
    )(command)  # fmt: skip


def days_options(command: depot_packages.F) -> depot_packages.F:
    for name, what in (("online", "snapshot and timestamp"), ("targets", "the list of packages"), ("root", "the root")):
        text = f"Days that {what} may be used for; default {getattr(Days(), name)}, or as it was."
        command = click.option(f"--{name}-days", type=click.IntRange(1, 3650), help=text)(command)
    return command


@depot.command()
@operator_option
@days_options
@click.option("--root", "root_file", type=FILE, help="Follow a depot that was founded elsewhere: its root metadata.")
@click.option("--sha256", "digest", metavar="HEX", help="SHA-256 of --root, as its operators gave it to you on paper.")
@state_option
@output_option()
def init(
    operators: Sequence[str],
    root_days: int | None,
    targets_days: int | None,
    online_days: int | None,
    root_file: Path | None,
    digest: str | None,
    state: Path,
    output: str,
) -> None:
    """Begin a depot: found one with its operators, or follow one that comes in on media.

    A founded depot is staged: two operators sign it with `freehold depot sign`, then `freehold depot publish`. Where
    the site has operators (`freehold operator`), the depot's must be of them, each with the same name and key.

    \b
    Example:
      freehold depot init --operator alice=alice.pub --operator bob=bob.pub --operator carol=carol.pub
      freehold depot init --root /media/usb/depot/metadata/1.root.json --sha256 5f1b2c…
    """  # fmt: skip
    if (root_file is None) == (not operators) or (root_file is None) != (digest is None):
        raise click.UsageError("give either three times --operator NAME=FILE, or --root FILE with --sha256 HEX")
    here = Depot(state / "depot")
    if root_file is not None and digest is not None:
        follow(here, root_file, digest)
        answer = {"depot": str(here.directory), "follows": digest.lower()}
        text = f"{here.directory} trusts root {digest.lower()}\nbring it in: freehold depot mirror SOURCE"
    else:
        days = days_of(Days(), root_days, targets_days, online_days)
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        people = read_people(operators)
        require_site_operators(people, site_operators(state))
        here.found(people, make_depot_key(vault_of(state)).public_key, days, pki.utc_now())
        answer = {"depot": str(here.directory), "staged": str(here.staging.directory)}
        text = f"staged in {here.staging.directory}; two operators sign it: freehold depot sign --key FILE"
    if output == "json":
        show_json(answer)
    else:
        click.echo(text)


@depot.command()
@operator_option
@days_options
@click.option(
    "--online-key", "replace_online_key", is_flag=True,
    help="Make a new online key. It counts, and the former one is destroyed, once this is published.",
)  # fmt: skip
@state_option
@output_option()
def rotate(
    operators: Sequence[str],
    replace_online_key: bool,
    root_days: int | None,
    targets_days: int | None,
    online_days: int | None,
    state: Path,
    output: str,
) -> None:
    """Stage a new root and list: other operators, another online key, or the same for another term.

    Name all operators that shall be, not only the new ones. Two of the old and two of the new ones have to sign. The
    online key signs snapshot and timestamp; if it was stolen, replace it. Without --online-key the root names the
    present one of this vault.

    \b
    Example:
      freehold depot rotate
      freehold depot rotate --online-key
      freehold depot rotate --operator alice=alice.pub --operator carol=carol.pub --operator dave=dave.pub
    """  # fmt: skip
    here = Depot(state / "depot")
    people = read_people(operators) if operators else None
    require_site_operators(people or here.people(), site_operators(state))
    days = days_of(here.days(), root_days, targets_days, online_days)
    vault, now = vault_of(state), pki.utc_now()
    named = online_key.rotate(here, vault, people, days, now, replace_online_key=replace_online_key)
    if output == "json":
        show_json({"staged": str(here.staging.directory), "operators": sorted(here.people()), "online_key": named})
        return
    click.echo(f"staged in {here.staging.directory}, with operators {', '.join(sorted(here.people()))}")
    if named != (present := here.online_key()):
        click.echo(f"online key {named}; until this is published it is {present}")
    click.echo("two of the old and two of the new operators sign it: freehold depot sign --key FILE")


@depot.command()
@click.argument("directory", type=FOLDER, required=False)
@click.option("--key", type=FILE, required=True, help="Your Ed25519 private key (PKCS #8 PEM).")
@click.option("--passphrase-file", type=FILE, help="First line: the key's passphrase. Default: you are asked.")
@click.option("--yes", is_flag=True, help="Do not ask: what is staged was read elsewhere.")
@state_option
@output_option()
def sign(directory: Path | None, key: Path, passphrase_file: Path | None, yes: bool, state: Path, output: str) -> None:
    """Read what is staged and sign it. DIRECTORY: a carried copy of STATE/depot/staged; any machine will do.

    \b
    Example:
      freehold depot sign --key alice.pem
      freehold depot sign /media/usb/staged --key alice.pem
    """
    staging = Staging(directory or state / "depot" / "staged")
    staged = staging.read()
    if output != "json":
        show_staged(staged)
    if not yes and (output == "json" or not click.confirm("Sign this?", err=True)):
        raise FreeholdError("nobody confirmed it; nothing was signed", remedy="answer y, or read it and give --yes")
    from freehold.interfaces.cli.operators import signer as signer_of  # late, as `vault_of`

    signer = signer_of(key, passphrase_file)
    roles = sign_staged(staging, staged, signer)
    person = next(staged.signers(role)[signer.key_id] for role in roles)
    now_signed = {role: signed_by(role, each, staged.judges(role)) for role, each in staging.read().waiting.items()}
    if output == "json":
        show_json({"signed": roles, "person": person, "key_id": signer.key_id, "signatures": now_signed})
        return
    for role, people in now_signed.items():
        click.echo(f"{role}: signed by {', '.join(people)}")


@depot.command()
@click.option("--signed", "carried", type=FOLDER, multiple=True, help="A carried copy that came back with signatures.")
@state_option
@output_option()
def publish(carried: Sequence[Path], state: Path, output: str) -> None:
    """Publish what is staged and signed, and renew snapshot and timestamp. Repeating it does no harm.

    \b
    Example:
      freehold depot publish
      freehold depot publish --signed /media/usb/staged
    """
    here = Depot(state / "depot")
    vault = publishing_vault(state, here)
    require_site_operators(here.people(), site_operators(state))
    found, client, replaced = online_key.publish(here, vault, pki.utc_now(), carried)
    root = here.repository.directory / "metadata" / f"{found.root.signed.version}.root.json"
    fingerprint = hashlib.sha256(root.read_bytes()).hexdigest()
    if output == "json":
        show_json({"seen": client.seen, "expiries": client.view.expiries, "root_sha256": fingerprint,
                   "online_key_replaced": replaced, "repository": str(here.repository.directory)})  # fmt: skip
        return
    click.echo(f"published targets version {client.seen.targets} with {len(client.view.packages)} packages")
    click.echo(f"to be used until {min(client.view.expiries.values()):%Y-%m-%d}, unless renewed before")
    click.echo(f"root version {found.root.signed.version}, SHA-256 {fingerprint}")
    if replaced:
        click.echo(f"online key {client.seen.online_key}; the former one is destroyed: carry this root to every site")
    click.echo(f"carry it: cp -rT {here.repository.directory} TO")
    show_findings(findings_of(client.view, state))


@depot.command()
@click.argument("source", type=FOLDER, required=False)
@state_option
@output_option()
def verify(source: Path | None, state: Path, output: str) -> None:
    """Verify a depot and every byte in it, changing nothing. SOURCE: a medium; default: the site's own. 3: refused.

    \b
    Example:
      freehold depot verify
      freehold depot verify /media/usb/depot
    """
    meter = Meter("verify")
    with exits(3, DepotError):
        client = DepotClient.look(state / "depot", source)
        for target in client.view.packages:
            client.open_verified(target, meter.of(target.path)).close()
            if output != "json":
                click.echo(f"ok  {printable(target.path)} ({target.length} bytes)")
    findings = findings_of(client.view, state)
    if output == "json":
        show_json({"verified": True, "seen": client.seen, "expiries": client.view.expiries, "findings": findings,
                   "packages": [target.path for target in client.view.packages]})  # fmt: skip
        return
    people = ", ".join(sorted(people_of(client.view.root).values()))
    click.echo(f"ok  root version {client.seen.root}, operators {people}")
    click.echo(f"ok  targets version {client.seen.targets}, timestamp version {client.seen.timestamp}")
    show_findings(findings)
    click.echo("verified")


@depot.command("mirror")
@click.argument("source", type=FOLDER)
@state_option
@output_option()
def mirror_depot(source: Path, state: Path, output: str) -> None:
    """Take over the depot in SOURCE, a directory on removable media: all of it, verified, or nothing.

    \b
    Example:
      freehold depot mirror /media/usb/depot
    """
    here = Depot(state / "depot")
    found = mirror(here, source, Meter("mirror").of("packages"))
    if output == "json":
        show_json({"seen": here.client().seen, "expiries": found.view.expiries,
                   "copied": [target.path for target in found.copied]})  # fmt: skip
        return
    for target in found.copied:
        click.echo(f"new  {printable(target.path)}")
    click.echo(f"targets version {found.view.targets.version}, {len(found.view.packages)} packages, "
               f"to be used until {min(found.view.expiries.values()):%Y-%m-%d}")  # fmt: skip
    show_findings(findings_of(found.view, state))


def read_people(operators: Sequence[str]) -> dict[str, PublicKey]:
    """`NAME=FILE`, several times."""
    people: dict[str, PublicKey] = {}
    for each in operators:
        name, found, file = each.partition("=")
        if not found or not name or not file:
            raise click.BadParameter(f"{each!r} is not NAME=FILE", param_hint="--operator")
        if name in people:
            raise click.BadParameter(f"{name} is named twice: one key per person", param_hint="--operator")
        people[name] = PublicKey.from_pem(Path(file).read_bytes())
    return people


def days_of(before: Days, root: int | None, targets: int | None, online: int | None) -> Days:
    return Days(root=root or before.root, targets=targets or before.targets, online=online or before.online)


def follow(here: Depot, root: Path, digest: str) -> None:
    """Trust a root file if it is the one that a person vouches for."""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        raise click.BadParameter("must be 64 hexadecimal digits", param_hint="--sha256")
    data = root.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if not hmac.compare_digest(found, digest.lower()):
        raise FreeholdError(
            f"{root} has SHA-256 {found}",
            expected=f"SHA-256 {digest.lower()}, as --sha256 says",
            remedy="get the root and its digest by two ways; do not adapt the digest to the file",
        )
    here.follow(data)


def vault_of(state: Path) -> Vault:
    """Imported late: whoever verifies, lists or mirrors does not need the engine, which takes a while to load."""
    from freehold.orchestration.opening import open_vault

    return open_vault(state)


def publishing_vault(state: Path, here: Depot) -> Vault:
    """The vault with the online key of a depot that publishes."""
    if not here.publishes or not (state / "vault").exists():
        raise FreeholdError(
            f"no depot publishes from {here.directory}",
            remedy="begin one with `freehold depot init`; a depot that follows is changed where it is published",
        )
    return vault_of(state)


def show_staged(staged: Staged) -> None:
    """All that a signature would stand for: nothing is left out because somebody says that it is old."""
    if staged.root is not None:
        root = staged.root.signed
        click.echo(f"root version {root.version}, until {root.expires:%Y-%m-%d}, online key {online_key_of(root)}")
        if staged.published_root and (old := online_key_of(staged.published_root.signed)) != online_key_of(root):
            click.echo(f"this online key takes the place of {old}, which then counts no more")
        show_table(("OPERATOR", "KEY"), [(name, key_id) for key_id, name in people_of(root).items()])
        click.echo("")
    if staged.targets is not None:
        targets = staged.targets.signed
        packages = [from_tuf(file) for file in targets.targets.values()]
        click.echo(f"targets version {targets.version}, until {targets.expires:%Y-%m-%d}, {len(packages)} packages")
        rows = [(*package_row(package), package.sha256) for package in packages]
        show_table((*PACKAGE_COLUMNS, "SHA-256"), rows)
        for package in packages:
            for index, digests in sorted(package.about.measurements.items()):
                click.echo(f"{package.path} measures into PCR {index}: {', '.join(digests)}")
            if package.about.sbom_sha256 is not None:
                click.echo(f"{package.path} has the bill of materials {package.about.sbom_sha256}")
        click.echo("")


for command in (*depot_packages.COMMANDS, downgrade):
    depot.add_command(command)
