"""`freehold baseline`: the firmware reference values that boots are held against, and who approved them."""

import time
from pathlib import Path

import click
import msgspec

from freehold.interfaces.cli.common import (
    output_option,
    run,
    show_json,
    show_page,
    show_table,
    site_store,
    state_option,
)
from freehold.interfaces.cli.intents import login_name
from freehold.interfaces.cli.operators import key_option, passphrase_option, signer
from freehold.interfaces.cli.resources import limit_option
from freehold.model.errors import FreeholdError
from freehold.orchestration.package_measurements import Compared, compare
from freehold.orchestration.references import KnownReference
from freehold.orchestration.store import Store
from freehold.root_of_trust.attestation import reference
from freehold.root_of_trust.attestation.reference import ReferenceState, ReferenceValues
from freehold.root_of_trust.depot import Depot, DepotClient, DepotError, DepotMissing
from freehold.root_of_trust.operators import approve as approval_of


@click.group()
def baseline() -> None:
    """Firmware reference values: what PCR 0 and 2 of a board at a BIOS version may hold. A server proposes what it
    measured at staging; two operators approve it; every later boot is held against it.

    \b
    Example:
      freehold baseline list
      freehold baseline show 3f2a9c0d11223344
      freehold baseline approve 3f2a9c0d11223344 --key alice.key
    """


@baseline.command("list")
@limit_option
@click.option("--after", default="", metavar="ID", help="Begin behind this one: the next page.")
@state_option
@output_option()
def list_references(limit: int, after: str, state: Path, output: str) -> None:
    """All reference values, and how far each one is.

    \b
    Example:
      freehold baseline list
    """

    async def work() -> list[KnownReference]:
        async with site_store(state) as store:
            return await store.references.list(after=after, limit=limit + 1)

    found = run(work())
    page = found[:limit]
    if output != "json":
        rows = [
            (each.values.id, each.state, each.values.vendor, each.values.model, each.values.version, each.origin)
            for each in page
        ]
        show_table(("ID", "STATE", "VENDOR", "MODEL", "BIOS", "ORIGIN"), rows)
    show_page("--after", [_plain(each) for each in page], page[-1].values.id if len(found) > limit else None, output)


@baseline.command()
@click.argument("reference_id", metavar="ID")
@state_option
@output_option()
def show(reference_id: str, state: Path, output: str) -> None:
    """One set of values: its events, who signed so far, whether the depot's package of that BIOS measures the same, and
    how it differs from the closest that is approved.

    \b
    Example:
      freehold baseline show 3f2a9c0d11223344
    """

    async def work() -> tuple[KnownReference, tuple[str, ...], ReferenceValues | None]:
        async with site_store(state) as store:
            known = await store.references.show(reference_id)
            asked = await store.approvals.show(known.approval)
            return known, asked.approved_by, await _closest(store, known)

    known, names, other = run(work())
    differences = reference.diff(other, known.values) if other is not None else ()
    if output == "json":
        closest = other.id if other is not None else None
        show_json({**_plain(known), "approved_by": names, "closest": closest, "differs": differences,
                   "depot": depot_says(state, known.values)})  # fmt: skip
        return
    click.echo(f"{known.values.title}: {known.state}, {known.origin}")
    click.echo(f"approved by:  {', '.join(names) or 'nobody yet'}")
    click.echo(f"depot:        {depot_says(state, known.values).said}")
    for pcr, digests in known.values.digests.items():
        for number, digest in enumerate(digests):
            click.echo(f"PCR {pcr}  {number:>3}  {digest}")
    if other is None:
        click.echo("nothing else is approved yet to compare it with")
    for sentence in differences:
        click.echo(f"differs: {sentence}")


@baseline.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--origin", required=True, help="Where the values come from: a vendor's RIM, a golden machine.")
@state_option
@output_option()
def propose(file: Path, origin: str, state: Path, output: str) -> None:
    """Put values from a JSON FILE before the operators: {"vendor", "model", "version", "digests": {"0": […], "2": […]}}
    with the SHA-256 digests of the events of PCR 0 and 2 in order, in hex.

    \b
    Example:
      freehold baseline propose hx2-1.1.json --origin "vendor RIM of 3 May"
    """
    try:
        values = msgspec.json.decode(file.read_bytes(), type=ReferenceValues)
        well_formed = set(values.digests) == {"0", "2"} and all(
            len(bytes.fromhex(digest)) == 32 for digests in values.digests.values() for digest in digests
        )
    except (msgspec.MsgspecError, ValueError) as error:
        raise FreeholdError(f"{file} does not hold reference values: {error}") from error
    if not well_formed:
        raise FreeholdError(f"{file} does not hold reference values", expected='SHA-256 digests for PCR "0" and "2"')

    compared = depot_says(state, values)

    async def work() -> KnownReference:
        async with site_store(state) as store:
            return await store.references.propose(values, origin, login_name(), time.time(), compared=compared.said)

    _said(run(work()), output)


@baseline.command()
@click.argument("reference_id", metavar="ID")
@key_option
@passphrase_option
@state_option
@output_option()
def approve(reference_id: str, key: Path, passphrase_file: Path | None, state: Path, output: str) -> None:
    """Approve values with your key; they count once another operator has done so too. `freehold approval sign` does the
    same where your key is kept on another machine.

    \b
    Example:
      freehold baseline approve 3f2a9c0d11223344 --key alice.key
    """

    async def work() -> tuple[str, tuple[str, ...]]:
        async with site_store(state) as store:
            known = await store.references.show(reference_id)
            asked = await store.approvals.show(known.approval)
            envelope = approval_of(asked.request, signer(key, passphrase_file)).to_bytes()
            name = await store.approvals.sign(known.approval, envelope)
            await store.add_event(None, "approval", f"{name} approved reference values {reference_id}")
            return name, (await store.approvals.show(known.approval)).approved_by

    name, names = run(work())
    if output == "json":
        show_json({"id": reference_id, "signed": name, "approved_by": names})
    else:
        click.echo(f"{reference_id}: signed ({name}); approved by {', '.join(names)}")


@baseline.command()
@click.argument("reference_id", metavar="ID")
@click.option("--superseded", is_flag=True, help="Servers that run it stay trusted; no other joins the pool with it.")
@state_option
@output_option()
def revoke(reference_id: str, superseded: bool, state: Path, output: str) -> None:
    """Take trust away from values: every server that was staged with them is quarantined at its next attestation.

    \b
    Example:
      freehold baseline revoke 3f2a9c0d11223344
      freehold baseline revoke 3f2a9c0d11223344 --superseded
    """
    wanted = ReferenceState.SUPERSEDED if superseded else ReferenceState.REVOKED

    async def work() -> KnownReference:
        async with site_store(state) as store:
            await store.references.withdraw(reference_id, wanted, time.time())
            await store.add_event(None, "reference", f"{login_name()}: reference values {reference_id} are {wanted}")
            return await store.references.show(reference_id)

    _said(run(work()), output)


@baseline.command()
@click.argument("one", metavar="ID")
@click.argument("other", metavar="ID")
@state_option
@output_option()
def diff(one: str, other: str, state: Path, output: str) -> None:
    """What two sets of values do not share, and whether each is what the depot's package of its BIOS measures. Exit
    code 3 if they differ.

    \b
    Example:
      freehold baseline diff 3f2a9c0d11223344 77aa9c0d11223344
    """

    async def work() -> tuple[ReferenceValues, ReferenceValues]:
        async with site_store(state) as store:
            return (await store.references.show(one)).values, (await store.references.show(other)).values

    both = run(work())
    sentences = reference.diff(*both)
    said = {values.id: depot_says(state, values) for values in both}
    if output == "json":
        show_json({"differs": sentences, "depot": said})
    else:
        for sentence in sentences:
            click.echo(sentence)
        for name, compared in said.items():
            click.echo(f"depot, {name}: {compared.said}")
    raise click.exceptions.Exit(3 if sentences else 0)


@baseline.command()
@click.argument("server")
@state_option
@output_option()
def closest(server: str, state: Path, output: str) -> None:
    """Which approved values are closest to what a server measured at staging, and what differs.

    \b
    Example:
      freehold baseline closest server-1
    """

    async def work() -> tuple[ReferenceValues, ReferenceValues | None]:
        async with site_store(state) as store:
            await store.get("Server", server)
            view = await store.ledger.view(server)
            facts = view.facts if view is not None else None
            if facts is None or facts.learned_reference is None or facts.firmware is None:
                raise FreeholdError("its firmware was not measured yet", server=server)
            board = facts.firmware
            measured = ReferenceValues(
                vendor=board.vendor, model=board.model, version=board.version, digests=facts.learned_reference
            )
            return measured, reference.closest(measured, await _approved(store))

    measured, other = run(work())
    differences = reference.diff(other, measured) if other is not None else ()
    if output == "json":
        show_json({"measured": measured.id, "closest": other.id if other is not None else None, "differs": differences,
                   "depot": depot_says(state, measured)})  # fmt: skip
        return
    click.echo(f"{server} measured {measured.id} ({measured.title})")
    click.echo(f"depot: {depot_says(state, measured).said}")
    click.echo(f"closest approved: {f'{other.id} ({other.title})' if other is not None else 'none'}")
    for sentence in differences:
        click.echo(f"differs: {sentence}")


def depot_says(state: Path, values: ReferenceValues) -> Compared:
    """Whether the depot's package of this BIOS measures these values; that it cannot be believed is an answer, too."""
    try:
        return compare(DepotClient.look(Depot(state / "depot").directory), values)
    except DepotMissing:
        return compare(None, values)
    except DepotError as error:
        return Compared(said=f"the depot cannot be used: {error.what}")


async def _approved(store: Store, without: str = "") -> list[ReferenceValues]:
    found: list[ReferenceValues] = []
    after = ""
    while page := await store.references.list(after=after):
        after = page[-1].values.id
        found += [each.values for each in page if each.state is ReferenceState.APPROVED and each.values.id != without]
    return found


async def _closest(store: Store, known: KnownReference) -> ReferenceValues | None:
    return reference.closest(known.values, await _approved(store, known.values.id))


def _said(known: KnownReference, output: str) -> None:
    if output == "json":
        show_json(_plain(known))
    else:
        click.echo(f"{known.values.id}: {known.values.title}, {known.state}")


def _plain(known: KnownReference) -> dict[str, object]:
    return {"id": known.values.id, "state": known.state, "origin": known.origin, "approval": known.approval,
            **msgspec.to_builtins(known.values)}  # fmt: skip
