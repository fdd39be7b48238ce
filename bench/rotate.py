#!/usr/bin/env python3
"""Rotate the passwords of a fleet as `freehold rotate --all` does: real Redfish services over TLS in a second process;
in this one the engine on its store, the two-phase protocol, a vault, the uniqueness check and the evidence log. One
JSON line.

    bench/rotate.py [--servers 1000]

The time runs from the first intent until the last server is done, ten minutes at most. The BMCs share these processors,
and one TLS key with a certificate of the site's BMC CA.
The site's `rotationsPerMinute` is set so high that it limits nothing.

The exit status is 0 only if the time was met and nothing was wrong: every password is new and another one, each is
proven unique in the evidence log, and no BMC refused a log-in or has a locked account. What was wrong stands under
`wrong`.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from freehold.evidence import Envelope, EvidenceLog, Statement
from freehold.model.documents import load_documents
from freehold.model.resources import SiteSpec
from freehold.model.status import BmcCertificate, Facts, IntentKind, ServerState, ServerStatus
from freehold.orchestration.controller import recorder
from freehold.orchestration.engine import Engine
from freehold.orchestration.leases import Lease
from freehold.orchestration.ledger import Completion
from freehold.orchestration.measurements import BootedImage
from freehold.orchestration.opening import open_log
from freehold.orchestration.passwords import PasswordIndex
from freehold.orchestration.site import ROTATIONS_AT_ONCE, Site
from freehold.orchestration.steps.table import steps_of
from freehold.orchestration.store import Store
from freehold.out_of_band import transport
from freehold.out_of_band.redfish import Credential
from freehold.out_of_band.takeover_steps import OWN_ACCOUNT
from freehold.out_of_band.transport import fetch_identity
from freehold.provisioning.boot_server import BootFiles
from freehold.root_of_trust import authorities, pki
from freehold.root_of_trust.attestation.ek import TpmRoots
from freehold.root_of_trust.kek import FileKek
from freehold.root_of_trust.keys import SiteKeys
from freehold.root_of_trust.vault import EmbeddedVault
from freehold_lab.bmc.accounts import Accounts
from freehold_lab.bmc.context import BmcConfig
from freehold_lab.bmc.memory import MemoryHardware, example_info
from freehold_lab.bmc.service import BMC, serve
from freehold_lab.bmc.state import Account

TARGET_SECONDS, PATIENCE = 60.0, 600.0
NETWORKS = """
apiVersion: freehold/v1
kind: Network
metadata: {name: oob}
spec: {role: oob, prefix: 127.0.0.0/8}
---
apiVersion: freehold/v1
kind: Network
metadata: {name: provisioning}
spec: {role: provisioning, prefix: 10.2.0.0/16}
---
apiVersion: freehold/v1
kind: Site
metadata: {name: bench}
spec:
  networks: {oob: oob, provisioning: provisioning}
  controller: {oob: 127.0.0.1, provisioning: 10.2.0.1}
  rotationsPerMinute: 100000
"""
SERVER = """
apiVersion: freehold/v1
kind: Server
metadata: {{name: s{number}}}
spec:
  bmc: {{address: {address}, credential: {{vaultRef: factory/s{number}}}}}
  nics: [{{mac: '52:54:00:00:{high:02x}:{low:02x}', network: provisioning}}]
"""


def password(number: int) -> str:
    return f"Before-rotation-{number}"


def run_bmcs(directory: Path, count: int, pem: bytes, line: Connection) -> None:
    """A process with `count` BMCs whose administrator is our own account already; tells their ports. Asked by a word,
    it tells what they had to say of log-ins: `{"refused_logins": …, "locked_accounts": …}`."""
    refused = 0
    login = Accounts.login

    def counted(accounts: Accounts, user_name: str, secret: str) -> tuple[Account | None, bool]:
        nonlocal refused
        account, locked = login(accounts, user_name, secret)
        refused += account is None  # an account forgets its failures at the next log-in that succeeds
        return account, locked

    Accounts.login = counted  # type: ignore[method-assign]

    async def work() -> None:
        ports, bmcs = [], []
        for number in range(count):
            state = directory / f"bmc-{number}"
            state.mkdir()
            (state / "https.pem").write_bytes(pem)
            config = BmcConfig(password(number), state, port=0, factory_user=OWN_ACCOUNT)
            runner = await serve(MemoryHardware(example_info()), config)
            ports.append(runner.addresses[0][1])
            bmcs.append(runner.app[BMC])
        line.send(ports)
        await asyncio.to_thread(line.recv)
        locked = sum(bool(account.locked_until) for bmc in bmcs for account in bmc.accounts.all().values())
        line.send({"refused_logins": refused, "locked_accounts": locked})

    asyncio.run(work())


def found(directory: Path) -> tuple[EmbeddedVault, SiteKeys, bytes, BmcCertificate]:
    """Vault and keys of a site, and what its BMCs serve: key with certificate (PEM), and the fact of it."""
    vault = EmbeddedVault.create(directory / "vault", FileKek.create(directory / "vault.key"))
    keys = SiteKeys.create(directory, vault, "bench", ["127.0.0.1"], bmc_networks=["127.0.0.0/8"])
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    certificate = authorities.issue_bmc_certificate(vault, private.public_key(), "127.0.0.1", pki.utc_now())
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    fact = BmcCertificate(
        serial=f"{certificate.serial_number:x}",
        sha256=pki.sha256(certificate),
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
    )
    return vault, keys, pem + certificate.public_bytes(serialization.Encoding.PEM), fact


def site_of(directory: Path, spec: SiteSpec, vault: EmbeddedVault, keys: SiteKeys) -> Site:
    """A site that boots nothing."""
    nothing = BootedImage(name="none", sha256="", pcr4={}, pcr11=b"", authenticode=b"", signers=())
    return Site(
        directory=directory,
        spec=spec,
        networks={},
        vault=vault,
        keys=keys,
        agent_image=nothing,
        agent_iso="",
        images={},
        tpm_roots=lambda: TpmRoots([], []),
        files=BootFiles(),
        tftp=directory,
    )


async def make_available(store: Store, count: int, facts: Facts) -> None:
    """Every server is in the pool, its BMC ours: nothing but a rotation is to be done."""
    lease, now = Lease(store.ledger, ttl=600.0), time.time()
    await lease.take()
    status = ServerStatus(state=ServerState.AVAILABLE, state_since=now, facts=facts)
    for claim in await store.ledger.claim(lease.epoch, now + 1.0, count):
        assert await store.ledger.complete(claim, Completion(status=status, next_due=None), now)
    await lease.end()


async def rotated(store: Store, since: float) -> int:
    done, after = 0, ("Server", "")
    while page := await store.list_resources("Server", after=after, limit=500):
        times = (each.status.facts.bmc_credential_since if each.status else None for each in page)
        done += sum(at is not None and at > since for at in times)
        after = page[-1].resource.key
    return done


async def rotate(directory: Path, ports: Sequence[int], site_parts: tuple[Any, ...], log: EvidenceLog) -> float:
    vault, keys, fact = site_parts
    store = await Store.open(directory / "freehold.db")
    where = {f"127.1.{n >> 8}.{n & 255}": ("127.0.0.1", port) for n, port in enumerate(ports)}
    transport.split_address = where.__getitem__  # a document has no ports
    servers = (SERVER.format(number=n, address=a, high=n >> 8, low=n & 255) for n, a in enumerate(where))
    documents = load_documents("---".join([NETWORKS, *servers]), "fleet.yaml")
    await store.apply(documents)
    spec = next(each.spec for each in documents if isinstance(each.spec, SiteSpec))
    site = site_of(directory, spec, vault, keys)
    site.store, site.agents = store, store.agents
    identity = (await fetch_identity("127.1.0.0")).spki_sha256
    facts = Facts(
        bmc_identity=identity,
        bmc_credential_committed=True,
        bmc_credential_since=time.time(),
        bmc_certificate=fact,
        secure_boot_enrolled=True,
    )
    await make_available(store, len(ports), facts)
    await asyncio.to_thread(PasswordIndex(vault).complete)  # as the controller does at its start
    engine = asyncio.create_task(Engine(store, steps_of(site), recorder(log), alone=True).run())
    await asyncio.sleep(1.0)
    start, asked = time.monotonic(), time.time()
    for number in range(len(ports)):
        await store.record_intent(f"s{number}", IntentKind.ROTATE, by="bench")
    while await rotated(store, asked) < len(ports) and time.monotonic() < start + PATIENCE:  # noqa: ASYNC110
        await asyncio.sleep(0.5)
    seconds = time.monotonic() - start
    engine.cancel()
    await asyncio.gather(engine, return_exceptions=True)
    await store.close()
    return seconds


def measure(servers: int) -> dict[str, Any]:
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        vault, keys, pem, fact = found(directory)
        for number in range(servers):
            known = Credential(OWN_ACCOUNT, password(number), generated=True)
            vault.put(f"bmc/s{number}/current", msgspec.json.encode(known))
        ours, theirs = multiprocessing.Pipe()
        bmcs = multiprocessing.Process(target=run_bmcs, args=(directory, servers, pem, theirs), daemon=True)
        bmcs.start()
        log = open_log(directory, "bench", keys)
        try:
            seconds = asyncio.run(rotate(directory, ours.recv(), (vault, keys, fact), log))
            ours.send("how was it")
            said: dict[str, int] = ours.recv()
        finally:
            bmcs.terminate()
            bmcs.join()
        claims = [Statement.from_bytes(Envelope.from_bytes(entry.envelope).payload) for entry in log.entries()]
        unique = {claim.predicate["server"] for claim in claims if claim.predicate.get("unique") is True}
        words = {current(vault, number) for number in range(servers)} - {password(number) for number in range(servers)}
        log.close()
    result = {
        "bench": "rotate",
        "servers": servers,
        "at_once": ROTATIONS_AT_ONCE,
        "seconds": round(seconds, 1),
        "target_seconds": TARGET_SECONDS,
        "different_passwords": len(words),
        "proven_unique": len(unique),
        **said,
        "load_before": round(load, 1),
    }
    return result | {"wrong": wrong(result)}


def current(vault: EmbeddedVault, number: int) -> str:
    """The password that counts for this server's BMC now."""
    stored = vault.get(f"bmc/s{number}/current")
    assert stored is not None
    return msgspec.json.decode(stored, type=Credential).password


def wrong(result: dict[str, Any]) -> list[str]:
    """What must not be, in words. Pure."""
    servers = result["servers"]
    found = {
        "servers have no new password of their own": servers - result["different_passwords"],
        "passwords are not proven unique": servers - result["proven_unique"],
        "log-ins were refused": result["refused_logins"],
        "accounts are locked": result["locked_accounts"],
    }
    words = [f"{count} {what}" for what, count in found.items() if count]
    return words if result["seconds"] <= TARGET_SECONDS else [*words, f"it took more than {TARGET_SECONDS:.0f} s"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", type=int, default=1000)
    options = parser.parse_args()
    result = measure(options.servers)
    print(json.dumps(result))
    return 1 if result["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
