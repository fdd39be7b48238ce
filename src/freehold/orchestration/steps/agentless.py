"""What a BMC can prove by itself about the TPM that is being bound: asked once, and recorded. Nothing is let in by it.

It is worth this: a TPM-signed second opinion, by another way than the agent's, that the machine in front of the BMC is
the one that attested. A BMC that offers nothing of the kind, or fails at it, is no reason not to go on.
"""

import secrets
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from freehold.model.findings import Finding, Severity
from freehold.out_of_band import component_integrity as oob
from freehold.out_of_band.component_integrity import ComponentIntegrity
from freehold.out_of_band.errors import BmcAnswerUnreadable, BmcError, BmcUnreachable, NotSupported
from freehold.out_of_band.redfish import RedfishClient
from freehold.root_of_trust.attestation import agentless, appraise
from freehold.root_of_trust.attestation.appraise import Policy
from freehold.root_of_trust.attestation.errors import AttestationError
from freehold.root_of_trust.attestation.reader import printable
from freehold.root_of_trust.attestation.session import PCRS
from freehold.root_of_trust.attestation.structures import Public

SELECTION = {appraise.BANK: PCRS}
SHORTEST_NONCE, LONGEST_NONCE = 16, 32
MOST_COMPONENTS, MOST_CERTIFICATES = 32, 8
TOLERATED = (BmcError, BmcUnreachable, BmcAnswerUnreadable, NotSupported)
"""What a BMC may do wrong here without holding anything up. That it is another BMC, or knows our password no more, is
no such thing."""

UNREADABLE = (ValueError, UnsupportedAlgorithm)
FINDING = "agentless-quote"


async def ask(client: RedfishClient, ak: Public, policy: Policy) -> list[dict[str, Any]]:
    """What is offered, and what came of it, one object for each component; of what the BMC says only so much as a
    statement can hold."""
    try:
        offered = await oob.component_integrity(client)
    except TOLERATED as error:
        return [_unproven(error.what)]
    return [
        {"id": printable(each.id), "kind": printable(each.kind), "target": printable(each.target)}
        | await _answer(client, each, ak, policy)
        for each in offered[:MOST_COMPONENTS]
    ]


async def _answer(client: RedfishClient, component: ComponentIntegrity, ak: Public, policy: Policy) -> dict[str, Any]:
    if component.kind != "TPM":
        return _unproven(f"measurements by {component.kind} are not verified")
    if not (component.enabled and component.quotes):
        return _unproven("the BMC offers no quote of it")
    if component.longest_nonce < SHORTEST_NONCE:
        return _unproven(f"it takes nonces of {component.longest_nonce} bytes only")
    why = "the BMC names no certificate of an attestation key"
    try:
        found = await oob.component_certificates(client, component)
        # Ours first: one of several keys may be the one that the agent attested with.
        for uri, pem in sorted(found.items(), key=lambda each: not _is_of(each[1], ak))[:MOST_CERTIFICATES]:
            try:
                return await _quote(client, component, uri, x509.load_pem_x509_certificate(pem.encode()), ak, policy)
            except (*TOLERATED, AttestationError) as error:
                why = error.what
            except UNREADABLE:
                why = f"{uri} is not a certificate"
    except TOLERATED as error:
        why = error.what
    return _unproven(why)


def _is_of(pem: str, ak: Public) -> bool:
    try:
        return agentless.is_of(x509.load_pem_x509_certificate(pem.encode()), ak)
    except UNREADABLE:
        return False


def _unproven(why: str) -> dict[str, Any]:
    return {"relied_on": False, "why": printable(why)}


async def _quote(
    client: RedfishClient,
    component: ComponentIntegrity,
    uri: str,
    certificate: x509.Certificate,
    ak: Public,
    policy: Policy,
) -> dict[str, Any]:
    nonce = secrets.token_bytes(min(component.longest_nonce, LONGEST_NONCE))
    asked = agentless.pcr_selection(SELECTION)
    signed = await oob.tpm_signed_measurements(client, component, uri, asked, nonce)
    if not agentless.is_of(certificate, ak):
        return agentless.observe(signed, certificate, nonce)
    log = await oob.tpm_event_log(client, component)
    if log is None:
        return agentless.observe(signed, certificate, nonce) | {"why": "the BMC has no event log of the TPM"}
    now, ek, shown = datetime.now(UTC), policy.ek_identity, {"relied_on": True, "nonce": nonce.hex()}
    try:
        proven = agentless.prove(signed, log, ak, ek_identity=ek, nonce=nonce, selection=SELECTION, now=now)
    except AttestationError as error:
        return shown | {"trusted": False, "reasons": [error.what]}
    verdict = appraise.appraise(proven, policy, now)
    return shown | {"trusted": verdict.trusted, "reasons": list(verdict.reasons)}


def findings(server: str, answers: list[dict[str, Any]]) -> tuple[Finding, ...]:
    """What people should look at: a TPM behind the BMC that says something else than the agent's did just now."""
    wrong = [
        (each["id"], "; ".join(each.get("reasons", ())) or "it is not over the nonce that was sent")
        for each in answers
        if each.get("trusted") is False or each.get("nonce_is_ours") is False
    ]
    return tuple(
        Finding(
            severity=Severity.WARNING,
            kind=FINDING,
            subject=server,
            detail=f"the quote of {component} that its BMC handed over does not agree: {why}",
            remedy="find out whether the BMC speaks for this machine's TPM, and whether its firmware replays quotes",
        )
        for component, why in wrong
    )
