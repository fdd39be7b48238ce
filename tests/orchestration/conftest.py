from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from orchestration_rig import Clock, Rig

from freehold.orchestration.store import Store


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    clock = Clock()
    store = await Store.open(tmp_path / "freehold.db", clock=clock)
    yield Rig(tmp_path / "freehold.db", store, clock)
    await store.close()
