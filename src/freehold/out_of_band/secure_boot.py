"""The operator's Secure Boot keys on one server, through Redfish `SecureBootDatabases` (DSP0268; UEFI 2.10, 32.3)."""

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from freehold.out_of_band import resources as r
from freehold.out_of_band.errors import EnrolmentFailed, NotSupported
from freehold.out_of_band.inventory import first_member
from freehold.out_of_band.redfish import Json, RedfishClient, link

_WRITE_ORDER = ("db", "KEK", "PK")
"""The PK comes last: it ends setup mode, after which db and KEK need signed updates (UEFI 2.10, 32.3.1)."""


class SecureBootState(msgspec.Struct, frozen=True, kw_only=True):
    """`enabled`: what the next boot will do; `active`: what the last one did. `databases` maps PK, KEK, db, dbx to the
    sorted hex SHA-256 fingerprints of their certificates; `signatures` maps them to how many hashes they hold."""

    enabled: bool
    active: bool
    mode: str
    databases: dict[str, tuple[str, ...]]
    signatures: dict[str, int]


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
        name: len(await client.members(database.signatures.uri)) if database.signatures.uri else 0
        for name, database in databases.items()
    }
    return SecureBootState(
        enabled=secure_boot.secure_boot_enable is True,
        active=secure_boot.secure_boot_current_boot == "Enabled",
        mode=secure_boot.secure_boot_mode or "",
        databases={name: await _fingerprints(client, database) for name, database in databases.items()},
        signatures=signatures,
    )


async def enroll_secure_boot(client: RedfishClient, *, pk_pem: str, kek_pem: str, db_pem: str) -> SecureBootState:
    """Exactly the operator's PK, KEK and db, Secure Boot on for the next boot. Does nothing if it is so already.

    dbx is emptied with the rest: with only our own certificate in db there is nothing foreign to revoke.
    Raises `EnrolmentFailed` if what is read back differs. Safe to repeat after a crash anywhere.
    """
    wanted = {"PK": pk_pem, "KEK": kek_pem, "db": db_pem}
    state = await secure_boot_state(client)
    if not _holds(state, wanted):
        await _write_keys(client, wanted)
        state = await secure_boot_state(client)
        if not _holds(state, wanted):
            raise _mismatch(client, state, wanted)
    if not state.enabled:
        path = str((await _secure_boot(client))["@odata.id"])
        await client.wait_task(await client.patch(path, {"SecureBootEnable": True}))
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


async def _write_keys(client: RedfishClient, wanted: dict[str, str]) -> None:
    await reset_secure_boot(client, "DeleteAllKeys")  # back to setup mode, where databases take unsigned writes
    databases = await _databases(client, await _secure_boot(client))
    for name in _WRITE_ORDER:
        target = databases[name].certificates.uri if name in databases else None
        if target is None:
            raise NotSupported(f"the BMC has no Secure Boot database {name}", server=client.server)
        answer = await client.post(target, {"CertificateString": wanted[name], "CertificateType": "PEM"})
        await client.wait_task(answer)


def _holds(state: SecureBootState, wanted: dict[str, str]) -> bool:
    """Exactly our certificates and no bare hashes: a foreign entry in db lets foreign code boot."""
    return all(
        state.databases.get(name) == (fingerprint(pem),) and not state.signatures.get(name)
        for name, pem in wanted.items()
    )


def _mismatch(client: RedfishClient, state: SecureBootState, wanted: dict[str, str]) -> EnrolmentFailed:
    wrong = [
        f"{name} holds {', '.join(found[:12] for found in state.databases.get(name, ())) or 'nothing'}"
        f" and {state.signatures.get(name, 0)} hashes"
        for name, pem in wanted.items()
        if state.databases.get(name) != (fingerprint(pem),) or state.signatures.get(name)
    ]
    return EnrolmentFailed(
        f"after enrolment {'; '.join(wrong)}",
        server=client.server,
        expected=", ".join(f"{name} {fingerprint(pem)[:12]}" for name, pem in wanted.items()),
        remedy="update the BMC's firmware; until then this server cannot enforce the operator's keys",
    )
