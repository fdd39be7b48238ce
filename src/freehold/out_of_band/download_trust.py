"""Whom a BMC believes when it fetches firmware: `UpdateService.RemoteServerCertificates` and
`VerifyRemoteServerCertificate` (UpdateService v1.9 and later; DSP0268)."""

from cryptography import x509

from freehold.out_of_band.errors import NotSupported
from freehold.out_of_band.redfish import Json, RedfishClient, link

VERIFIES = "VerifyRemoteServerCertificate"


async def trust_server(client: RedfishClient, service: Json, ca_pem: str) -> None:
    """The BMC has this CA and verifies whom it fetches firmware from. Idempotent. Raises `NotSupported` if it cannot be
    given a CA or goes on to fetch from anybody: then whoever is between us and the BMC could choose its firmware."""
    held = link(service, "RemoteServerCertificates")
    if held is None:
        raise _from_anybody(client, "it cannot be given a CA (no RemoteServerCertificates)")
    wanted = x509.load_pem_x509_certificate(ca_pem.encode())
    if not any(_is(member, wanted) for member in await client.members(held)):
        await client.post(held, {"CertificateString": ca_pem, "CertificateType": "PEM"})
    if service.get(VERIFIES) is True:
        return
    path = link(service) or ""
    await client.patch(path, {VERIFIES: True})
    if (await client.get(path)).get(VERIFIES) is not True:
        raise _from_anybody(client, f"{VERIFIES} stays off")


def _from_anybody(client: RedfishClient, why: str) -> NotSupported:
    return NotSupported(
        f"the BMC takes no uploads, and would fetch firmware from anybody: {why}",
        server=client.server,
        remedy="update the BMC's own firmware by the vendor's way first, and declare the version that it then has",
    )


def _is(member: Json, wanted: x509.Certificate) -> bool:
    try:
        return x509.load_pem_x509_certificate(str(member.get("CertificateString") or "").encode()) == wanted
    except ValueError:
        return False
