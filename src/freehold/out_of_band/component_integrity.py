"""What a BMC offers to prove about its server's components (DSP0268: ComponentIntegrity, TrustedComponent).

The BMC is the messenger only: whether what it hands over proves anything is for `root_of_trust.attestation` to say.
"""

import base64
import binascii
from typing import Any

import msgspec

from freehold.out_of_band.errors import BmcAnswerUnreadable, NotSupported
from freehold.out_of_band.redfish import Json, RedfishClient, link

OWN_SCHEME = bytes.fromhex("0010")
"""TPMT_SIG_SCHEME of TPM_ALG_NULL: the attestation key signs by its own scheme (TPM 2.0 Part 3, 18.4)."""

LONGEST_WAIT = 60.0
"""Seconds that a BMC may take for a quote: it goes to the TPM, which takes its time."""


class ComponentIntegrity(msgspec.Struct, frozen=True, kw_only=True):
    """`kind` is TPM, SPDM, …; `longest_nonce` in bytes, 32 where the BMC does not say; `quotes`: it signs TPM
    measurements over a nonce of ours."""

    uri: str
    id: str
    kind: str
    target: str
    enabled: bool
    longest_nonce: int
    quotes: bool


async def component_integrity(client: RedfishClient) -> tuple[ComponentIntegrity, ...]:
    """Everything that is offered; empty for a BMC that has no such collection."""
    collection = link(client.root, "ComponentIntegrity")
    if collection is None:
        return ()
    try:
        members = await client.members(collection)
    except NotSupported:
        return ()
    return tuple(_read(member) for member in members)


def _read(raw: Json) -> ComponentIntegrity:
    tpm: Any = raw.get("TPM")
    longest = tpm.get("NonceSizeBytesMaximum") if isinstance(tpm, dict) else None
    actions: Any = raw.get("Actions")
    quotes = isinstance(actions, dict) and "#ComponentIntegrity.TPMGetSignedMeasurements" in actions
    return ComponentIntegrity(
        uri=link(raw) or "",
        id=str(raw.get("Id") or ""),
        kind=str(raw.get("ComponentIntegrityType") or "unknown"),
        target=str(raw.get("TargetComponentURI") or ""),
        enabled=raw.get("ComponentIntegrityEnabled") is True,
        longest_nonce=longest if isinstance(longest, int) else 32,
        quotes=quotes,
    )


async def component_certificates(client: RedfishClient, component: ComponentIntegrity) -> dict[str, str]:
    """The certificates of the component that is measured, by URI, in PEM: any of them may be of an attestation key."""
    trusted = await client.get(component.target)
    collection = link(trusted, "Certificates")
    members = await client.members(collection) if collection is not None else []
    named = {link(member): member.get("CertificateString") for member in members}
    return {uri: pem for uri, pem in named.items() if uri is not None and isinstance(pem, str)}


async def tpm_signed_measurements(
    client: RedfishClient, component: ComponentIntegrity, certificate: str, selection: bytes, nonce: bytes
) -> bytes:
    """TPM2B_ATTEST and TPMT_SIGNATURE of a TPM2_Quote over `selection` (TPML_PCR_SELECTION), with `nonce` as its
    qualifying data, by the attestation key of `certificate` (URI). Raises `NotSupported`, `BmcError`."""
    body = {
        "Nonce": nonce.hex(),
        "Certificate": {"@odata.id": certificate},
        "Scheme": base64.b64encode(OWN_SCHEME).decode(),
        "PCRSelection": base64.b64encode(selection).decode(),
    }
    resource = await client.get(component.uri)
    answer = await client.action(resource, "ComponentIntegrity.TPMGetSignedMeasurements", body, timeout=LONGEST_WAIT)
    return _decoded(client, await client.wait_task(answer, timeout=LONGEST_WAIT), "SignedMeasurements")


async def tpm_event_log(client: RedfishClient, component: ComponentIntegrity) -> bytes | None:
    """The firmware's event log as the BMC has it; None if it has none."""
    try:
        answer = await client.action(
            await client.get(component.target), "TrustedComponent.TPMGetEventLog", {}, timeout=LONGEST_WAIT
        )
    except NotSupported:
        return None
    return _decoded(client, await client.wait_task(answer, timeout=LONGEST_WAIT), "EventLog")


def _decoded(client: RedfishClient, body: Json, name: str) -> bytes:
    try:
        return base64.b64decode(str(body[name]), validate=True)
    except (KeyError, binascii.Error) as error:
        raise BmcAnswerUnreadable(f"the BMC's answer has no {name} in base64", server=client.server) from error
