from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import site_support
from door_support import door, own, trusting, vendor  # noqa: F401
from orchestration_rig import Clock, Rig

from freehold.orchestration.store import Store


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    clock = Clock()
    store = await Store.open(tmp_path / "freehold.db", clock=clock)
    yield Rig(tmp_path / "freehold.db", store, clock)
    await store.close()


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[site_support.Place]:
    async with site_support.a_place(tmp_path) as made:
        yield made


@pytest.fixture
async def owned(tmp_path: Path) -> AsyncIterator[site_support.Place]:
    async with site_support.an_owned_place(tmp_path) as made:
        yield made


@pytest.fixture(autouse=True, scope="session")
def _clean() -> Iterator[None]:
    yield
    site_support.forget_founded()
