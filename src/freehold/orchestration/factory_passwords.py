"""Factory passwords that were written into Server documents: once a BMC has a password of ours, the store forgets what
it was delivered with. Files on people's own disks are theirs to look after."""

import asyncio
import logging
import time

from freehold.model.errors import FreeholdError
from freehold.orchestration.store import Store

logger = logging.getLogger(__name__)

INTERVAL = 10.0
"""Seconds between two looks."""


async def watch_factory_passwords(store: Store) -> None:
    """For ever. The log is cut off at the start too: an earlier controller may have died between the two."""
    unscrubbed = True
    while True:
        try:
            unscrubbed |= bool(await store.site.erase_factory_passwords(time.time()))
            unscrubbed = unscrubbed and not await store.site.scrub()
        except FreeholdError as error:
            logger.error("%s", error)
        await asyncio.sleep(INTERVAL)
