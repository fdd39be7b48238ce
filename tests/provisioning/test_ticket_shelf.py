"""The media with tickets: one a server, under an address that nobody can guess, until the boot is over."""

from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from freehold.provisioning.ticket_shelf import TicketShelf

ISO = bytes(range(256)) * 40


@pytest.fixture
async def client() -> AsyncIterator[TestClient]:
    shelf, app = TicketShelf("http://192.0.2.1:8080"), web.Application()
    shelf.add_routes(app)
    async with TestClient(TestServer(app)) as client:
        client.shelf = shelf  # type: ignore[attr-defined]
        yield client


def path(url: str) -> str:
    assert url.startswith("http://192.0.2.1:8080/tickets/")
    return urlsplit(url).path


async def test_a_medium_is_there_until_the_next_one_or_the_end(client: TestClient) -> None:
    first = path(client.shelf.lay("server-1", ISO))
    assert await (await client.get(first)).read() == ISO
    head = await client.head(first)
    assert (head.headers["Content-Length"], head.headers["Accept-Ranges"]) == (str(len(ISO)), "bytes")
    other = path(client.shelf.lay("server-2", b"other"))
    second = path(client.shelf.lay("server-1", b"second"))
    assert (await client.get(first)).status == 404
    assert await (await client.get(second)).read() == b"second"
    client.shelf.clear("server-1")
    assert (await client.get(second)).status == 404
    assert (await client.get(other)).status == 200
    assert (await client.get("/tickets/0/agent.iso")).status == 404


@pytest.mark.parametrize(
    ("asked", "status", "content", "told"),
    [
        ("bytes=0-0", 206, ISO[:1], f"bytes 0-0/{len(ISO)}"),
        ("bytes=100-199", 206, ISO[100:200], f"bytes 100-199/{len(ISO)}"),
        ("bytes=-16", 206, ISO[-16:], f"bytes {len(ISO) - 16}-{len(ISO) - 1}/{len(ISO)}"),
        (f"bytes=10-{len(ISO) * 2}", 206, ISO[10:], f"bytes 10-{len(ISO) - 1}/{len(ISO)}"),
        ("lines=1-2", 200, ISO, None),
    ],
)
async def test_a_bmc_may_read_it_piece_by_piece(
    client: TestClient, asked: str, status: int, content: bytes, told: str | None
) -> None:
    answer = await client.get(path(client.shelf.lay("server-1", ISO)), headers={"Range": asked})
    assert (answer.status, await answer.read(), answer.headers.get("Content-Range")) == (status, content, told)


async def test_beyond_its_end_there_is_nothing(client: TestClient) -> None:
    answer = await client.get(path(client.shelf.lay("s", ISO)), headers={"Range": f"bytes={len(ISO)}-"})
    assert answer.status == 416
