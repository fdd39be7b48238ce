"""The operator's Secure Boot keys on one server, through Redfish `SecureBootDatabases` (DSP0268; UEFI 2.10, 32.3)."""

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from freehold.out_of_band import resources as r
from freehold.out_of_band.errors import EnrolmentFailed, NotSupported
from freehold.out_of_band.inventory import first_member
from freehold.out_of_band.redfish import Json, RedfishClient, link

_WRITE_ORDER = ("dbx", "db", "KEK", "PK")
"""The PK comes last: it ends setup mode, after which the others need signed updates (UEFI 2.10, 32.3.1)."""


_SIGNATURE = {"SignatureTypeRegistry": "UEFI", "SignatureType": "EFI_CERT_SHA256_GUID"}


class SecureBootState(msgspec.Struct, frozen=True, kw_only=True):
    """`enabled`: what the next boot will do; `active`: what the last one did. `databases` maps PK, KEK, db, dbx to the
    sorted hex SHA-256 fingerprints of their certificates, and `signatures` to their sorted hex digests; a database that
    the BMC does not show is not there."""

    enabled: bool
    active: bool
    mode: str
    databases: dict[str, tuple[str, ...]]
    signatures: dict[str, tuple[str, ...]]

    @property
    def entries(self) -> dict[str, tuple[str, ...]]:
        """All that each database holds: fingerprints of certificates, `sha256:` before digests of images."""
        return {
            name: (*held, *(f"sha256:{digest}" for digest in self.signatures.get(name, ())))
            for name, held in self.databases.items()
        }


class KeyDatabases(msgspec.Struct, frozen=True, kw_only=True):
    """What the databases are to hold: certificates (PEM) by database (PK, KEK, db), and in dbx the Authenticode digests
    (SHA-256, hex) of revoked images."""

    certificates: dict[str, tuple[str, ...]]
    dbx: tuple[str, ...] = ()

    @property
    def entries(self) -> dict[str, tuple[str, ...]]:
        """As `SecureBootState.entries` shows it."""
        held = {name: tuple(sorted(map(fingerprint, pems))) for name, pems in self.certificates.items()}
        return held | {"dbx": tuple(f"sha256:{digest}" for digest in sorted(self.dbx))}


async def _secure_boot(client: RedfishClient) -> Json:
    path = link(await first_member(client, "Systems"), "SecureBoot")
    if path is None:
        raise NotSupported(
            "the BMC has no SecureBoot resource", server=client.server, remedy="enrol the keys in the firmware's set-up"
        )
    return await client.get(path)


async def _databases(client: RedfishClient, secure_boot: Json) -> dict[str, r.SecureBootDatabase]:
    path = link(secure_boot, "SecureBootDatabases")
    if path is None:
        raise NotSupported(
            "the BMC cannot manage Secure Boot databases (no SecureBootDatabases)",
            server=client.server,
            remedy="update the BMC's firmware, or enrol the keys in the firmware's set-up",
        )
    read = [r.read(r.SecureBootDatabase, raw, []) for raw in await client.members(path)]
    named = {database.database_id or database.id or "": database for database in read}
    return {name: named[name] for name in ("PK", "KEK", "db", "dbx") if name in named}


async def _fingerprints(client: RedfishClient, database: r.SecureBootDatabase) -> tuple[str, ...]:
    if database.certificates.uri is None:
        return ()
    members = await client.members(database.certificates.uri)
    return tuple(sorted(fingerprint(str(member.get("CertificateString") or "")) for member in members))


async def _digests(client: RedfishClient, uri: str) -> tuple[str, ...]:
    return tuple(sorted(str(each.get("SignatureString") or "").lower() for each in await client.members(uri)))


def fingerprint(pem: str) -> str:
    """Hex SHA-256 of a certificate's DER; "unreadable" for what is no certificate, which equals nothing of ours."""
    try:
        return x509.load_pem_x509_certificate(pem.encode()).fingerprint(hashes.SHA256()).hex()
    except ValueError:
        return "unreadable"


async def secure_boot_state(client: RedfishClient) -> SecureBootState:
    """The state; `databases` is empty where the BMC does not show them."""
    raw = await _secure_boot(client)
    secure_boot = r.read(r.SecureBoot, raw, [])
    databases = await _databases(client, raw) if secure_boot.secure_boot_databases.uri else {}
    signatures = {
        name: await _digests(client, database.signatures.uri)
        for name, database in databases.items()
        if database.signatures.uri is not None
    }
    return SecureBootState(
        enabled=secure_boot.secure_boot_enable is True,
        active=secure_boot.secure_boot_current_boot == "Enabled",
        mode=secure_boot.secure_boot_mode or "",
        databases={name: await _fingerprints(client, database) for name, database in databases.items()},
        signatures=signatures,
    )


async def enroll_secure_boot(client: RedfishClient, wanted: KeyDatabases) -> SecureBootState:
    """Exactly the operator's PK, KEK, db and dbx, Secure Boot on for the next boot. Does nothing if it is so already.

    Raises `EnrolmentFailed` if what is read back does not hold it. Safe to repeat after a crash anywhere.
    """
    state = await secure_boot_state(client)
    if {"dbx": (), **state.entries} != wanted.entries:
        await _write_keys(client, wanted)
        state = await secure_boot_state(client)
        if not holds(state, wanted):
            raise _mismatch(client, state, wanted)
    return await enable_secure_boot(client)


async def enable_secure_boot(client: RedfishClient) -> SecureBootState:
    """Secure Boot is on for the next boot. Raises `EnrolmentFailed` if the BMC does not keep to it."""
    raw = await _secure_boot(client)
    if raw.get("SecureBootEnable") is not True:
        await client.wait_task(await client.patch(str(raw["@odata.id"]), {"SecureBootEnable": True}))
    state = await secure_boot_state(client)
    if not state.enabled:
        raise EnrolmentFailed(
            "the BMC accepted SecureBootEnable but still reports it off",
            server=client.server,
            remedy="reset the server once and look again; some firmware applies it at the next start only",
        )
    return state


async def reset_secure_boot(client: RedfishClient, mode: str = "ResetAllKeysToDefault") -> None:
    """`SecureBoot.ResetKeys`: ResetAllKeysToDefault, DeleteAllKeys or DeletePK."""
    answer = await client.action(await _secure_boot(client), "SecureBoot.ResetKeys", {"ResetKeysType": mode})
    await client.wait_task(answer)


async def _write_keys(client: RedfishClient, wanted: KeyDatabases) -> None:
    databases = await _databases(client, await _secure_boot(client))
    writes = []
    for name in _WRITE_ORDER:
        digests = wanted.dbx if name == "dbx" else ()
        pems = [{"CertificateString": pem, "CertificateType": "PEM"} for pem in wanted.certificates.get(name, ())]
        for part, entries in (
            ("certificates", pems),
            ("signatures", [{"SignatureString": digest, **_SIGNATURE} for digest in digests]),
        ):
            target = getattr(databases[name], part).uri if name in databases else None
            if entries and target is None:  # known before anything is deleted
                raise NotSupported(f"the BMC takes no {part} for the Secure Boot database {name}", server=client.server)
            writes += [(str(target), entry) for entry in entries]
    await reset_secure_boot(client, "DeleteAllKeys")  # back to setup mode, where databases take unsigned writes
    for target, entry in writes:
        await client.wait_task(await client.post(target, entry))


def holds(state: SecureBootState, wanted: KeyDatabases) -> bool:
    """PK, KEK and db exactly: a foreign entry lets foreign code boot. In dbx there may be more: firmware that brings a
    dbx of its own forbids more, which makes nothing more trusted. A dbx that the BMC does not show is not judged."""
    held = state.entries
    exact = all(held.get(name) == entries for name, entries in wanted.entries.items() if name != "dbx")
    return exact and ("dbx" not in state.signatures or set(wanted.entries["dbx"]) <= set(held["dbx"]))


def _mismatch(client: RedfishClient, state: SecureBootState, wanted: KeyDatabases) -> EnrolmentFailed:
    wrong = [
        f"{name} holds {_shown(state.entries.get(name, ()))} instead of {_shown(entries)}"
        for name, entries in wanted.entries.items()
        if state.entries.get(name, ()) != entries
    ]
    return EnrolmentFailed(
        f"after enrolment {'; '.join(wrong)}",
        server=client.server,
        expected="exactly the operator's PK, KEK, db and dbx",
        remedy="update the BMC's firmware; until then this server cannot enforce the operator's keys",
    )


def _shown(entries: tuple[str, ...]) -> str:
    return ", ".join(entry[:19] if entry.startswith("sha256:") else entry[:12] for entry in entries) or "nothing"
