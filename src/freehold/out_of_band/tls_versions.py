"""Which TLS versions a BMC really accepts: a handshake for each, and nothing after it.

A configuration property says what was set; the handshake says what is served. The certificate is not judged here: no
request is sent, and the pin protects those that are (`transport`).
"""

import asyncio
import ssl
import warnings
from enum import StrEnum

import msgspec

from freehold.model.findings import Finding, Severity
from freehold.out_of_band import transport

VERSIONS = {
    "TLS 1.0": ssl.TLSVersion.TLSv1,
    "TLS 1.1": ssl.TLSVersion.TLSv1_1,
    "TLS 1.2": ssl.TLSVersion.TLSv1_2,
    "TLS 1.3": ssl.TLSVersion.TLSv1_3,
}
_OLD = ("TLS 1.0", "TLS 1.1")  # RFC 8996: must not be used
_VERSION_REFUSED = ("PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "WRONG_VERSION_NUMBER")


class Outcome(StrEnum):
    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNCLEAR = "unclear"
    NOT_OFFERED = "not offered"
    """This host's OpenSSL cannot offer the version, so that nothing was learnt about the BMC."""


class TlsTrial(msgspec.Struct, frozen=True, kw_only=True):
    """`why` is what came back, in OpenSSL's words where it has some."""

    version: str
    outcome: Outcome
    why: str = ""


async def probe_tls(address: str, *, timeout: float = 5.0) -> tuple[TlsTrial, ...]:
    """One handshake a version with the BMC at `address` (`host` or `host:port`); `timeout` seconds each."""
    host, port = transport.split_address(address)
    return tuple([await _trial(host, port, version, timeout) for version in VERSIONS])


async def _trial(host: str, port: int, version: str, timeout: float) -> TlsTrial:
    context = context_for(version)
    if context is None:
        return TlsTrial(version=version, outcome=Outcome.NOT_OFFERED, why=ssl.OPENSSL_VERSION)
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
    except TimeoutError:
        return TlsTrial(version=version, outcome=Outcome.UNCLEAR, why=f"no answer in {timeout:g} s")
    except (ssl.SSLEOFError, ConnectionResetError):  # instead of an alert
        return TlsTrial(version=version, outcome=Outcome.REFUSED, why="the connection was closed in the handshake")
    except ssl.SSLError as error:
        reason = error.reason or str(error)
        refused = any(word in reason for word in _VERSION_REFUSED)
        return TlsTrial(version=version, outcome=Outcome.REFUSED if refused else Outcome.UNCLEAR, why=reason)
    except OSError as error:
        return TlsTrial(version=version, outcome=Outcome.UNCLEAR, why=error.strerror or str(error))
    cipher = writer.get_extra_info("cipher")
    writer.transport.abort()
    return TlsTrial(version=version, outcome=Outcome.ACCEPTED, why=cipher[0] if cipher else "")


def context_for(version: str) -> ssl.SSLContext | None:
    """A client that offers this version alone, with every cipher that is built in; None if OpenSSL cannot offer it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that they are old is the point
        try:
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version = context.maximum_version = VERSIONS[version]
        except (ValueError, ssl.SSLError):
            return None
    return context if offers(context) else None


def offers(context: ssl.SSLContext) -> bool:
    """Whether OpenSSL writes a first message: only then it says that its build or policy lacks the version."""
    try:
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO()).do_handshake()
    except ssl.SSLWantReadError:
        return True
    except ssl.SSLError:
        return False
    return False


def tls_findings(trials: tuple[TlsTrial, ...], *, subject: str) -> list[Finding]:
    """Old versions that are accepted, new ones that are not, and what could not be tested. Pure."""
    outcomes = {trial.version: trial.outcome for trial in trials}
    evidence = "; ".join(
        f"{trial.version}: {trial.outcome}" + (f" ({trial.why})" if trial.why else "") for trial in trials
    )
    evidence = evidence or "no TLS version was tried"
    found: list[Finding] = []

    def note(severity: Severity, kind: str, detail: str, remedy: str) -> None:
        found.append(
            Finding(severity=severity, kind=kind, subject=subject, detail=detail, remedy=remedy, evidence=evidence)
        )

    if old := [version for version in _OLD if outcomes.get(version) is Outcome.ACCEPTED]:
        note(
            Severity.WARNING,
            "bmc-old-tls",
            f"the BMC accepts {' and '.join(old)}, which must not be used (RFC 8996)",
            "set the BMC's minimum to TLS 1.2",
        )
    if not any(outcomes.get(version) is Outcome.ACCEPTED for version in VERSIONS if version not in _OLD):
        note(
            Severity.WARNING,
            "bmc-no-modern-tls",
            "the BMC was not seen to accept TLS 1.2 or 1.3",
            "update its firmware, or look at why the handshake fails",
        )
    if unknown := [v for v in VERSIONS if outcomes.get(v) in (Outcome.NOT_OFFERED, Outcome.UNCLEAR)]:
        note(
            Severity.INFO,
            "bmc-tls-untested",
            f"whether the BMC accepts {' and '.join(unknown)} is not known",
            "test it from a host whose OpenSSL offers the version",
        )
    return found
