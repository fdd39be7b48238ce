"""Which TLS versions are really accepted: against servers that speak them, and against OpenSSL's own limits."""

import asyncio
import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from oob_support import Keys

from freehold.model.findings import Severity
from freehold.out_of_band import tls_versions
from freehold.out_of_band.tls_versions import VERSIONS, Outcome, TlsTrial, context_for, offers, probe_tls, tls_findings

A, R, U, N = Outcome.ACCEPTED, Outcome.REFUSED, Outcome.UNCLEAR, Outcome.NOT_OFFERED


@asynccontextmanager
async def speaking(tmp_path: Path, lowest: str, highest: str) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A TLS server of a range of versions: its address, and what it was sent after the handshakes."""
    context = Keys(tmp_path, "bmc").context()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version, context.maximum_version = VERSIONS[lowest], VERSIONS[highest]
    sent: list[bytes] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            sent.append(await reader.read(100))
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(note, "127.0.0.1", 0, ssl=context)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", sent
    finally:
        server.close()


def outcomes(trials: tuple[TlsTrial, ...]) -> list[Outcome]:
    return [trial.outcome for trial in trials]


@pytest.mark.parametrize(
    ("lowest", "highest", "expected"),
    [
        ("TLS 1.0", "TLS 1.3", [A, A, A, A]),
        ("TLS 1.0", "TLS 1.1", [A, A, R, R]),
        ("TLS 1.2", "TLS 1.3", [R, R, A, A]),
        ("TLS 1.3", "TLS 1.3", [R, R, R, A]),
    ],
)
async def test_what_is_accepted_is_found_and_nothing_is_sent(
    tmp_path: Path, lowest: str, highest: str, expected: list[Outcome]
) -> None:
    async with speaking(tmp_path, lowest, highest) as (address, sent):
        trials = await probe_tls(address)
    assert outcomes(trials) == expected, trials
    assert not any(sent)


async def test_a_server_that_just_closes_refuses() -> None:
    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(close, "127.0.0.1", 0)
    trials = await probe_tls(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    server.close()
    assert outcomes(trials) == [R, R, R, R]
    assert {trial.why for trial in trials} == {"the connection was closed in the handshake"}


async def test_a_server_that_is_silent_or_absent_is_unclear() -> None:
    hold = asyncio.Event()

    async def wait(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hold.wait()
        writer.close()

    server = await asyncio.start_server(wait, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    trials = await probe_tls(f"127.0.0.1:{port}", timeout=0.1)
    assert [(trial.outcome, trial.why) for trial in trials] == [(U, "no answer in 0.1 s")] * 4
    hold.set()
    server.close()
    await server.wait_closed()
    assert outcomes(await probe_tls(f"127.0.0.1:{port}")) == [U, U, U, U]


async def test_a_version_that_openssl_cannot_offer_is_not_called_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL says so only when it is to write its first message."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        strict = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        strict.check_hostname = False
        strict.options |= ssl.OP_NO_TLSv1
        strict.minimum_version = strict.maximum_version = ssl.TLSVersion.TLSv1
    assert not offers(strict)
    assert context_for("TLS 1.2") is not None
    monkeypatch.setattr(
        tls_versions, "context_for", lambda version: None if version == "TLS 1.0" else context_for(version)
    )
    async with speaking(tmp_path, "TLS 1.0", "TLS 1.3") as (address, _):
        trials = await probe_tls(address)
    assert trials[0] == TlsTrial(version="TLS 1.0", outcome=N, why=ssl.OPENSSL_VERSION)
    assert outcomes(trials)[1:] == [A, A, A]
    (untested,) = [finding for finding in tls_findings(trials, subject="s1") if finding.severity is Severity.INFO]
    assert "whether the BMC accepts TLS 1.0 is not known" in untested.detail


def test_findings_of_trials() -> None:
    def kinds(*found: Outcome) -> list[str]:
        trials = tuple(TlsTrial(version=v, outcome=o) for v, o in zip(VERSIONS, found, strict=True))
        return [finding.kind for finding in tls_findings(trials, subject="s1")]

    assert kinds(R, R, A, A) == []
    assert kinds(A, R, A, R) == ["bmc-old-tls"]
    assert kinds(A, A, R, R) == ["bmc-old-tls", "bmc-no-modern-tls"]
    assert kinds(N, U, A, A) == ["bmc-tls-untested"]
    assert kinds(U, U, U, U) == ["bmc-no-modern-tls", "bmc-tls-untested"]


def test_that_nothing_was_tried_is_the_evidence_then() -> None:
    (found,) = tls_findings((), subject="s1")
    assert (found.kind, found.evidence) == ("bmc-no-modern-tls", "no TLS version was tried")
