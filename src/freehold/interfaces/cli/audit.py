"""`freehold audit`: each BMC, read with the vaulted credential and probed from outside; of those that are not ours yet,
that they were not audited."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import click
import msgspec

from freehold.interfaces.cli.common import output_option, run, show_json, show_table, site_store, state_option
from freehold.model.errors import FreeholdError
from freehold.model.findings import Finding, Severity
from freehold.orchestration import key_replacements, revocations
from freehold.orchestration.auditing import audit_server
from freehold.orchestration.opening import open_vault
from freehold.orchestration.store import Store
from freehold.orchestration.view import ServerView
from freehold.out_of_band.audit import Audit
from freehold.root_of_trust.secure_boot_keys import newest_generation
from freehold.root_of_trust.vault import Vault

logger = logging.getLogger(__name__)

AT_ONCE = 8
"""Servers that are audited at the same time."""
QUIET_SECONDS = 2.0
FOUND, FAILED = 3, 1


class Outcome(msgspec.Struct, frozen=True):
    """Of one server: the report, or why there is none."""

    server: str
    report: Audit | None = None
    error: FreeholdError | None = None

    def to_dict(self) -> dict[str, object]:
        return {
            "server": self.server,
            "clean": self.report is not None and self.report.clean,
            "findings": self.report.findings if self.report else (),
            "error": self.error.to_dict() if self.error else None,
        }

    def rows(self) -> list[tuple[str, ...]]:
        if self.error is not None:
            return [(self.server, "not audited", self.error.what, "", self.error.remedy or "")]
        findings = self.report.findings if self.report else ()
        if not findings:
            return [(self.server, "clean", "", "", "")]
        return [(self.server, *finding_row(each)) for each in findings]


@click.command()
@click.argument("servers", nargs=-1, metavar="[SERVER]...")
@click.option(
    "--lab",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Audit from inside this lab's controller, as `serve --lab` does.",
)
@click.option(
    "--probe-defaults",
    is_flag=True,
    help="Also try the vendor's documented factory credentials, one attempt each, below the BMC's lockout threshold.",
)
@state_option
@output_option()
def audit(servers: tuple[str, ...], lab: Path | None, probe_defaults: bool, state: Path, output: str) -> None:
    """Audit how open the BMCs of all SERVERs (or of those named) stand: accounts, services, SNMP, host interface, cloud
    connectors, TLS versions, IPMI, known-vulnerable firmware, shared passwords. What the controller found about the
    site itself (its depot) stands before them.

    What the BMC says is read over Redfish with the credential in the vault; what its ports answer is probed, without
    any log-in, so that no account can be locked out; --probe-defaults does log in, below the BMC's threshold and never
    as our own account. Run it on the controller: other hosts do not reach the BMCs.
    Ends with 0 if every server was audited and there are no warnings, with 3 if there are warnings, with 1 if a server
    could not be audited, or is not ours yet: it is listed as not audited, with why.

    \b
    Example:
      freehold audit
      freehold audit server-1 --output json
      freehold audit --probe-defaults
      sudo freehold audit --lab ./lab
    """
    if lab is not None:
        from freehold.interfaces.cli.lab import facts_of
        from freehold.interfaces.cli.serve import enter_network_namespace

        enter_network_namespace(facts_of(lab)["controller_namespace"])
    outcomes, about_site = run(_audit_all(state, servers, probe_defaults))
    if output == "json":
        show_json({"site": about_site, "servers": [each.to_dict() for each in outcomes]})
    else:
        headers = ("SERVER", "SEVERITY", "FINDING", "EVIDENCE", "REMEDY")
        rows = [("(site)", *finding_row(each)) for each in about_site]
        show_table(headers, [*rows, *(row for each in outcomes for row in each.rows())])
        click.echo(summary(outcomes, about_site), err=True)
    raise click.exceptions.Exit(exit_code(outcomes, about_site))


def finding_row(finding: Finding) -> tuple[str, ...]:
    return finding.severity, f"{finding.kind}: {finding.detail}", finding.evidence, finding.remedy


def exit_code(outcomes: Sequence[Outcome], about_site: Sequence[Finding]) -> int:
    if any(each.report is None for each in outcomes):
        return FAILED
    clean = all(each.report is not None and each.report.clean for each in outcomes)
    return 0 if clean and all(each.severity is Severity.INFO for each in about_site) else FOUND


def summary(outcomes: Sequence[Outcome], about_site: Sequence[Finding]) -> str:
    """`3 servers audited: 2 critical, 5 warning, 1 info; 1 not audited`."""
    found = [finding.severity for each in outcomes if each.report for finding in each.report.findings]
    found += [each.severity for each in about_site]
    counts = ", ".join(f"{found.count(severity)} {severity}" for severity in reversed(Severity) if severity in found)
    lost = sum(each.report is None for each in outcomes)
    audited = len(outcomes) - lost
    text = f"{audited} server{'' if audited == 1 else 's'} audited: {counts or 'no findings'}"
    return text + (f"; {lost} not audited" if lost else "")


async def _audit_all(
    state: Path, names: tuple[str, ...], probe_defaults: bool
) -> tuple[list[Outcome], tuple[Finding, ...]]:
    """Of each server, and what the controller found about the site."""
    async with site_store(state) as store:
        about_site = await store.site.findings()
        views = await _named(store, names) if names else await _all(store)
    outcomes = {view.name: Outcome(view.name, error=_not_ours(view)) for view in views}
    ours = [view for view in views if view.facts.bmc_credential_committed]
    if ours:
        vault = await asyncio.to_thread(open_vault, state)
        turn = asyncio.Semaphore(AT_ONCE)
        done: list[str] = []

        async def one(view: ServerView) -> None:
            async with turn:
                outcomes[view.name] = await _one(vault, view, probe_defaults)
            done.append(view.name)

        async with _progress(done, len(ours)):
            await asyncio.gather(*map(one, ours))
    return list(outcomes.values()), about_site


async def _one(vault: Vault, view: ServerView, probe_defaults: bool) -> Outcome:
    try:
        report = await audit_server(vault, view, probe_defaults=probe_defaults)
        more = revocations.audited(view, await asyncio.to_thread(newest_generation, vault))
        return Outcome(view.name, report=report.and_also((*more, *key_replacements.audited(view))))
    except FreeholdError as error:
        return Outcome(view.name, error=error)
    except Exception as error:
        # One BMC that answers what nobody has thought of must not keep the others from being audited.
        logger.exception("%s: the audit failed", view.name)
        what = f"the audit failed: {type(error).__name__}: {error}"
        remedy = "nothing can be said of it; report this, with what the BMC answers"
        return Outcome(view.name, error=FreeholdError(what, server=view.name, remedy=remedy))


def _not_ours(view: ServerView) -> FreeholdError:
    status = view.status
    return FreeholdError(
        f"its BMC is not ours yet: {status.state}, {status.waiting_for or status.reason}",
        server=view.name,
        remedy=f"wait until `freehold serve` has taken it over, or see why not: `freehold describe server {view.name}`",
    )


async def _named(store: Store, names: tuple[str, ...]) -> list[ServerView]:
    for name in names:
        await store.get("Server", name)  # raises for a name that is not declared
    return [view for name in dict.fromkeys(names) if (view := await store.ledger.view(name)) is not None]


async def _all(store: Store) -> list[ServerView]:
    """Every declared server; those that are not ours yet too, so that nobody takes the list for whole without them."""
    found: list[ServerView] = []
    after = ("Server", "")
    while page := await store.list_resources("Server", after=after):
        for each in page:
            if (view := await store.ledger.view(each.resource.name)) is not None:
                found.append(view)
        after = page[-1].resource.key
    if not found:
        raise FreeholdError("there is nothing to audit: no server is declared", remedy="`freehold apply` one")
    return found


@asynccontextmanager
async def _progress(done: list[str], total: int) -> AsyncIterator[None]:
    """A line on stderr whenever `QUIET_SECONDS` have passed."""

    async def say() -> None:
        began = time.monotonic()
        while True:
            await asyncio.sleep(QUIET_SECONDS)
            click.echo(f"audited {len(done)} of {total} after {time.monotonic() - began:.0f} s", err=True)

    task = asyncio.create_task(say())
    try:
        yield
    finally:
        task.cancel()
