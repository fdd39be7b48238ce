"""What BMCs fetch: only while they are told to, only whole, and nobody else finds it."""

from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
from aiohttp.test_utils import TestClient, TestServer

from freehold.provisioning.firmware_shelf import CHUNK, FirmwareShelf, NeverFetched

PACKAGE = bytes(range(256)) * (CHUNK // 100)


@pytest.fixture
async def client() -> AsyncIterator[TestClient]:
    shelf = FirmwareShelf("https://192.0.2.1:8444")
    async with TestClient(TestServer(shelf.create_app())) as client:
        client.shelf = shelf  # type: ignore[attr-defined]
        yield client


def path(url: str) -> str:
    assert url.startswith("https://192.0.2.1:8444/firmware/")
    return urlsplit(url).path


async def test_a_package_is_there_while_it_is_wanted_and_under_no_other_address(client: TestClient) -> None:
    async with client.shelf.serve(PACKAGE, "halden/HX 100.fwpkg") as url:
        assert url.endswith("/HX%20100.fwpkg")
        head = await client.head(path(url))
        assert (head.status, head.headers["Content-Length"]) == (200, str(len(PACKAGE)))
        assert await (await client.get(path(url))).read() == PACKAGE
        guess = path(url).replace("firmware/", "firmware/0")
        assert (await client.get(guess)).status == 404
    assert (await client.get(path(url))).status == 404


async def test_a_head_alone_is_no_download(client: TestClient) -> None:
    with pytest.raises(NeverFetched, match="has not fetched the package"):
        async with client.shelf.serve(PACKAGE, "x") as url:
            await client.head(path(url))


async def test_half_a_download_is_none(client: TestClient) -> None:
    async def half(package: bytes) -> None:
        async with client.shelf.serve(package, "x") as url:
            answer = await client.get(path(url))
            await answer.content.readexactly(1000)
            answer.close()

    with pytest.raises(NeverFetched, match="67108864 bytes"):
        await half(bytes(64 << 20))  # more than fits into the buffers between the two


async def test_what_failed_is_not_said_to_be_unfetched(client: TestClient) -> None:
    with pytest.raises(RuntimeError, match="the task failed"):
        async with client.shelf.serve(PACKAGE, "x"):
            raise RuntimeError("the task failed")
