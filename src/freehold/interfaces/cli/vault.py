"""`freehold vault`: which key opens the site's secrets, who can recover them, and whether they are as they were.

No command prints a secret, and none takes one as an argument: PINs, passphrases and secret ids come from files.
"""

import logging
import sys
import time
from pathlib import Path
from typing import Any

import click
import msgspec

from freehold.interfaces.cli.common import output_option, show_json, show_table, since, state_option
from freehold.interfaces.cli.vault_options import KeyOptions, key_options, people_option
from freehold.model.errors import FreeholdError
from freehold.model.findings import Finding
from freehold.orchestration.opening import serving
from freehold.root_of_trust import custody, recovery, site_vault
from freehold.root_of_trust.custody import KvPlace
from freehold.root_of_trust.vault import EmbeddedVault, VaultError, read_header
from freehold.root_of_trust.vault.audit import findings


class NoVault(FreeholdError):
    """There is none yet. Looking must not make one."""


@click.group()
def vault() -> None:
    """The site's secrets: which key opens them, and who can recover them. See docs/key-custody.md.

    \b
    Example:
      freehold vault init --kek tpm --recovery alice=age1… --recovery bob=age1…
      freehold vault status
      freehold vault audit
    """
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)


@vault.command()
@key_options("file", "passphrase", "pkcs11", "tpm", "openbao", "openbao-kv")
@people_option
@state_option
@output_option()
def init(options: KeyOptions, people: dict[str, str], state: Path, output: str) -> None:
    """Make the vault of a new site. Tokens, TPMs and OpenBao's transit key need two people who can recover.

    Errors: a vault that is there already; fewer than two people; a token that is missing, has another PIN or is near
    its lock; a TPM or server out of reach. Nothing is left half-made: repeat the same command.

    \b
    Example:
      freehold vault init --kek tpm --recovery alice=age1… --recovery bob=age1… --recovery carol=age1…
      freehold vault init --kek pkcs11 --module LIB.so --token T --recovery alice=age1… --recovery bob=age1…
      freehold vault init --kek openbao-kv --address https://bao.site:8200 --ca ca.pem --role-id … --mount freehold
    """
    with serving(state):
        if options.kek == "openbao-kv":
            site_vault.found_kv(state, KvPlace(options.server(), options.required("mount")), options.secret_id)
        else:
            site_vault.found(state, options.choice(state), people)
    _show(_facts(state), output)


@vault.command()
@state_option
@output_option()
def status(state: Path, output: str) -> None:
    """Which key opens the vault, whether it does now, and who can recover. Exit code 3: it does not open.

    Opening asks the token, TPM or server once; a PIN is tried once, and not if that could bring the token to its lock.

    \b
    Example:
      freehold vault status -o json
    """
    _require(state)
    facts = _facts(state)
    try:
        facts |= {"opens": True, "secrets": len(site_vault.open_vault(state).paths()), "error": None}
    except FreeholdError as error:
        facts |= {"opens": False, "secrets": None, "error": error.to_dict()}
        if output != "json":
            click.echo(f"freehold: {error}", err=True)
    _show(facts, output)
    raise click.exceptions.Exit(0 if facts["opens"] else 3)


@vault.command()
@key_options("file", "passphrase", "pkcs11", "tpm", "openbao")
@people_option
@state_option
@output_option()
def rekey(options: KeyOptions, people: dict[str, str], state: Path, output: str) -> None:
    """Give the vault another key, and new recovery halves. Without --recovery, the people stay the same.

    The old key opens the vault until the new one does: a crash at any point leaves one of them. Stop the controller
    first. Errors: as `init`, and a record that cannot be read (`vault audit` names it): then nothing is changed.

    \b
    Example:
      freehold vault rekey --kek tpm --recovery alice=age1… --recovery bob=age1…
    """
    _require(state)
    with serving(state):
        opened = site_vault.open_vault(state)
        if not isinstance(opened, EmbeddedVault):
            raise VaultError(
                "this vault is in OpenBao, under OpenBao's own keys",
                remedy="`bao operator rotate` and `bao operator rekey` change those",
            )
        site_vault.rekey(state, opened, options.choice(state), people or None)
    _show(_facts(state), output)


@vault.command()
@click.option(
    "--identity",
    "identities",
    multiple=True,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="One person's age identity file; give it twice, for two people.",
)
@click.option("--yes", is_flag=True, help="The recovery key was compared with what people wrote down; do not ask.")
@key_options("file", "passphrase", "pkcs11", "tpm", "openbao")
@people_option
@state_option
@output_option()
def recover(
    identities: tuple[Path, ...], yes: bool, options: KeyOptions, people: dict[str, str], state: Path, output: str
) -> None:
    """Two people open a vault whose key is lost, and give it another key. New recovery halves are made, too.

    Errors: one person, or people who are not of this vault; a vault without recovery; a header or a record that was
    changed. Then nothing is changed.

    \b
    Example:
      freehold vault recover --identity alice.age --identity bob.age --kek tpm
    """
    _require(state)
    texts = [recovery.read_identity(path.read_text()) for path in identities]
    with serving(state):
        opened = site_vault.recover(state, texts)
        _compare(opened, yes)
        site_vault.rekey(state, opened, options.choice(state), people or None)
    _show(_facts(state), output)


@vault.command()
@state_option
@output_option()
def audit(state: Path, output: str) -> None:
    """Read and check every record: path, version, age, key, recovery; never a secret. Exit code 3: there are findings.

    Finds records that were changed, moved, renamed or put there. A record that was taken away leaves nothing to find,
    and an older copy of the whole vault is as good as the vault.

    \b
    Example:
      freehold vault audit
      freehold vault audit -o json
    """
    _require(state)
    reports = site_vault.open_vault(state).audit()
    facts = _facts(state)
    people = len(facts["recovery"]["people"]) if facts["recovery"] else 0
    ours = facts["kind"] != "openbao-kv"
    found = list(findings(facts["kind"], people if ours else None, reports, site_vault.stale_key_files(state)))
    if output == "json":
        show_json({"records": reports, "findings": found})
    else:
        now = time.time()
        rows = [
            (each.path, each.version, since(each.at, now), each.kek_id or "-", _yes(each.recoverable))
            for each in reports
        ]
        show_table(("PATH", "VERSION", "AGE", "KEY", "RECOVERABLE"), rows)
        _show_findings(found)
    raise click.exceptions.Exit(3 if found else 0)


def _require(state: Path) -> None:
    if not site_vault.exists(state):
        raise NoVault(
            f"there is no vault in {state}",
            remedy="say where the site is with --state (or FREEHOLD_STATE), or make one: `freehold vault init`",
        )


def _compare(opened: EmbeddedVault, yes: bool) -> None:
    """The one thing that a thief who replaced the whole vault cannot copy: people have it on paper."""
    assert opened.header.recovery is not None
    click.echo(f"recovery key: {opened.header.recovery.recipient}", err=True)
    if not yes and not click.confirm("Is that what you wrote down when the vault was made?", err=True):
        raise VaultError("the recovery key is not the one that was written down; nothing was done",
                         remedy="this is another vault: restore yours from a copy")  # fmt: skip


def _facts(state: Path) -> dict[str, Any]:
    """What is public: nothing here needs a key."""
    place = custody.read_place(state / custody.CUSTODY)
    if isinstance(place, KvPlace):
        return {**msgspec.to_builtins(place), "key_id": None, "format": None, "recovery": None}
    header = read_header(site_vault.directory_of(state))
    described = msgspec.to_builtins(custody.place_of(state, header.kek_id))
    known = {name: value for name, value in described.items() if name not in ("public", "private")}
    shown = header.recovery and {"key": header.recovery.recipient, "people": header.recovery.people}
    return {**known, "format": header.format, "recovery": shown}


def _show(facts: dict[str, Any], output: str) -> None:
    if output == "json":
        show_json(facts)
        return
    shown = [f"{name} {facts[name]}" for name in ("kind", "module", "token", "file", "mount") if name in facts]
    lines = [("kept by", ", ".join(shown)), ("key", facts["key_id"] or "OpenBao's own")]
    if shared := facts["recovery"]:
        lines += [("recovery", f"any two of {', '.join(shared['people'])}")]
        lines += [("recovery key", f"{shared['key']} (write it down: it is compared at a recovery)")]
    else:
        lines += [("recovery", "nobody" if facts["key_id"] else "OpenBao's")]
    if "opens" in facts:
        lines += [("opens", f"yes, {facts['secrets']} secrets" if facts["opens"] else "NO")]
    for name, value in lines:
        click.echo(f"{name + ':':<14}{value}")


def _show_findings(found: list[Finding]) -> None:
    for each in found:
        click.echo(f"{each.severity.upper()} {each.kind} ({each.subject}): {each.detail}")
        click.echo(f"    what to do: {each.remedy}")


def _yes(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "by OpenBao"}[value]
