"""The evidence log hears of every certificate of the site itself, and of every revocation, whoever made it."""

import asyncio
import logging
import time
from typing import Any

from freehold.evidence import EvidenceLog, Predicate, Statement, Subject
from freehold.model.errors import FreeholdError
from freehold.root_of_trust import authorities
from freehold.root_of_trust.vault import Vault

logger = logging.getLogger(__name__)

INTERVAL = 60.0
"""Seconds between two looks at what a ceremony or a person did to the vault meanwhile."""


async def record_certificates(vault: Vault, log: EvidenceLog) -> None:
    """Record what is not recorded yet. A crash in between only says a thing twice."""
    for claim in await asyncio.to_thread(authorities.unrecorded, vault):
        statement = Statement.claim(Predicate.CERTIFICATE, [subject_of(claim)], {**claim, "recorded": time.time()})
        await asyncio.to_thread(log.append, statement)
        await asyncio.to_thread(authorities.mark_recorded, vault, claim)


async def watch_certificates(vault: Vault, log: EvidenceLog) -> None:
    """For ever."""
    while True:
        await asyncio.sleep(INTERVAL)
        try:
            await record_certificates(vault, log)
        except FreeholdError as error:
            logger.error("%s", error)


def subject_of(claim: dict[str, Any]) -> Subject:
    if "serial" not in claim:
        return Subject.of_name(f"key/{claim['spki_sha256']}")
    name = f"certificate/{claim['serial']}"
    return Subject(name, {"sha256": claim["sha256"]}) if "sha256" in claim else Subject.of_name(name)
