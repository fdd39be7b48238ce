"""`freehold verify` and `freehold evidence`: check what a site handed over; export and read its transparency log."""

import hashlib
from collections import Counter
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import click

from freehold.evidence import (
    Artifacts,
    BundleRefused,
    CertificateVerification,
    LogView,
    Predicate,
    Statement,
    dsse,
    export,
    verify_bundle,
    verify_certificate,
)
from freehold.evidence.log import CHECKPOINT
from freehold.evidence.verify import read_bundle
from freehold.interfaces.cli.common import output_option, printable, show_json, show_page, show_table, state_option
from freehold.model.errors import FreeholdError
from freehold.orchestration.opening import evidence_key, open_vault, origin_of
from freehold.root_of_trust.keys import SiteKeys

MAX_CERTIFICATE = 16 << 20


class RefusedError(FreeholdError):
    """The verifier's no: which file, and which check. The process ends with 3."""

    exit_code = 3

    def __init__(self, refused: BundleRefused) -> None:
        self.file, self.check = refused.file, refused.check
        super().__init__(refused.what, expected=refused.expected, remedy=refused.remedy)

    def to_dict(self) -> dict[str, str | None]:
        return super().to_dict() | {"file": self.file, "check": self.check}


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The site's evidence key (PEM, keys/evidence.pub of the site), got by another way than the bundle.",
)
@output_option()
def verify(bundle: Path, key: Path | None, output: str) -> None:
    """Verify an evidence BUNDLE offline, or one certificate out of its certificates/. Exit code 3: refused.

    Without --key the bundle vouches for itself: then compare the fingerprint that is printed with the site's own.

    \b
    Example:
      freehold verify state/bundles/run-1 --key evidence.pub
      freehold verify certificates/41.json --key evidence.pub
    """
    trusted = key.read_bytes() if key else None
    try:
        if bundle.is_file():
            _verify_certificate(bundle, trusted, output)
        else:
            _verify_bundle(bundle, trusted, output)
    except BundleRefused as refused:
        raise RefusedError(refused) from refused


def _verify_bundle(path: Path, trusted: bytes | None, output: str) -> None:
    found = verify_bundle(path, trusted)
    if output == "json":
        show_json({"verified": True, **_plain(found)})
        return
    for check in found.checks:
        click.echo(f"ok  {printable(check)}")
    kinds = ", ".join(f"{count} {kind}" for kind, count in found.statements.items()) or "none"
    click.echo(f"log:          {printable(found.origin)}, {found.entries} entries, root {found.root}")
    click.echo(f"statements:   {kinds}")
    click.echo(f"certificates: {found.certificates} of destruction")
    click.echo(f"files:        {found.files}")
    click.echo(f"key:          {found.key_fingerprint} ({'pinned' if found.key_pinned else 'NOT pinned'})")
    if found.key_pinned:
        click.echo("verified")
    else:
        click.echo("consistent, but nobody vouches for its key: compare the fingerprint, or give --key")


def _verify_certificate(path: Path, trusted: bytes | None, output: str) -> None:
    if trusted is None:
        raise click.UsageError("a certificate alone holds no key: give the site's evidence key with --key")
    if path.stat().st_size > MAX_CERTIFICATE:
        raise BundleRefused(str(path), "format", f"larger than {MAX_CERTIFICATE} bytes")
    found = verify_certificate(path.read_bytes(), trusted)
    if output == "json":
        show_json({"verified": True, **_plain(found)})
        return
    click.echo(f"ok  destruction certificate, signed by {found.key_fingerprint} (pinned)")
    click.echo(f"ok  entry {found.index} of {found.size} in {printable(found.origin)}")
    for subject in found.statement.subject:
        click.echo(f"subject: {printable(subject.name)}")
    for name, value in found.statement.predicate.items():
        click.echo(f"  {printable(f'{name}: {value}')}")
    click.echo("verified")


def _plain(found: Any) -> dict[str, Any]:
    fields = {name: getattr(found, name) for name in found.__struct_fields__}
    if isinstance(found, CertificateVerification):
        fields["statement"] = {"subject": found.statement.subject, "predicate": found.statement.predicate}
    return fields


@click.group()
def evidence() -> None:
    """The site's transparency log: read it, or export it as a bundle that anybody can verify offline.

    \b
    Example:
      freehold evidence log --server server-1
      freehold evidence export --out ./bundle
    """


@evidence.command("export")
@click.option("--out", type=click.Path(path_type=Path), help="The bundle's directory; default: STATE/bundles/<time>.")
@state_option
@output_option()
def export_bundle(out: Path | None, state: Path, output: str) -> None:
    """Write the whole log, public keys and a signed list of all files as a bundle. A running controller goes on.

    \b
    Example:
      freehold evidence export --out ./bundle && freehold verify ./bundle --key state/keys/evidence.pub
    """
    evidence_key(state)  # refuses a directory that is no site, before a vault is made there
    now = datetime.now(UTC)
    keys = SiteKeys.load(state, open_vault(state))
    site = keys.identity.site_name
    view = LogView.open(state / "evidence", keys.evidence.public_key, origin_of(site))
    claims = [(entry.index, _claim(entry.envelope)) for entry in view.entries()]
    report = {
        "site": site,
        "exported": f"{now:%Y-%m-%dT%H:%M:%SZ}",
        "entries": view.size,
        "statements": dict(Counter(each.kind.value for _, each in claims)),
        "waivers": [{"entry": index, **each.predicate} for index, each in claims if each.kind is Predicate.WAIVER],
    }
    public = {
        name.partition(".")[0]: pem for name, pem in keys.public_files().items() if name.endswith((".pem", ".pub"))
    }
    kept = Artifacts(state / "artifacts").all()
    target = out or state / "bundles" / f"{site}-{now:%Y%m%dT%H%M%SZ}"
    target.parent.mkdir(parents=True, exist_ok=True)
    export(view, target, keys.evidence, report=report, artifacts=kept, public_keys=public)
    if output == "json":
        show_json({"bundle": str(target), "entries": view.size, "key_fingerprint": keys.evidence.key_id})
        return
    click.echo(f"wrote {target}: {view.size} entries, key {keys.evidence.key_id}")
    click.echo(f"check it: freehold verify {target} --key {state / 'keys' / 'evidence.pub'}")


@evidence.command("log")
@click.option("--server", help="Only statements about this server.")
@click.option("--since", "start", type=click.IntRange(min=0), default=0, metavar="N", help="Begin with entry N.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Length of a page.")
@click.option(
    "--bundle",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Read the log of a bundle instead; it is verified first.",
)
@state_option
@output_option()
def show_log(server: str | None, start: int, limit: int, bundle: Path | None, state: Path, output: str) -> None:
    """List the statements of the log; every entry is checked against the signed checkpoint first.

    \b
    Example:
      freehold evidence log --server server-1 --limit 20
      freehold evidence log --bundle ./bundle -o json
      freehold evidence log --since 100 -o json
    """
    if bundle is not None:
        entries = iter(bundle_entries(bundle, start))
    else:
        entries = ((entry.index, entry.envelope) for entry in open_view(state).entries(start))
    parsed = ((index, hashlib.sha256(envelope), _claim(envelope)) for index, envelope in entries)
    wanted = [*islice((each for each in parsed if about(each[2], server)), limit + 1)]
    page = wanted[:limit]
    following = wanted[limit][0] if len(wanted) > limit else None
    if output == "json":
        items = [
            {"index": at, "kind": claim.kind.value, "subject": claim.subject, "predicate": claim.predicate,
             "envelope_sha256": digest.hexdigest()}
            for at, digest, claim in page
        ]  # fmt: skip
        show_page("--since", items, following, output)
        return
    rows = [(at, c.kind.value, ", ".join(each.name for each in c.subject), summary(c)) for at, _, c in page]
    show_table(("ENTRY", "KIND", "SUBJECT", "CLAIM"), rows)
    show_page("--since", [], following, output)


def open_view(state: Path) -> LogView:
    """The site's log, read-only. Its name stands in its checkpoint, and counts only once the signature is verified."""
    key, directory = evidence_key(state), state / "evidence"
    path = directory / CHECKPOINT
    origin = path.read_bytes().partition(b"\n")[0].decode("utf-8", "replace") if path.exists() else "unknown"
    return LogView.open(directory, key, origin)


def bundle_entries(bundle: Path, start: int) -> list[tuple[int, bytes]]:
    """The entries of a bundle's log from `start`. Raises `RefusedError` unless the whole bundle verifies."""
    try:
        _, envelopes = read_bundle(bundle)
    except BundleRefused as refused:
        raise RefusedError(refused) from refused
    return [*enumerate(envelopes)][start:]


def _claim(envelope: bytes) -> Statement:
    return Statement.from_bytes(dsse.Envelope.from_bytes(envelope).payload)


def about(claim: Statement, server: str | None) -> bool:
    return server is None or any(subject.name == f"server/{server}" for subject in claim.subject)


def summary(claim: Statement, width: int = 100) -> str:
    """The plain values of the predicate, in one line."""
    plain = {name: value for name, value in claim.predicate.items() if isinstance(value, str | int | float | bool)}
    text = " ".join(f"{name}={value}" for name, value in plain.items() if name != "server")
    return text if len(text) <= width else f"{text[: width - 1]}…"
