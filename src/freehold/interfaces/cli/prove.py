"""`freehold prove`: the main job in one command, on a lab of its own."""

import asyncio
import contextlib
import hashlib
import logging
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from freehold.evidence import Ed25519Signer
from freehold.interfaces.cli.common import output_option, show_json
from freehold.interfaces.cli.lab import (
    facts_of,
    forget_inventory,
    lab_command,
    lab_error,
    operator_keys_of,
    write_inventory,
)
from freehold.interfaces.cli.lab_depot import carry_in
from freehold.interfaces.cli.lab_rack import LabRack
from freehold.interfaces.cli.opened_site import site_documents
from freehold.interfaces.cli.serve import enter_network_namespace, show_step, trust_lab
from freehold.model.documents import load_documents
from freehold.model.errors import FreeholdError
from freehold.model.resources import FirmwareBaselineSpec, Resource
from freehold.orchestration.controller import make_site, recorder
from freehold.orchestration.controller import serve as run_site
from freehold.orchestration.opening import boot_artifacts, open_keys, open_log, open_vault, serving
from freehold.orchestration.store import Store
from freehold.provisioning.images.artifacts import Cache, default_root
from freehold.provisioning.images.build import BaseArtifacts, build_base
from freehold.root_of_trust import operator_keys
from freehold.root_of_trust.vault import Vault
from freehold.sovereignty.prove import Progress, Prover, Report

SERVER = "server-1"


class NotProven(FreeholdError):
    """The run ended, but not with the proof."""

    exit_code = 3


@click.command()
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("freehold-prove"),
    show_default=True,
    help="Where the run works; bundles stay in DIR/bundles.",
)
@click.option("--keep", is_flag=True, help="Leave the lab and the state for a look around.")
@click.option("--mirror", help="Debian mirror for image builds; default: the host's own apt sources.")
@output_option()
def prove(directory: Path, keep: bool, mirror: str | None, output: str) -> None:
    """The sovereignty test, executed: build a rack in a box, cut its outside path, rebuild a dead server from a blank
    disk, attest it, catch a drift, sanitize it, and answer the seven questions from the evidence of this run.

    \b
    Example:
      sudo freehold prove
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    began = time.monotonic()
    directory = directory.resolve()
    lab, state = directory / "lab", directory / "state"
    base = build_base(Cache(default_root(), show_step), mirror=mirror)
    claim_state(state)
    click.echo("  lab: starting", err=True)
    name = lab_name(directory)
    _lab("down", "--name", name, directory=lab)
    _lab("up", "--name", name, "--servers", "1", directory=lab, check=True)
    failed = True
    try:
        facts = facts_of(lab)
        click.echo(
            f"  lab: up, processors {'by KVM' if facts['kvm'] else 'emulated (KVM does not work here)'}", err=True
        )
        inventory = write_inventory(lab, facts)
        trust_lab(state, facts)
        enter_network_namespace(facts["controller_namespace"])
        bundle = directory / "bundles" / f"prove-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        bundle.parent.mkdir(parents=True, exist_ok=True)
        with serving(state):
            import uvloop

            report = uvloop.run(_run(state, base, inventory, LabRack(lab, facts), facts, operator_keys_of(lab), bundle))
        key = bundle.with_suffix(".pub")  # apart from the bundle: what an auditor pins must not come out of it
        shutil.copy(state / "keys" / "evidence.pub", key)
        failed = report.failure is not None
        if failed:
            _save_console(facts, bundle)
    finally:
        if keep:
            click.echo(f"  lab: kept; remove it with `freehold lab down --dir {lab} --name {name}`", err=True)
        else:
            _lab("down", "--name", name, directory=lab)
            if failed:
                click.echo(f"  state: kept in {state} for a look around; the next run removes it", err=True)
            else:
                shutil.rmtree(state, ignore_errors=True)
                forget_inventory(lab)
    if output == "json":
        failure = report.failure.to_dict() if report.failure is not None else None
        show_json({"report": msgspec.to_builtins(report.answers), "maturity": report.stage, "egress": report.egress,
                   "seconds": report.seconds, "bundle": str(report.bundle), "failure": failure})  # fmt: skip
    else:
        click.echo(card(report, time.monotonic() - began))
        click.echo(f"  check it       freehold verify {report.bundle} --key {key}")
    if report.failure is not None:
        raise report.failure
    if not report.nothing_left:
        raise NotProven("something tried to leave, or the counter was not shown to work", remedy="read the card above")


def _save_console(facts: dict[str, Any], bundle: Path) -> None:
    """What the machine said last is what tells why; the lab goes, so it is kept beside the bundle."""
    for server in facts["servers"]:
        console = Path(server["console_log"])
        if console.exists():
            shutil.copy(console, bundle.with_name(f"{bundle.name}-{server['name']}-console.log"))


def lab_name(directory: Path) -> str:
    """Of the run's own lab: two runs on one host must not take each other's lab down."""
    return f"prove-{hashlib.sha256(str(directory).encode()).hexdigest()[:8]}"


def claim_state(state: Path) -> None:
    """An empty state directory that is ours to throw away. One that a proof did not make is somebody's site: its vault
    holds the only passwords of their BMCs."""
    marker = state / "made-by-prove"
    if state.exists() and not marker.exists():
        raise FreeholdError(
            f"{state} is the state of a site, not of a proof",
            remedy="give `freehold prove` a directory of its own: --dir",
        )
    if state.exists():
        with serving(state):  # nobody runs on it
            pass
        shutil.rmtree(state)
    state.mkdir(parents=True, mode=0o700)
    marker.touch()


def _lab(*arguments: str, directory: Path, check: bool = False) -> None:
    done = subprocess.run(
        lab_command(*arguments, "--output", "json", directory=directory),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if check and done.returncode != 0:
        raise lab_error("the lab did not start", done)


async def _run(
    state: Path,
    base: BaseArtifacts,
    inventory: Path,
    rack: LabRack,
    facts: dict[str, Any],
    people: dict[str, Path],
    bundle: Path,
) -> Report:
    store = await Store.open(state / "freehold.db")
    try:
        await store.apply(load_documents(inventory.read_text(), inventory.name))
        name, spec, networks = await site_documents(store)
        vault = open_vault(state)
        keys = await asyncio.to_thread(open_keys, state, vault, name, spec, networks)
        with await asyncio.to_thread(open_log, state, name, keys) as log:
            boot = await asyncio.to_thread(boot_artifacts, state, name, spec, keys, base, show_step)
            site = make_site(state, spec, networks, vault, keys, boot)
            signers = {name: operator_keys.load(path, None) for name, path in people.items()}
            await store.apply([await asyncio.to_thread(_newest_firmware, state, vault, signers, facts)])
            prover = Prover(site, store, log, recorder(log), rack, signers, SERVER, show)
            controller = asyncio.create_task(run_site(site, store, log))
            proof = asyncio.create_task(prover.run(bundle))
            done, _ = await asyncio.wait({controller, proof}, return_when=asyncio.FIRST_COMPLETED)
            for task in (proof, controller):
                if task not in done:
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError, FreeholdError):
                        await task
            if controller in done:
                controller.result()
            return proof.result()
    finally:
        await store.close()


def _newest_firmware(state: Path, vault: Vault, people: dict[str, Ed25519Signer], facts: dict[str, Any]) -> Resource:
    """The vendor's newest BIOS, carried into the depot and declared as what the board shall have."""
    board = facts["servers"][0]
    target = carry_in(state / "depot", vault, people, Path(facts["firmware"]), board["manufacturer"], board["model"])
    about = target.about
    spec = FirmwareBaselineSpec(
        vendor=about.vendor, model=board["model"], component=about.component, version=about.version
    )
    return Resource(kind="FirmwareBaseline", name="bios", spec=spec)


def show(progress: Progress) -> None:
    """A line of the live display."""
    minutes, seconds = divmod(int(progress.at), 60)
    click.echo(f"  {minutes:02}:{seconds:02}  {progress.phase:<16} {progress.text}", err=True)


def card(report: Report, seconds: float) -> str:
    """The sovereignty card, for people."""
    egress = report.egress
    checked, key = report.verification.entries, report.verification.key_fingerprint[:16]
    lines = ["", f"Bare Metal Sovereignty Test   server {report.server}   {seconds / 60:.1f} minutes", ""]
    if report.failure is not None:
        lines += [f"  NOT COMPLETED  {report.failure.what}", ""]
    for each in report.answers:
        lines.append(f"  {each.verdict:<13}  {each.number}. {each.question}")
        lines.append(f"  {'':<13}     {each.reason}")
    lines += [
        "",
        f"  maturity       stage {report.stage.stage}: {report.stage.name}",
        *(f"                 missing: {missing}" for missing in report.stage.missing),
        f"  tried to leave {egress['packets']} packets, {egress['lookups']} name look-ups "
        f"(control: {egress['control_packets']} and {egress['control_lookups']} counted)",
        f"  drift          {'; '.join(report.drift) or 'none seen'}",
        f"  evidence       {report.bundle}",
        f"                 verified: {checked} statements, key {key}",
        f"  phases         {', '.join(f'{name} {took:.0f} s' for name, took in report.seconds.items())}",
    ]
    return "\n".join(lines)
