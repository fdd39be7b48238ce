import asyncio
import socket
import struct

import pytest
from aiohttp.test_utils import TestClient, TestServer

from freehold.model.errors import FreeholdError
from freehold.provisioning.boot_server import BootFiles, create_boot_app

DATA = bytes(range(256)) * 4096


@pytest.fixture
def files(tmp_path):
    path = tmp_path / "real-name"
    path.write_bytes(DATA)
    (tmp_path / "other").write_bytes(b"private")
    files = BootFiles()
    files.register("boot", "agent.efi", path)
    files.register("images", "minimal-1.raw", path)
    return files


@pytest.fixture
async def client(files):
    async with TestClient(TestServer(create_boot_app(files))) as client:
        yield client


async def test_head_then_get_as_firmware_does(client):
    head = await client.head("/boot/agent.efi")
    assert (head.status, head.headers["Content-Length"]) == (200, str(len(DATA)))
    assert await (await client.get("/boot/agent.efi")).read() == DATA


async def test_range(client):
    response = await client.get("/images/minimal-1.raw", headers={"Range": "bytes=1000-1999"})
    assert (response.status, await response.read()) == (206, DATA[1000:2000])
    assert response.headers["Content-Range"] == f"bytes 1000-1999/{len(DATA)}"
    assert (await client.get("/images/minimal-1.raw", headers={"Range": f"bytes={len(DATA)}-"})).status == 416


@pytest.mark.parametrize(
    "path", ["/boot/real-name", "/boot/other", "/boot/..%2Fother", "/images/agent.efi", "/", "/boot/"]
)
async def test_nothing_else_is_served(client, path):
    assert (await client.get(path)).status == 404


async def test_unregistered_file_is_gone(client, files):
    files.unregister("boot", "agent.efi")
    assert (await client.get("/boot/agent.efi")).status == 404


@pytest.mark.parametrize("name", ["../x", "", ".hidden", "a/b"])
def test_names_are_plain(files, tmp_path, name):
    with pytest.raises(FreeholdError, match="cannot be served"):
        files.register("boot", name, tmp_path / "other")
    with pytest.raises(FreeholdError, match="is not a file"):
        files.register("boot", "x", tmp_path / "absent")


async def test_firmware_that_resets_its_connection_hurts_nobody(client, caplog):
    reader, writer = await asyncio.open_connection("127.0.0.1", client.server.port)
    writer.write(b"GET /boot/agent.efi HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.read(1000)
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.close()
    await asyncio.sleep(0.05)
    assert await (await client.get("/boot/agent.efi")).read() == DATA
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
