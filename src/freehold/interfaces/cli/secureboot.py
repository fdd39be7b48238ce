"""`freehold secureboot`: the keys that decide what servers start, and the images that they never start again."""

from collections import Counter
from pathlib import Path

import click
import msgspec

from freehold.interfaces.cli.common import (
    moment,
    output_option,
    run,
    show_json,
    show_page,
    show_table,
    site_store,
    state_option,
)
from freehold.interfaces.cli.opened_site import existing_vault
from freehold.model.errors import FreeholdError
from freehold.model.status import ServerState
from freehold.orchestration.steps.booting import generation_of
from freehold.provisioning.images.enrolment import signed_enrolment_image
from freehold.provisioning.images.uki import make_iso
from freehold.root_of_trust.attestation.pe import authenticode
from freehold.root_of_trust.keys import SiteKeys
from freehold.root_of_trust.pki import utc_now
from freehold.root_of_trust.private_file import read_secret
from freehold.root_of_trust.secure_boot_generations import ROLES, Role
from freehold.root_of_trust.secure_boot_keys import SecureBootKeyring

WHEN = "available servers get it within a minute, others when they are decommissioned"
reason_option = click.option("--reason", required=True, help="Why; it goes into the evidence log.")


@click.group()
def secureboot() -> None:
    """The site's Secure Boot keys. Each change makes a new generation of PK, KEK, db and dbx. A server takes the newest
    one over while no OS is on it; until then it is held against its own.

    \b
    Example:
      freehold secureboot list
      freehold secureboot revoke agent.efi --reason "CVE-2026-1234 in its kernel"
      freehold secureboot rotate db --reason yearly
    """


@secureboot.command("list")
@state_option
@output_option()
def list_generations(state: Path, output: str) -> None:
    """The generations, oldest first, and how many servers carry each.

    \b
    Example:
      freehold secureboot list
    """
    carried = Counter(run(carried_by(state)).values())
    known = _keyring(state).generations()
    rows = [msgspec.to_builtins(each) | {"servers": carried[each.number]} for each in known]
    if output != "json":
        cells = [
            (each.number, moment(each.at), " ".join(each.keys), len(each.dbx), carried[each.number], each.reason)
            for each in known
        ]
        show_table(("GENERATION", "SINCE", "KEYS", "REVOKED", "SERVERS", "REASON"), cells)
    show_page("", rows, None, output)


@secureboot.command()
@click.argument("image", metavar="IMAGE.efi|SHA256")
@click.option("--although-in-use", is_flag=True, help="Even if the site boots it now: its servers wait for an update.")
@reason_option
@state_option
@output_option()
def revoke(image: str, although_in_use: bool, reason: str, state: Path, output: str) -> None:
    """Put an image into dbx, by file or by its Authenticode digest: no server that has the new generation starts it.

    What the site boots now is refused: update Freehold first. Servers are not given keys that would keep them from
    starting, so with --although-in-use none gets further than its next enrolment before that update.

    \b
    Example:
      freehold secureboot revoke agent.efi --reason "CVE-2026-1234 in its kernel"
    """
    digest = authenticode(Path(image).read_bytes()).hex() if Path(image).is_file() else image.lower()
    builds = _builds_of(state, digest)
    if not although_in_use:
        _refuse_in_use(state, digest, builds)
    made = _keyring(state).revoke(digest, reason, utc_now())
    if output == "json":
        show_json({"revoked": digest, "generation": made.number, "builds": builds})
        return
    click.echo(f"revoked {digest} in generation {made.number}; {WHEN}")
    for build in builds:
        click.echo(f"it is {build} of this site")


@secureboot.command()
@click.argument("role", type=click.Choice(ROLES))
@click.option("--finish", is_flag=True, help="db: take the old key out, once every server has the new one.")
@click.option("--module", help="Make the key in a PKCS#11 token: its shared library.")
@click.option("--token", help="The token's label.")
@click.option(
    "--pin-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The token's PIN; it is kept in the vault.",
)
@reason_option
@state_option
@output_option()
def rotate(
    role: Role,
    finish: bool,
    module: str | None,
    token: str | None,
    pin_file: Path | None,
    reason: str,
    state: Path,
    output: str,
) -> None:
    """Make a new PK, KEK or db key, in the vault or in a PKCS#11 token. PK and KEK take the place of the old ones.

    db takes three steps: rotate; restart `freehold serve`, so that what it builds is signed by both keys; then, when
    every server carries the new key, --finish. It refuses, with names, while one does not.

    \b
    Example:
      freehold secureboot rotate db --reason yearly
      freehold secureboot rotate db --finish --reason yearly
      freehold secureboot rotate kek --module LIB.so --token hsm --pin-file pin --reason "into the HSM"
    """
    keyring = _keyring(state)
    if finish:
        if role != "db" or module or token or pin_file:
            raise click.UsageError("--finish is for db alone, and makes no key")
        made = keyring.finish(run(carried_by(state)), reason, utc_now())
    else:
        made = keyring.rotate(role, reason, utc_now(), _place(module, token, pin_file))
    SiteKeys.load(state, existing_vault(state))  # writes the certificate's file
    if output == "json":
        show_json(made)
        return
    click.echo(f"generation {made.number}: {', '.join(made.keys)}; {WHEN}")
    if role == "db":
        click.echo("restart `freehold serve` now: what it builds has to bear the signatures of db's keys")


@secureboot.command()
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Where to write the image.")
@state_option
@output_option()
def image(out: Path, state: Path, output: str) -> None:
    """Write a medium that enrols the newest generation on a machine in setup mode, and then turns it off. Where a BMC
    has no Secure Boot databases, the controller boots the same by itself; this is for a machine that it cannot boot.

    \b
    Example:
      freehold secureboot image --out enrol.iso
    """
    keyring = _keyring(state)
    newest = keyring.newest()
    agent = _newest_agent(state)
    made = signed_enrolment_image(agent.read_bytes(), keyring, newest.number, utc_now())
    out.unlink(missing_ok=True)
    if out.suffix == ".iso":
        make_iso(made, out)
    else:
        out.write_bytes(made)
    if output == "json":
        show_json({"image": str(out), "generation": newest.number})
    else:
        click.echo(f"wrote {out}: it enrols generation {newest.number}")


async def carried_by(state: Path) -> dict[str, int]:
    """Server -> the generation of Secure Boot keys that it carries; not of those that carry none, or are retired."""
    found: dict[str, int] = {}
    async with site_store(state) as store:
        after = ("Server", "")
        while page := await store.list_resources("Server", after=after):
            for each in page:
                number = generation_of(each.status.facts) if each.status is not None else None
                if number is not None and each.status is not None and each.status.state is not ServerState.RETIRED:
                    found[each.resource.name] = number
            after = page[-1].resource.key
    return found


def _keyring(state: Path) -> SecureBootKeyring:
    return SiteKeys.load(state, existing_vault(state)).secure_boot


def _place(module: str | None, token: str | None, pin_file: Path | None) -> tuple[str, str, str] | None:
    if module and token and pin_file:
        return module, token, read_secret(pin_file, "PIN")
    if module or token or pin_file:
        raise click.UsageError("a key in a token needs --module, --token and --pin-file")
    return None


def _builds_of(state: Path, digest: str) -> list[str]:
    """What this site has built that has the digest, in words."""
    names = {"agent.efi": "the agent", "os.efi": "the OS image"}
    return [
        f"{title} of build {path.parent.name}"
        for name, title in names.items()
        for path in sorted((state / "images").glob(f"*/{name}"))
        if authenticode(path.read_bytes()).hex() == digest
    ]


def _refuse_in_use(state: Path, digest: str, builds: list[str]) -> None:
    newest = _newest_build(state)
    title = next((each for each in builds if newest is not None and each.endswith(newest.name)), None)
    if title is not None:
        raise FreeholdError(
            f"{digest} is what this site boots now: {title}",
            remedy="update Freehold and restart `freehold serve`, so that it boots another; then repeat this. "
            "If it must not wait: --although-in-use, and no server gets ready before that update",
        )


def _newest_agent(state: Path) -> Path:
    newest = _newest_build(state)
    if newest is None:
        raise FreeholdError("the site has built no agent yet", remedy="run `freehold serve` first")
    return newest / "agent.efi"


def _newest_build(state: Path) -> Path | None:
    built = sorted((state / "images").glob("*/content.json"), key=lambda path: path.stat().st_mtime)
    return built[-1].parent if built else None
