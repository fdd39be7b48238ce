"""Put a certificate of the site's CA on a BMC, so that whoever cuts in, whenever, the BMC stays recognisable.

    request (the BMC makes a key) -> issue and record -> replace -> the BMC is seen to serve it -> only the CA counts

The write-ahead record is `Facts.bmc_certificate_pending`: it is durable before the BMC hears of the certificate, and
stays until one is seen. As long, the pinned key and the CA both count; so neither a crash of ours, nor a reboot of the
BMC, nor a BMC that takes a certificate and says that it does not, makes it a stranger.

`next_certificate_step` and `accepted_identity` are the whole policy, and pure.
"""

import hashlib
from enum import StrEnum
from ssl import PEM_cert_to_DER_cert
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from freehold.model.status import Facts, PendingCertificate
from freehold.out_of_band.errors import BmcAnswerUnreadable, CsrRefused, NotSupported
from freehold.out_of_band.inventory import first_member
from freehold.out_of_band.redfish import Json, RedfishClient, link
from freehold.out_of_band.transport import BmcIdentity, spki_sha256_of

APPLY_PATIENCE = 60.0
"""Seconds that a BMC may take to serve what it has accepted; after that it is restarted."""

RESTART_PATIENCE = 300.0
"""Seconds that a restarted BMC may take to serve it; after that the certificate is given up."""

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


class CertificateStep(StrEnum):
    REQUEST = "have the BMC make a key and a request, and issue for it"
    REPLACE = "give the BMC its certificate"
    WAIT = "wait until the BMC serves it"
    RESTART = "restart the BMC, so that it serves it"
    CONFIRM = "log in under the CA alone"
    GIVE_UP = "forget a certificate that the BMC does not serve"


def next_certificate_step(pending: PendingCertificate | None, served_pem: str, now: float) -> CertificateStep:
    """What to do, given the certificate that the BMC serves at this moment. Total and pure."""
    if pending is None:
        return CertificateStep.REQUEST
    if served_pem.strip() == pending.pem.strip():
        return CertificateStep.CONFIRM
    if pending.given_up:
        return CertificateStep.REQUEST
    if pending.sent_at is None:
        return CertificateStep.REPLACE
    since, patience = pending.sent_at, APPLY_PATIENCE
    if pending.restarted_at is not None:
        since, patience = pending.restarted_at, RESTART_PATIENCE
    if now - since < patience:
        return CertificateStep.WAIT
    return CertificateStep.RESTART if pending.restarted_at is None else CertificateStep.GIVE_UP


def accepted_identity(
    facts: Facts, declared: str | None, ca_pem: str | None, crl_pem: str | None
) -> BmcIdentity | None:
    """Who the BMC may be at this moment; None: nobody. It was never pinned, or the fingerprint in the Server document
    (`declared`) is another: a document alone makes no key the BMC's. It ends to count when the CA takes over.

    `ca_pem` is today's CA. One that was replaced vouches for nobody: a thief may have its key. But what this BMC had of
    it, or was just being given, is known to the byte, and goes on to count until it serves one of today's CA."""
    known = _known_certificates(facts)
    if facts.bmc_certificate is not None:
        return BmcIdentity(ca_pem=ca_pem, crl_pem=crl_pem, certificates=known)
    pinned = facts.bmc_identity
    if pinned is None or (declared is not None and declared.lower() != pinned):
        return None
    if facts.bmc_certificate_pending is not None:
        return BmcIdentity(spki_sha256=pinned, ca_pem=ca_pem, crl_pem=crl_pem, certificates=known)
    return BmcIdentity(spki_sha256=pinned)


def _known_certificates(facts: Facts) -> tuple[str, ...]:
    """SHA-256 of what this BMC was seen to serve, and of what it is being given."""
    installed, pending = facts.bmc_certificate, facts.bmc_certificate_pending
    given = hashlib.sha256(PEM_cert_to_DER_cert(pending.pem)).hexdigest() if pending is not None else None
    return tuple(filter(None, (installed.sha256 if installed is not None else None, given)))


def requested_key(request_pem: str, address: str, factory_key: str | None, *, server: str | None = None) -> PublicKey:
    """The key that the BMC wants certified. Only the key is used, and only of a request that is what we asked for: its
    signature verifies, its names are `address` and nothing else, its key is strong and not the factory's
    (`factory_key`: hex SHA-256 of the SPKI). Raises `CsrRefused`."""

    def refuse(what: str, expected: str) -> CsrRefused:
        remedy = "look at the BMC and its firmware; nothing was issued to it"
        return CsrRefused(f"the BMC's certificate request {what}", server=server, expected=expected, remedy=remedy)

    try:
        request = x509.load_pem_x509_csr(request_pem.encode())
        key, verified = request.public_key(), request.is_signature_valid
        subjects = [str(each.value) for each in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        alternatives = _alternative_names(request)
    except Exception as error:
        raise refuse(f"cannot be read: {error}", "PKCS #10 in PEM") from error
    if not verified:
        raise refuse("is not signed by its own key", "a valid signature")
    if subjects != [address] or not set(alternatives) <= {address}:
        raise refuse(f"is for {', '.join([*subjects, *alternatives]) or 'nobody'}", address)
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise refuse(f"has a key of the kind {type(key).__name__}", "RSA or EC")
    if key.key_size < (2048 if isinstance(key, rsa.RSAPublicKey) else 256):
        raise refuse(f"has a key of {key.key_size} bits", "RSA of 2048 or EC of 256 bits")
    if spki_sha256_of(key) == factory_key:
        raise refuse("is for the factory's key, which others may have", "a new key")
    return key


def _alternative_names(request: x509.CertificateSigningRequest) -> list[str]:
    try:
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names]


async def request_certificate(client: RedfishClient, address: str) -> str:
    """Have the BMC make a key and a request for it (PEM). What it serves does not change (DSP0268, GenerateCSR)."""
    service = await _service(client)
    collection, _ = await _https_certificates(client)
    body: Json = {
        "CertificateCollection": {"@odata.id": collection},
        "CommonName": address,
        "AlternativeNames": [address],
        **_algorithm(service),
    }
    answer = await client.wait_task(await client.action(service, "CertificateService.GenerateCSR", body))
    request = answer.get("CSRString")
    if not isinstance(request, str):
        raise BmcAnswerUnreadable("the BMC answered GenerateCSR without a CSRString", server=client.server)
    return request


async def replace_certificate(client: RedfishClient, pem: str) -> None:
    """Give the BMC the certificate for the key of its last request. It may drop connections, or serve it later only."""
    service = await _service(client)
    _, certificate = await _https_certificates(client)
    body: Json = {
        "CertificateString": pem,
        "CertificateType": "PEM",
        "CertificateUri": {"@odata.id": certificate},
    }
    await client.wait_task(await client.action(service, "CertificateService.ReplaceCertificate", body))


async def restart_bmc(client: RedfishClient) -> None:
    """The BMC, not the server behind it."""
    manager = await first_member(client, "Managers")
    reset = (manager.get("Actions") or {}).get("#Manager.Reset") or {}
    allowed = reset.get("ResetType@Redfish.AllowableValues") or ["GracefulRestart"]
    kind = "GracefulRestart" if "GracefulRestart" in allowed else "ForceRestart"
    await client.action(manager, "Manager.Reset", {"ResetType": kind})


async def _service(client: RedfishClient) -> Json:
    path = link(client.root, "CertificateService")
    service = await client.get(path) if path else {}
    offered = service.get("Actions") or {}
    if not {"#CertificateService.GenerateCSR", "#CertificateService.ReplaceCertificate"} <= set(offered):
        raise _unsupported(client, "the BMC has no CertificateService that makes requests and takes certificates")
    return service


async def _https_certificates(client: RedfishClient) -> tuple[str, str]:
    """The collection of the certificates of the BMC's HTTPS, and the one in it that is served."""
    protocols = link(await first_member(client, "Managers"), "NetworkProtocol")
    raw = await client.get(protocols) if protocols else {}
    collection = link(raw, "HTTPS", "Certificates")
    members = await client.members(collection) if collection else []
    uris = [uri for member in members if (uri := link(member)) is not None]
    if collection is None or not uris:
        raise _unsupported(client, "the BMC does not show the certificate of its HTTPS service")
    return collection, uris[0]


def _algorithm(service: Json) -> dict[str, Any]:
    """P-256 where the BMC offers it; else whatever is its default."""
    action = service["Actions"]["#CertificateService.GenerateCSR"]
    if "TPM_ALG_ECDSA" not in (action.get("KeyPairAlgorithm@Redfish.AllowableValues") or []):
        return {}
    return {"KeyPairAlgorithm": "TPM_ALG_ECDSA", "KeyCurveId": "TPM_ECC_NIST_P256"}


def _unsupported(client: RedfishClient, what: str) -> NotSupported:
    return NotSupported(what, server=client.server, remedy="update its firmware")
