"""`freehold serve`: the controller in the foreground."""

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import click

from freehold.interfaces.cli.common import output_option, state_option
from freehold.interfaces.cli.images import FLAVOURS
from freehold.interfaces.cli.lab import facts_of
from freehold.interfaces.cli.opened_site import site_documents
from freehold.model.errors import FreeholdError
from freehold.orchestration.controller import make_site
from freehold.orchestration.controller import serve as run_site
from freehold.orchestration.opening import boot_artifacts, open_keys, open_log, open_vault, serving
from freehold.orchestration.store import Store
from freehold.provisioning.images.artifacts import Cache, Progress, Step, default_root
from freehold.provisioning.images.build import BaseArtifacts, build_base

logger = logging.getLogger("freehold")
CLONE_NEWNET = 0x40000000


@click.command()
@state_option
@click.option(
    "--lab",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Serve this lab, from inside its controller's network namespace.",
)
@click.option("--mirror", help="Debian mirror for image builds; default: the host's own apt sources.")
@click.option(
    "--kernel",
    type=click.Choice(list(FLAVOURS)),
    default="cloud",
    show_default=True,
    help="Debian kernel of agent and OS: cloud for virtual hardware, amd64 for real servers.",
)
@click.option("-v", "--verbose", is_flag=True, help="Say more.")
@output_option()
def serve(state: Path, lab: Path | None, mirror: str | None, kernel: str, verbose: bool, output: str) -> None:
    """Run the controller: engine, agent API, boot server and DHCP. Stop it with Ctrl-C; start it again at any time.

    With `-o json` it prints one object a line, `{"at", "level", "from", "message"}`; for a step of a build also `step`,
    `state` and `seconds`.

    \b
    Example:
      freehold serve --lab ./lab
      freehold serve -o json > serve.jsonl
    """
    progress = log_to(output, verbose)
    state = state.resolve()  # dnsmasq and others change their directory
    for chatty in ("aiosqlite", "asyncio", "freehold.provisioning.dhcp", "tuf"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    base = build_base(Cache(default_root(), progress), mirror=mirror, flavour=FLAVOURS[kernel])
    if lab is not None:
        facts = facts_of(lab)
        trust_lab(state, facts)
        enter_network_namespace(facts["controller_namespace"])
    with serving(state):
        import uvloop

        with contextlib.suppress(asyncio.CancelledError):
            uvloop.run(run(state, base, progress))


def log_to(output: str, verbose: bool) -> Progress:
    """What the controller has to tell goes to people on stderr, or as JSON Lines to stdout. Returns how the steps of a
    build are told."""
    level = logging.DEBUG if verbose else logging.INFO
    if output != "json":
        logging.basicConfig(level=level, format="%(asctime)s %(levelname).1s %(message)s", stream=sys.stderr)
        return show_step
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLine())
    logging.basicConfig(level=level, handlers=[handler])

    def log_step(step: Step) -> None:
        if step.state != "cached":
            logger.info("%s: %s", step.name, step.state, extra={"step": step})

    return log_step


class JsonLine(logging.Formatter):
    """A log record as one JSON object; `at` is UNIX seconds."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": record.created,
            "level": record.levelname.lower(),
            "from": record.name,
            "message": record.getMessage(),
        }
        if (step := getattr(record, "step", None)) is not None:
            line |= {"step": step.name, "state": step.state, "seconds": step.seconds}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def trust_lab(state: Path, facts: dict[str, Any]) -> None:
    """Trust the lab's TPM vendor, as an operator decides to trust a real one."""
    roots = state / "tpm-roots"
    roots.mkdir(parents=True, exist_ok=True)
    for certificate in map(Path, facts["tpm_vendor_certificates"]):
        shutil.copy(certificate, roots / f"lab-{certificate.name}")


def enter_network_namespace(name: str) -> None:
    """setns(2) for this thread and all that it starts; Python has it from 3.12 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        descriptor = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise FreeholdError(f"the lab's namespace {name} is not there", remedy="start it: `freehold lab up`") from None
    try:
        if libc.setns(descriptor, CLONE_NEWNET) != 0:
            raise FreeholdError(
                f"cannot enter the network namespace {name}: {os.strerror(ctypes.get_errno())}",
                remedy="run as root: `sudo freehold serve --lab …`",
            )
    finally:
        os.close(descriptor)


async def run(state: Path, base: BaseArtifacts, progress: Progress) -> None:
    stopping = asyncio.current_task()
    assert stopping is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.cancel)
    store = await Store.open(state / "freehold.db")
    try:
        name, spec, networks = await site_documents(store)
        vault = open_vault(state)
        keys = await asyncio.to_thread(open_keys, state, vault, name, spec, networks)
        if keys.root is None:
            logger.warning("no root ceremony was held: the issuing CAs vouch for themselves (docs/key-ceremony.md)")
        (state / "tpm-roots").mkdir(exist_ok=True)
        with await asyncio.to_thread(open_log, state, name, keys) as log:
            boot = await asyncio.to_thread(boot_artifacts, state, name, spec, keys, base, progress)
            site = make_site(state, spec, networks, vault, keys, boot)
            await run_site(site, store, log)
    finally:
        await store.close()


def show_step(step: Step) -> None:
    """One line of a build's progress."""
    took = f" ({step.seconds:.1f} s)" if step.state == "done" else ""
    if step.state != "cached":
        click.echo(f"  {step.name}: {step.state}{took}", err=True)
