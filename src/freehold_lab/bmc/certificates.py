"""CertificateService and the certificate that HTTPS serves; also how any certificate is shown and read."""

from collections.abc import Iterable
from datetime import UTC, datetime
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from freehold_lab.bmc.core import ROOT, Action, Call, JsonObject, Reply, Resource, collection, link
from freehold_lab.bmc.fields import Anything, Fields, ListOf, OneOf
from freehold_lab.bmc.messages import RedfishError

SERVICE = f"{ROOT}/CertificateService"
HTTPS_CERTIFICATES = f"{ROOT}/Managers/1/NetworkProtocol/HTTPS/Certificates"
HTTPS_CERTIFICATE = f"{HTTPS_CERTIFICATES}/1"

# Redfish Certificate "Identifier" -> X.520 attribute; also the parameters of GenerateCSR
SUBJECT = {
    "CommonName": NameOID.COMMON_NAME,
    "Organization": NameOID.ORGANIZATION_NAME,
    "OrganizationalUnit": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "City": NameOID.LOCALITY_NAME,
    "State": NameOID.STATE_OR_PROVINCE_NAME,
    "Country": NameOID.COUNTRY_NAME,
}


def read_pem(text: str, name: str = "CertificateString") -> x509.Certificate:
    """The one certificate in `text`; raises PropertyValueFormatError."""
    try:
        return x509.load_pem_x509_certificate(text.encode())
    except ValueError as error:
        raise RedfishError("PropertyValueFormatError", text[:40], name, pointer=name) from error


def certificate_body(certificate: x509.Certificate, name: str) -> JsonObject:
    """The properties of a Certificate resource."""
    return {
        "Name": name,
        "CertificateString": certificate.public_bytes(Encoding.PEM).decode(),
        "CertificateType": "PEM",
        "Subject": _identifier(certificate.subject),
        "Issuer": _identifier(certificate.issuer),
        "ValidNotBefore": _time(certificate.not_valid_before_utc),
        "ValidNotAfter": _time(certificate.not_valid_after_utc),
        "SerialNumber": certificate.serial_number.to_bytes(20, "big").lstrip(b"\0").hex(":"),
        "Fingerprint": certificate.fingerprint(hashes.SHA256()).hex(":"),
        "FingerprintHashAlgorithm": "TPM_ALG_SHA256",
    }


def _identifier(name: x509.Name) -> JsonObject:
    found = {key: name.get_attributes_for_oid(oid) for key, oid in SUBJECT.items()}
    return {key: str(attributes[0].value) for key, attributes in found.items() if attributes}


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


async def _service(_: Call) -> JsonObject:
    return {"Name": "Certificate Service", "CertificateLocations": link(f"{SERVICE}/CertificateLocations")}


async def _locations(_: Call) -> JsonObject:
    return {"Name": "Certificate Locations", "Links": {"Certificates": [link(HTTPS_CERTIFICATE)]}}


async def _members(_: Call) -> Iterable[str]:
    return ["1"]


async def _https(call: Call) -> JsonObject:
    shown = certificate_body(call.bmc.tls.chain[0], "HTTPS Certificate")
    return shown | {"CertificateUsageTypes": ["Web"]}


async def _generate_csr(call: Call) -> Reply:
    body = call.body
    if body["CertificateCollection"].get("@odata.id") != HTTPS_CERTIFICATES:
        raise RedfishError("ActionParameterValueError", "CertificateCollection", "CertificateService.GenerateCSR")
    bits = body.get("KeyBitLength", 2048)
    if bits not in (2048, 3072, 4096):
        raise RedfishError("ActionParameterValueError", "KeyBitLength", "CertificateService.GenerateCSR")
    try:
        wanted = body | ({"CommonName": other} if (other := call.bmc.hardware.faults.csr_subject) else {})
        subject = x509.Name([x509.NameAttribute(oid, wanted[key]) for key, oid in SUBJECT.items() if wanted.get(key)])
    except ValueError as error:
        raise RedfishError("ActionParameterValueError", "Country", "CertificateService.GenerateCSR") from error
    names = [_general_name(name) for name in body.get("AlternativeNames", [])]
    request = call.bmc.tls.request(
        subject, names, body.get("KeyPairAlgorithm", "TPM_ALG_RSA"), bits, body.get("KeyCurveId", "TPM_ECC_NIST_P384")
    )
    return Reply(200, {"CSRString": request, "CertificateCollection": link(HTTPS_CERTIFICATES)})


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        return x509.DNSName(text)


async def _replace(call: Call) -> Reply:
    if call.body["CertificateUri"].get("@odata.id") != HTTPS_CERTIFICATE:
        raise RedfishError("ActionParameterValueError", "CertificateUri", "CertificateService.ReplaceCertificate")
    call.bmc.tls.replace(call.body["CertificateString"], waits=call.bmc.hardware.faults.certificate_waits)
    digest = call.bmc.tls.chain[0].fingerprint(hashes.SHA256()).hex()
    call.bmc.record("CertificateReplaced", digest, origin=HTTPS_CERTIFICATE)
    return Reply(204, headers={"Location": HTTPS_CERTIFICATE})


_CSR_FIELDS: Fields = {
    **dict.fromkeys(SUBJECT, str),
    "CertificateCollection": Anything(),
    "AlternativeNames": ListOf(str),
    "KeyPairAlgorithm": OneOf(("TPM_ALG_RSA", "TPM_ALG_ECDSA")),
    "KeyBitLength": int,
    "KeyCurveId": OneOf(("TPM_ECC_NIST_P256", "TPM_ECC_NIST_P384")),
    "KeyUsage": ListOf(str),
}

RESOURCES = (
    Resource(
        SERVICE,
        "CertificateService.v1_2_1.CertificateService",
        _service,
        privilege="ConfigureManager",
        actions=(
            Action(
                "CertificateService.GenerateCSR", _generate_csr, _CSR_FIELDS, ("CertificateCollection", "CommonName")
            ),
            Action(
                "CertificateService.ReplaceCertificate",
                _replace,
                {"CertificateString": str, "CertificateType": OneOf(("PEM", "PEMchain")), "CertificateUri": Anything()},
                ("CertificateString", "CertificateType", "CertificateUri"),
            ),
        ),
    ),
    Resource(f"{SERVICE}/CertificateLocations", "CertificateLocations.v1_0_4.CertificateLocations", _locations),
    collection(HTTPS_CERTIFICATES, "Certificate", "HTTPS Certificate Collection", _members),
    Resource(HTTPS_CERTIFICATE, "Certificate.v1_11_0.Certificate", _https),
)
