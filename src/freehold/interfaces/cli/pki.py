"""`freehold pki`: the site's certificate authorities; what they issued, and what is revoked."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from freehold.evidence import Predicate, Statement, dsse
from freehold.interfaces.cli.ceremony import ceremony
from freehold.interfaces.cli.common import (
    output_option,
    show_json,
    show_page,
    show_table,
    state_option,
)
from freehold.interfaces.cli.evidence import open_view
from freehold.interfaces.cli.opened_site import existing_vault
from freehold.interfaces.cli.replacing import replace_authority, vault_and_zone
from freehold.model.errors import FreeholdError
from freehold.root_of_trust import authorities
from freehold.root_of_trust import pki as x509_of_site

ROLE = click.Choice(list(authorities.NAMES))
pem_file = click.Path(exists=True, dir_okay=False, path_type=Path)
out_file = click.Path(dir_okay=False, path_type=Path)


class UnknownSerial(FreeholdError):
    """The BMC CA has issued no certificate of that number."""


@click.group()
def pki() -> None:
    """The site's certificate authorities. The BMC CA and the agent CA issue by themselves; a root that they do not have
    the key of can certify them (`freehold pki ceremony`), and says for which networks each may speak.

    \b
    Example:
      freehold pki request bmc --out bmc-ca.csr
      freehold pki install bmc bmc-ca.pem --root root.pem
      freehold pki list
      freehold pki revoke 5e0c41
      freehold pki replace bmc --reason "its key was stolen"
    """


pki.add_command(ceremony)
pki.add_command(replace_authority)


@pki.command()
@click.argument("role", type=ROLE)
@click.option("--out", type=out_file, required=True, help="Where to write the request (PEM).")
@state_option
@output_option()
def request(role: str, out: Path, state: Path, output: str) -> None:
    """Ask the root to certify the site's BMC CA, or its agent CA, for the networks that are declared now.

    \b
    Example:
      freehold pki request bmc --out bmc-ca.csr
    """
    vault, zone = vault_and_zone(state, role)
    out.write_bytes(authorities.request(vault, role, zone))
    if output == "json":
        show_json({"request": str(out), "zone": [str(network) for network in zone]})
    else:
        click.echo(f"wrote {out}: the {_title(role)} CA asks to speak for {', '.join(map(str, zone))}")
        click.echo("carry it to the root: `freehold pki ceremony issue`")


@pki.command()
@click.argument("role", type=ROLE)
@click.argument("certificate", type=pem_file)
@click.option("--root", type=pem_file, required=True, help="The root's certificate (PEM).")
@click.option("--crl", type=pem_file, help="The root's revocation list (PEM); needed for a CA that gets another key.")
@state_option
@output_option()
def install(role: str, certificate: Path, root: Path, crl: Path | None, state: Path, output: str) -> None:
    """Take in what the root issued. The CA keeps its key, so what it has issued stays valid; unless the certificate is
    for the next key, which `freehold pki replace` made: that takes the CA's place. Compare the root's fingerprint with
    the one that was read out at the ceremony.

    \b
    Example:
      freehold pki install bmc bmc-ca.pem --root root.pem
      freehold pki install bmc bmc-ca-2.pem --root root.pem --crl root.crl
    """
    vault = existing_vault(state)
    now, listed = x509_of_site.utc_now(), crl.read_bytes() if crl is not None else None
    authorities.install(state, vault, role, certificate.read_bytes(), root.read_bytes(), now, listed)
    claim = next(each for each in authorities.own_claims(vault) if each["purpose"] == f"{_title(role)} CA")
    if output == "json":
        show_json(claim)
    else:
        click.echo(f"installed {claim['subject']}, valid until {claim['not_after']}")
        click.echo(f"root SHA-256 {claim['root']}")
        click.echo("restart `freehold serve` to use it")


@pki.command("list")
@state_option
@output_option()
def list_certificates(state: Path, output: str) -> None:
    """Every certificate that the site's CAs issued, as the evidence log has it, and whether it still counts. Those of
    agents live a day at most; what has ended is left to `freehold evidence log`.

    \b
    Example:
      freehold pki list
    """
    gone, now = authorities.revoked(existing_vault(state)), datetime.now(UTC)
    every = [claim | {"state": _state(claim, gone, now)} for claim in _issued(state)]
    rows = [row for row in every if row["purpose"] != "agent" or row["state"] == "valid"]
    if output != "json":
        cells = [(c["serial"], c["purpose"], c.get("server") or c["subject"], c["not_after"], c["state"]) for c in rows]
        show_table(("SERIAL", "PURPOSE", "FOR", "NOT AFTER", "STATE"), cells)
    show_page("", rows, None, output)


@pki.command()
@click.argument("serial")
@state_option
@output_option()
def revoke(serial: str, state: Path, output: str) -> None:
    """Revoke a BMC's certificate. If its BMC serves it at this moment, the server is quarantined at the next contact.

    \b
    Example:
      freehold pki revoke 5e0c41
    """
    vault = existing_vault(state)
    known = {claim["serial"]: claim for claim in _issued(state) if claim["purpose"] == "BMC"}
    if serial.lower() not in known:
        raise UnknownSerial(
            f"the BMC CA has issued no certificate {serial}", remedy="`freehold pki list` shows the serial numbers"
        )
    claim = known[serial.lower()]
    authorities.revoke(vault, [int(serial, 16)], x509_of_site.utc_now())
    if output == "json":
        show_json({"revoked": claim["serial"], "server": claim.get("server")})
    else:
        click.echo(f"revoked {claim['serial']} of {claim.get('server')}; it counts from the next contact on")


@pki.command()
@click.option("--out", type=out_file, required=True, help="Where to write the list (PEM).")
@state_option
@output_option()
def crl(out: Path, state: Path, output: str) -> None:
    """Write the BMC CA's revocation list, for other people's verifiers. The controller has it anyway.

    \b
    Example:
      freehold pki crl --out bmc-ca.crl
    """
    vault = existing_vault(state)
    out.write_bytes(authorities.bmc_revocation_list(vault, x509_of_site.utc_now()))
    revoked = [f"{serial:x}" for serial in authorities.revoked(vault)]
    if output == "json":
        show_json({"crl": str(out), "revoked": revoked})
    else:
        click.echo(f"wrote {out}: {len(revoked)} revoked")


def _issued(state: Path) -> list[dict[str, Any]]:
    statements = (
        Statement.from_bytes(dsse.Envelope.from_bytes(entry.envelope).payload) for entry in open_view(state).entries()
    )
    claims = (statement.predicate for statement in statements if statement.kind is Predicate.CERTIFICATE)
    return [claim for claim in claims if claim["event"] == "issued"]


def _state(claim: dict[str, Any], gone: dict[int, datetime], now: datetime) -> str:
    if claim["purpose"] == "BMC" and int(claim["serial"], 16) in gone:
        return "revoked"
    return "expired" if datetime.fromisoformat(claim["not_after"]) < now else "valid"


def _title(role: str) -> str:
    return {"bmc": "BMC"}.get(role, role)
