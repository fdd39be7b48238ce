"""Systems/1/SecureBoot and its databases PK, KEK, db, dbx (UEFI 2.10, 32). All that is shown and changed here is what
the firmware will have after the next reset; `SecureBootCurrentBoot` alone tells of the last one."""

import hashlib
from collections.abc import Iterable
from typing import get_args

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from freehold_lab.bmc.certificates import certificate_body, read_pem
from freehold_lab.bmc.core import ROOT, Action, Call, JsonObject, Reply, Resource, collection, created, link
from freehold_lab.bmc.fields import OneOf
from freehold_lab.bmc.messages import RedfishError
from freehold_lab.hardware import SecureBootDatabaseName

SECURE_BOOT = f"{ROOT}/Systems/1/SecureBoot"
DATABASES = f"{SECURE_BOOT}/SecureBootDatabases"
TITLES: dict[str, str] = {
    "PK": "Platform Key",
    "KEK": "Key Exchange Keys",
    "db": "Authorized Signature Database",
    "dbx": "Forbidden Signature Database",
}
SHA256_LENGTH = 64


def _database(call: Call) -> SecureBootDatabaseName:
    names: tuple[SecureBootDatabaseName, ...] = get_args(SecureBootDatabaseName)
    for name in names:
        if name == call["database"] and not _hidden(call):
            return name
    raise call.missing()


def _hidden(call: Call) -> bool:
    """As on a BMC from before SecureBoot 1.1 (Redfish 2020.1)."""
    return call.bmc.hardware.faults.secure_boot_hidden


def _certificate_id(der: bytes) -> str:
    """From the content, so that an id stays when another certificate is deleted."""
    return hashlib.sha256(der).hexdigest()[:16]


async def _secure_boot(call: Call) -> JsonObject:
    hardware = call.bmc.hardware
    has_pk = bool(await hardware.secure_boot_certificates("PK"))
    shown = {} if _hidden(call) else {"SecureBootDatabases": link(DATABASES)}
    return {
        "Name": "UEFI Secure Boot",
        "SecureBootEnable": await hardware.secure_boot_enabled(),
        "SecureBootCurrentBoot": "Enabled" if await hardware.secure_boot_active() else "Disabled",
        "SecureBootMode": "UserMode" if has_pk else "SetupMode",
        **shown,
    }


async def _patch(call: Call) -> None:
    wanted = call.body["SecureBootEnable"]
    if wanted and not await call.bmc.hardware.secure_boot_certificates("PK"):
        # UEFI 2.10, 32.3: without a PK the platform is in setup mode and cannot enforce signatures.
        raise RedfishError("PropertyValueConflict", "SecureBootEnable", "SecureBootMode", pointer="SecureBootEnable")
    await call.bmc.hardware.set_secure_boot_enabled(wanted)
    _note(call, "enabled" if wanted else "disabled")


async def _reset_keys(call: Call) -> None:
    await call.bmc.hardware.reset_secure_boot_keys(call.body["ResetKeysType"])
    _note(call, call.body["ResetKeysType"])


def _note(call: Call, what: str) -> None:
    call.bmc.record("SecureBootChanged", what, origin=SECURE_BOOT, log="System")


async def _databases(call: Call) -> Iterable[str]:
    if _hidden(call):
        raise call.missing()
    return get_args(SecureBootDatabaseName)


async def _show_database(call: Call) -> JsonObject:
    name = _database(call)
    return {
        "Name": f"{name} - {TITLES[name]}",
        "DatabaseId": name,
        "Certificates": link(f"{call.uri}/Certificates"),
        "Signatures": link(f"{call.uri}/Signatures"),
    }


async def _empty_database(call: Call) -> None:
    name = _database(call)
    await call.bmc.hardware.set_secure_boot_database(name, [], [])
    _note(call, f"{name} emptied")


async def _content(call: Call) -> tuple[SecureBootDatabaseName, list[bytes], list[str]]:
    name, hardware = _database(call), call.bmc.hardware
    return name, await hardware.secure_boot_certificates(name), await hardware.secure_boot_signatures(name)


async def _certificates(call: Call) -> Iterable[str]:
    _, certificates, _ = await _content(call)
    return [_certificate_id(der) for der in certificates]


async def _certificate(call: Call) -> JsonObject:
    _, certificates, _ = await _content(call)
    for der in certificates:
        if _certificate_id(der) == call["certificate"]:
            return certificate_body(x509.load_der_x509_certificate(der), f"{call['database']} Certificate")
    raise call.missing()


async def _add_certificate(call: Call) -> Reply:
    der = read_pem(call.body["CertificateString"]).public_bytes(Encoding.DER)
    name, certificates, signatures = await _content(call)
    if der in certificates:
        raise RedfishError("ResourceAlreadyExists", "Certificate", "Id", _certificate_id(der))
    if name == "PK" and certificates:
        raise RedfishError("CreateLimitReachedForResource")  # UEFI 2.10, 32.3.1: one platform key
    await call.bmc.hardware.set_secure_boot_database(name, [*certificates, der], signatures)
    _note(call, f"certificate {_certificate_id(der)} added to {name}")
    return created(f"{call.uri}/{_certificate_id(der)}")


async def _delete_certificate(call: Call) -> None:
    name, certificates, signatures = await _content(call)
    kept = [der for der in certificates if _certificate_id(der) != call["certificate"]]
    if len(kept) == len(certificates):
        raise call.missing()
    await call.bmc.hardware.set_secure_boot_database(name, kept, signatures)
    _note(call, f"certificate {call['certificate']} deleted from {name}")


async def _signatures(call: Call) -> Iterable[str]:
    _, _, signatures = await _content(call)
    return [digest.lower() for digest in signatures]


async def _signature(call: Call) -> JsonObject:
    if call["signature"] not in await _signatures(call):
        raise call.missing()
    return {
        "Name": "SHA-256 Signature",
        "SignatureString": call["signature"],
        "SignatureTypeRegistry": "UEFI",
        "SignatureType": "EFI_CERT_SHA256_GUID",
    }


async def _add_signature(call: Call) -> Reply:
    digest = call.body["SignatureString"].lower()
    if len(digest) != SHA256_LENGTH or set(digest) - set("0123456789abcdef"):
        raise RedfishError("PropertyValueFormatError", digest, "SignatureString", pointer="SignatureString")
    name, certificates, signatures = await _content(call)
    if digest in signatures:
        raise RedfishError("ResourceAlreadyExists", "Signature", "Id", digest)
    await call.bmc.hardware.set_secure_boot_database(name, certificates, [*signatures, digest])
    _note(call, f"signature {digest} added to {name}")
    return created(f"{call.uri}/{digest}")


async def _delete_signature(call: Call) -> None:
    name, certificates, signatures = await _content(call)
    kept = [digest for digest in signatures if digest.lower() != call["signature"]]
    if len(kept) == len(signatures):
        raise call.missing()
    await call.bmc.hardware.set_secure_boot_database(name, certificates, kept)
    _note(call, f"signature {call['signature']} deleted from {name}")


_ALL_KEYS = OneOf(("ResetAllKeysToDefault", "DeleteAllKeys", "DeletePK"))
_ONE = f"{DATABASES}/{{database}}"

RESOURCES = (
    Resource(
        SECURE_BOOT,
        "SecureBoot.v1_1_2.SecureBoot",
        _secure_boot,
        fields={"SecureBootEnable": bool},
        patch=_patch,
        actions=(Action("SecureBoot.ResetKeys", _reset_keys, {"ResetKeysType": _ALL_KEYS}, ("ResetKeysType",)),),
    ),
    collection(DATABASES, "SecureBootDatabase", "Secure Boot Database Collection", _databases),
    Resource(
        _ONE,
        "SecureBootDatabase.v1_0_3.SecureBootDatabase",
        _show_database,
        actions=(
            Action(
                "SecureBootDatabase.ResetKeys",
                _empty_database,
                {"ResetKeysType": OneOf(("DeleteAllKeys",))},
                ("ResetKeysType",),
            ),
        ),
    ),
    collection(
        f"{_ONE}/Certificates",
        "Certificate",
        "Certificate Collection",
        _certificates,
        create=_add_certificate,
        create_fields={"CertificateString": str, "CertificateType": OneOf(("PEM",)), "UefiSignatureOwner": str},
        create_required=("CertificateString", "CertificateType"),
    ),
    Resource(
        f"{_ONE}/Certificates/{{certificate}}",
        "Certificate.v1_11_0.Certificate",
        _certificate,
        delete=_delete_certificate,
    ),
    collection(
        f"{_ONE}/Signatures",
        "Signature",
        "Signature Collection",
        _signatures,
        create=_add_signature,
        create_fields={
            "SignatureString": str,
            "SignatureType": OneOf(("EFI_CERT_SHA256_GUID",)),
            "SignatureTypeRegistry": OneOf(("UEFI",)),
            "UefiSignatureOwner": str,
        },
        create_required=("SignatureString", "SignatureType", "SignatureTypeRegistry"),
    ),
    Resource(f"{_ONE}/Signatures/{{signature}}", "Signature.v1_0_3.Signature", _signature, delete=_delete_signature),
)
