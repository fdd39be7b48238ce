"""`freehold pki replace` and `freehold image replace-key`: another site key in the place of one."""

import time
from pathlib import Path

import click

from freehold.interfaces.cli.common import output_option, run, show_json, site_store, state_option
from freehold.interfaces.cli.intents import login_name
from freehold.interfaces.cli.opened_site import declared_site, existing_vault
from freehold.model.errors import FreeholdError
from freehold.model.status import ServerState
from freehold.orchestration import key_replacements
from freehold.orchestration.opening import open_keys, open_vault
from freehold.orchestration.store import Stored
from freehold.root_of_trust import authorities, pki, succession
from freehold.root_of_trust.keys import ROOT_CERTIFICATE, StoredKey, certified
from freehold.root_of_trust.vault import Vault

NEXT = {
    "agent-ca": "restart `freehold serve` now: it ends every session, and builds an agent that trusts the new CA. "
    "Installed OSes know the old one until they are redeployed; then `freehold pki replace agent --finish`",
    "bmc-ca": "every BMC gets a certificate of the new CA now; the old CA vouches for nobody any more",
    "image": "restart `freehold serve` now: it signs the images anew, and builds an agent that trusts the new key",
}
reason_option = click.option("--reason", help="Why; it goes into the evidence log.")
approved_option = click.option("--approved", metavar="ID", help="Carry out the request that two operators have signed.")


@click.command("replace")
@click.argument("role", type=click.Choice(list(authorities.NAMES)))
@reason_option
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Where to write the request to the root.")
@approved_option
@click.option("--finish", is_flag=True, help="agent: destroy the old key, once no installed OS knows it any more.")
@state_option
@output_option()
def replace_authority(
    role: str, reason: str | None, out: Path | None, approved: str | None, finish: bool, state: Path, output: str
) -> None:
    """Give a CA another key, as after a theft. If the site has a root, --out writes the request to it, and the new key
    counts when `freehold pki install` brings what two custodians had the root issue. If it has none, two operators
    approve.

    \b
    Example:
      freehold pki replace bmc --reason "its key was stolen"
      freehold pki replace bmc --approved 3f2a9c0d11223344
      freehold pki replace bmc --reason "its key was stolen" --out bmc-ca-2.csr
      freehold pki replace agent --finish
    """
    if [bool(reason), bool(approved), finish].count(True) != 1 or (out and not reason):
        raise click.UsageError(
            "give one of --reason TEXT (with --out FILE, if the site has a root), --approved, --finish"
        )
    name = authorities.NAMES[role]
    if finish:
        _finish(role, state, output)
    elif approved:
        carry_out(state, name, approved, output)
    elif reason:
        _begin(state, role, reason, out, output)


def _begin(state: Path, role: str, reason: str, out: Path | None, output: str) -> None:
    name, rooted = authorities.NAMES[role], existing_vault(state).get(ROOT_CERTIFICATE) is not None
    if not rooted:
        if out is not None:
            raise FreeholdError(
                "the site has no root that could certify another key",
                remedy="two operators approve it: leave out --out",
            )
        ask(state, name, reason, output, f"freehold pki replace {role}")
        return
    if out is None:
        raise FreeholdError(
            "the site's root certifies the new key, so two custodians decide",
            remedy=f"`freehold pki replace {role} --reason TEXT --out FILE`, and take that to the ceremony",
        )
    vault, zone = vault_and_zone(state, role)
    going = certified(vault, name).certificate
    out.write_bytes(succession.stage(vault, name, zone, reason, pki.utc_now()))
    if output == "json":
        serial = f"{going.serial_number:x}"
        show_json({"request": str(out), "zone": [str(each) for each in zone], "revoke": serial})
        return
    click.echo(f"wrote {out}: the next {succession.TITLES[name]} asks to speak for {', '.join(map(str, zone))}")
    click.echo("carry it to the root, with two custodians:")
    click.echo(f"  freehold pki ceremony issue root {out.name} --share … --share … --out {role}-ca.pem")
    click.echo(f"  freehold pki ceremony revoke root {going.serial_number:x} --share … --share …")
    click.echo(f"then here: freehold pki install {role} {role}-ca.pem --root root.pem --crl root.crl")


def _finish(role: str, state: Path, output: str) -> None:
    if role != "agent":
        raise click.UsageError("--finish is for the agent CA: nothing is kept of a BMC CA")
    vault = existing_vault(state)
    former = succession.former_agent_authorities(vault)
    known = run(_known_by(state, max(former, default=0)))
    if known:
        shown = ", ".join(known[:10]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
        raise FreeholdError(
            f"the OS of {len(known)} servers knows the controller by a former agent CA only: {shown}",
            remedy="decommission and assign them anew; then repeat this",
        )
    gone = succession.finish(vault)
    if output == "json":
        show_json({"destroyed": list(gone)})
    elif gone:
        click.echo(f"destroyed agent CA {', '.join(map(str, gone))}; restart `freehold serve`: it closes their ports")
    else:
        click.echo("there is no former agent CA")


async def _known_by(state: Path, newest: int) -> list[str]:
    """Servers whose installed OS knows the controller by an agent CA of generation `newest` or before."""
    found: list[str] = []
    async with site_store(state) as store:
        after = ("Server", "")
        while page := await store.list_resources("Server", after=after):
            found += [each.resource.name for each in page if _has_os_of(each, newest)]
            after = page[-1].resource.key
    return found


def _has_os_of(server: Stored, newest: int) -> bool:
    status = server.status
    if status is None or status.state is ServerState.RETIRED or status.facts.image is None:
        return False
    return status.facts.image.agent_ca <= newest


@click.command("replace-key")
@reason_option
@approved_option
@state_option
@output_option()
def replace_image_key(reason: str | None, approved: str | None, state: Path, output: str) -> None:
    """Give the site another key for signing images, as after a theft: ask first, then, with two operators' signatures,
    do it. Agents that know the old key are started anew before they are given an image.

    \b
    Example:
      freehold image replace-key --reason "its key was stolen"
      freehold image replace-key --approved 3f2a9c0d11223344
    """
    if bool(reason) == bool(approved):
        raise click.UsageError("give either --reason TEXT, to ask, or --approved ID")
    if approved:
        carry_out(state, "image", approved, output)
    elif reason:
        ask(state, "image", reason, output, "freehold image replace-key")


def ask(state: Path, name: str, reason: str, output: str, command: str) -> None:
    """Put the replacement before the operators."""
    request = key_replacements.request_of(existing_vault(state), name, by=login_name(), reason=reason, at=time.time())

    async def work() -> None:
        async with site_store(state) as store:
            await store.approvals.ask(request)
            told = f"{login_name()} asks for another {succession.TITLES[name]}: {reason}"
            await store.add_event(None, "site-key", told)

    run(work())
    if output == "json":
        show_json({"request": request.id, "key": name, **request.details})
    else:
        click.echo(f"{request.id}: two operators sign it: freehold approval sign {request.id} --key FILE")
        click.echo(f"then: {command} --approved {request.id}")


def carry_out(state: Path, name: str, request_id: str, output: str) -> None:
    """Replace the key as two operators approved."""
    vault = existing_vault(state)

    async def work() -> StoredKey:
        async with site_store(state) as store:
            return await key_replacements.carry_out(store, state, vault, name, request_id, time.time())

    made = run(work())
    if output == "json":
        show_json({"key": name, "generation": made.generation, "spki_sha256": made.spki_sha256})
    else:
        click.echo(f"{succession.TITLES[name]}: generation {made.generation}, key SHA-256 {made.spki_sha256}")
        click.echo(NEXT[name])


def vault_and_zone(state: Path, role: str) -> tuple[Vault, tuple[pki.Network, ...]]:
    """The vault with the site's keys, and what a CA may speak for as the site is declared now."""
    name, spec, networks = run(declared_site(state))
    vault = open_vault(state)
    keys = open_keys(state, vault, name, spec, networks)
    prefixes = [networks[spec.networks.oob].prefix] if role == "bmc" else list(keys.identity.addresses)
    return vault, pki.networks(prefixes)
