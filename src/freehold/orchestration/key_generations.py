"""A new generation of Secure Boot keys, whoever made it: the evidence log and the planner hear of it.

What is done to the vault beside the running controller is found by comparing it with the store. A crash between the two
only makes a statement twice.
"""

import asyncio
import hashlib
import logging

from freehold.evidence import EvidenceLog, Predicate, Statement, Subject
from freehold.model.errors import FreeholdError
from freehold.orchestration.store import Store
from freehold.root_of_trust.secure_boot_generations import Generation, KeySet
from freehold.root_of_trust.secure_boot_keys import SecureBootKeyring

logger = logging.getLogger(__name__)

INTERVAL = 10.0
"""Seconds between two looks."""


async def announce_generations(keyring: SecureBootKeyring, store: Store, log: EvidenceLog) -> None:
    """Record the generations that the store does not know; then every server is looked at."""
    known = await store.secure_boot_generation()
    for generation in await asyncio.to_thread(keyring.generations):
        if generation.number > known:
            keys = await asyncio.to_thread(keyring.key_set, generation.number)
            subject = Subject.of_name(f"secure-boot-generation/{generation.number}")
            statement = Statement.claim(Predicate.SECURE_BOOT, [subject], claim(generation, keys))
            await asyncio.to_thread(log.append, statement)
            await store.announce_secure_boot(generation.number)


async def watch_generations(keyring: SecureBootKeyring, store: Store, log: EvidenceLog) -> None:
    """For ever."""
    while True:
        try:
            await announce_generations(keyring, store, log)
        except FreeholdError as error:
            logger.error("%s", error)
        await asyncio.sleep(INTERVAL)


def claim(generation: Generation, keys: KeySet) -> dict[str, object]:
    """What the evidence log says of a generation. Certificates by SHA-256 of their DER, `at` in UNIX seconds."""
    return {
        "event": "generation",
        "generation": generation.number,
        "pk": hashlib.sha256(keys.pk).hexdigest(),
        "kek": hashlib.sha256(keys.kek).hexdigest(),
        "db": [hashlib.sha256(each).hexdigest() for each in keys.db],
        "dbx": list(generation.dbx),
        "reason": generation.reason,
        "at": generation.at,
    }
