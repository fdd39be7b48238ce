"""`freehold pki ceremony`: the root of a site, on a machine that is not the site's, under two of its custodians."""

from pathlib import Path

import click
from cryptography import x509

from freehold.interfaces.cli.common import output_option, show_json
from freehold.root_of_trust import ceremony as rites
from freehold.root_of_trust import pki
from freehold.root_of_trust.custodians import CustodyRefused, Share


class PassphraseFile(click.ParamType[tuple[str, Path]]):
    """`alice=alice.txt`"""

    name = "NAME=FILE"

    def convert(
        self, value: str | tuple[str, Path], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Path]:
        if isinstance(value, tuple):
            return value
        name, found, file = value.partition("=")
        if not found or not Path(file).is_file():
            self.fail(f"{value!r} is not a custodian and a file, as in alice=alice.txt", param, ctx)
        return name, Path(file)


passphrase_files = click.option(
    "--passphrase-file",
    "files",
    type=PassphraseFile(),
    multiple=True,
    help="Read a custodian's passphrase from a file; without it they are asked, one after the other.",
)


share_files = click.option(
    "--share",
    "shares",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    required=True,
    help="Share file of a custodian; give two.",
)


@click.group()
def ceremony() -> None:
    """Make the site's root, and have it issue: on an offline machine, with the custodians in the room. Its private key
    is on no disk in the clear; any two custodians with their share files open it.

    \b
    Example:
      freehold pki ceremony init root --site oslo --custodian alice --custodian bob --custodian carol
      freehold pki ceremony issue root bmc-ca.csr --share alice.share --share bob.share --out bmc-ca.pem
    """


@ceremony.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--site", required=True, help="Name of the site, as in its Site document.")
@click.option("--custodian", "custodians", multiple=True, required=True, help="Once for each of three people or more.")
@passphrase_files
@output_option()
def init(
    directory: Path, site: str, custodians: tuple[str, ...], files: tuple[tuple[str, Path], ...], output: str
) -> None:
    """Make the root in a new DIRECTORY: certificate, sealed key, and one share file for each custodian.

    \b
    Example:
      freehold pki ceremony init root --site oslo --custodian alice --custodian bob --custodian carol
    """
    root = rites.make_root(directory, site, _new_passphrases(custodians, files), pki.utc_now())
    _show_root(directory, root, custodians, output)


@ceremony.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("into", type=click.Path(file_okay=False, path_type=Path))
@share_files
@click.option("--custodian", "custodians", multiple=True, required=True, help="Once for each of three people or more.")
@passphrase_files
@output_option()
def reshare(
    directory: Path,
    into: Path,
    shares: tuple[Path, ...],
    custodians: tuple[str, ...],
    files: tuple[tuple[str, Path], ...],
    output: str,
) -> None:
    """Give the root in DIRECTORY to other custodians, in the new directory INTO: one left, or lost a share. Destroy the
    old directory and the old shares: together they still open it. Whoever stays takes another passphrase.

    \b
    Example:
      freehold pki ceremony reshare root root-2 --share alice.share --share bob.share \\
        --custodian alice --custodian bob --custodian dave
    """
    opened = _opened(shares, files)
    rites.reshare(directory, into, opened, _new_passphrases(custodians, files))
    _show_root(into, rites.root_certificate(into), custodians, output)


def _show_root(directory: Path, root: x509.Certificate, custodians: tuple[str, ...], output: str) -> None:
    shares = {name: str(directory / f"{name}{rites.SHARE}") for name in sorted(custodians)}
    if output == "json":
        show_json({"root": str(directory / rites.CERTIFICATE), "sha256": pki.sha256(root), "shares": shares})
        return
    click.echo(f"{root.subject.rfc4514_string()}, valid until {root.not_valid_after_utc:%Y-%m-%d}")
    click.echo(f"SHA-256 {pki.sha256(root)}")
    for name, share in shares.items():
        click.echo(f"{name} takes {share} away, and nobody else has it")
    click.echo(f"copy {directory / rites.CERTIFICATE} and {directory / rites.SEALED_KEY} to two media that you keep")


@ceremony.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("request", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@share_files
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The issuing CA (PEM).")
@passphrase_files
@output_option()
def issue(
    directory: Path,
    request: Path,
    shares: tuple[Path, ...],
    out: Path,
    files: tuple[tuple[str, Path], ...],
    output: str,
) -> None:
    """Issue, or renew, the issuing CA that REQUEST asks for. What it will speak for is shown before the custodians type
    their passphrases: typing them is the consent.

    \b
    Example:
      freehold pki ceremony issue root bmc-ca.csr --share alice.share --share bob.share --out bmc-ca.pem
    """
    asked = _request(request)
    zone = [str(network) for network in pki.requested_zone(asked)]
    click.echo(f"{asked.subject.rfc4514_string()}, key SHA-256 {pki.spki_sha256(asked)}", err=True)
    click.echo(f"will speak for {', '.join(zone)}, for no DNS name, and make no other CA", err=True)
    issued = rites.issue(directory, asked, _opened(shares, files), pki.utc_now())
    out.write_bytes(pki.pem(issued))
    if output == "json":
        show_json({"certificate": str(out), **pki.claim(issued, "issuing CA", zone=zone)})
    else:
        click.echo(f"wrote {out}: SHA-256 {pki.sha256(issued)}, valid until {issued.not_valid_after_utc:%Y-%m-%d}")
        click.echo(f"carry it to the site with {directory / rites.CERTIFICATE}, and install it there")


class Serial(click.ParamType[int]):
    """A certificate's serial number, as `freehold pki list` shows it."""

    name = "SERIAL"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return int(value, 16)
        except ValueError:
            self.fail(f"{value!r} is not a serial number in hexadecimal digits", param, ctx)


@ceremony.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("serials", nargs=-1, required=True, type=Serial())
@share_files
@passphrase_files
@output_option()
def revoke(
    directory: Path,
    serials: tuple[int, ...],
    shares: tuple[Path, ...],
    files: tuple[tuple[str, Path], ...],
    output: str,
) -> None:
    """Put issuing CAs of this root on its revocation list, root.crl in DIRECTORY; it forgets nothing, and is signed for
    400 days. Each SERIAL as `freehold pki replace` and `freehold pki list` show it. Without new ones, name an old one.

    \b
    Example:
      freehold pki ceremony revoke root 5e0c41 --share alice.share --share bob.share
    """
    click.echo(f"will revoke {', '.join(f'{serial:x}' for serial in serials)}", err=True)
    made = rites.revoke(directory, serials, _opened(shares, files), pki.utc_now())
    path, gone = directory / rites.CRL, [f"{serial:x}" for serial in pki.listed(made)]
    if output == "json":
        show_json({"crl": str(path), "revoked": gone})
    else:
        click.echo(f"wrote {path}: {len(gone)} revoked; copy it to both media, and carry it to the site")


def _request(path: Path) -> x509.CertificateSigningRequest:
    try:
        return x509.load_pem_x509_csr(path.read_bytes())
    except ValueError as error:
        raise pki.CertificateError(
            f"{path} is not a certificate request: {error}", expected="what `freehold pki request` writes"
        ) from error


def _opened(paths: tuple[Path, ...], files: tuple[tuple[str, Path], ...]) -> list[tuple[bytes, str]]:
    held = [path.read_bytes() for path in paths]
    return [(share, _passphrase(Share.from_bytes(share).custodian, files)) for share in held]


def _new_passphrases(custodians: tuple[str, ...], files: tuple[tuple[str, Path], ...]) -> dict[str, str]:
    if len(set(custodians)) != len(custodians):
        raise click.UsageError("a custodian is named twice")
    return {name: _passphrase(name, files, confirm=True) for name in custodians}


def _passphrase(name: str, files: tuple[tuple[str, Path], ...], *, confirm: bool = False) -> str:
    for custodian, file in files:
        if custodian == name:
            return file.read_text().rstrip("\n")
    try:
        whose = f"{'New passphrase' if confirm else 'Passphrase'} of {name}"
        answer: str = click.prompt(whose, hide_input=True, confirmation_prompt=confirm, err=True)
    except click.Abort:
        raise CustodyRefused(f"{name} gave no passphrase; nothing was done") from None
    return answer
