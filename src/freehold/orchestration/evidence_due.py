"""Statements that others owe the evidence log: it has one writer, the controller, and people act beside it."""

import asyncio
import logging

from freehold.evidence import EvidenceLog, Statement, Subject
from freehold.model.errors import FreeholdError
from freehold.orchestration.store import Store

logger = logging.getLogger(__name__)

INTERVAL = 10.0
"""Seconds between two looks."""


async def record_due(store: Store, log: EvidenceLog) -> None:
    """Append what is due. A crash in between only says a thing twice."""
    for due in await store.site.due():
        claim = Statement.claim(due.predicate, [Subject.of_name(due.subject)], due.facts)
        await asyncio.to_thread(log.append, claim)
        await store.site.settled(due)


async def watch_evidence_due(store: Store, log: EvidenceLog) -> None:
    """For ever."""
    while True:
        try:
            await record_due(store, log)
        except FreeholdError as error:
            logger.error("%s", error)
        await asyncio.sleep(INTERVAL)
