"""Acceptance: DMTF's Redfish Service Validator finds no fault in the whole tree, with every kind of resource in it."""

import asyncio
import re
import sys
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from bmc_rig import PASSWORD, ROOT, SYSTEM, certificate, der, pem, port_of, request, served
from machine_rig import real_machine, says

from freehold_lab.bmc.context import BmcConfig
from freehold_lab.bmc.memory import MemoryHardware
from freehold_lab.bmc.service import serve
from freehold_lab.hardware import Hardware

CSDL = Path(__file__).parents[1] / "fixtures" / "redfish-csdl.tar.xz"
VALIDATOR = Path(sys.executable).with_name("rf_service_validator")

_DATABASES = f"{SYSTEM}/SecureBoot/SecureBootDatabases"


def populate(image: str, bios: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Changes that make the optional kinds of resources appear: accounts, tasks, keys, events, media, log entries. At
    their end the server is on."""
    signature = {"SignatureString": "ab" * 32, "SignatureType": "EFI_CERT_SHA256_GUID", "SignatureTypeRegistry": "UEFI"}
    return [
        ("POST", f"{ROOT}/AccountService/Accounts", {"UserName": "a", "Password": "long-enough", "RoleId": "Operator"}),
        (
            "POST",
            f"{_DATABASES}/db/Certificates",
            {"CertificateString": pem(certificate("db")), "CertificateType": "PEM"},
        ),
        ("POST", f"{_DATABASES}/dbx/Signatures", signature),
        ("POST", f"{ROOT}/EventService/Subscriptions", {"Destination": "http://127.0.0.1:9/", "Protocol": "Redfish"}),
        ("POST", f"{SYSTEM}/Storage/1/Drives/nvme0/Actions/Drive.SecureErase", {}),
        ("POST", f"{ROOT}/UpdateService/Actions/UpdateService.SimpleUpdate", {"ImageURI": "http://127.0.0.1:9/x"}),
        ("POST", f"{SYSTEM}/VirtualMedia/CD1/Actions/VirtualMedia.InsertMedia", {"Image": image}),
        ("PATCH", SYSTEM, {"Boot": {"BootSourceOverrideTarget": "UefiHttp", "HttpBootUri": "http://172.30.2.2/a.efi"}}),
        ("POST", f"{SYSTEM}/Actions/ComputerSystem.Reset", {"ResetType": "On"}),
        ("PATCH", f"{SYSTEM}/Bios/Settings", {"Attributes": bios}),
    ]


@pytest.fixture
async def image() -> AsyncIterator[str]:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=b"image")

    app = web.Application()
    app.router.add_get("/boot.iso", answer)
    async with TestServer(app) as server:
        yield str(server.make_url("/boot.iso"))


@pytest.mark.host
@pytest.mark.slow
async def test_dmtf_validator_finds_no_fault(tmp_path: Path, image: str) -> None:
    vendor = der(certificate("vendor"))
    hardware = MemoryHardware(factory_keys={"PK": vendor, "KEK": vendor, "db": vendor})
    await finds_no_fault(hardware, populate(image, {"NumLock": False}), tmp_path)


@pytest.mark.host
@pytest.mark.slow
async def test_nor_does_it_on_the_bmc_of_a_real_machine_that_is_on(tmp_path: Path, image: str) -> None:
    async with real_machine(tmp_path) as machine:
        await finds_no_fault(machine, populate(image, {"LogicalProc": "Disabled"}), tmp_path)
        assert await machine.power_state() == "On"
        await says(machine, ">>Start HTTP Boot")  # its firmware really went where the override points


async def finds_no_fault(hardware: Hardware, changes: list[tuple[str, str, dict[str, Any]]], tmp_path: Path) -> None:
    """The validator reads the whole tree of a BMC on which all the changes were made."""
    with tarfile.open(CSDL) as archive:
        archive.extractall(tmp_path, filter="data")
    config = BmcConfig(factory_password=PASSWORD, state_dir=tmp_path / "bmc", port=0)
    runner = await serve(hardware, config)
    try:
        port = port_of(runner)
        trusted = await asyncio.to_thread(served, port)
        for method, path, body in changes:
            status, answer = await request(port, trusted, method, path, body)
            assert status < 300, (path, answer)
        code, output = await validate(port, tmp_path)
    finally:
        await runner.cleanup()
    passed, warned, failed = summary(output)
    assert (code, failed) == (0, 0), problems(tmp_path)
    assert passed > 1800, "the tree is smaller than it was: is a part of it no longer linked?"
    assert warned < 15, problems(tmp_path)


async def validate(port: int, directory: Path) -> tuple[int, str]:
    """(Exit code, output) of the validator, which reads schemas from the fixture alone."""
    command = [str(VALIDATOR), "--rhost", f"https://127.0.0.1:{port}", "--user", "root", "--password", PASSWORD]
    options = ["--skipschema", "--schema_directory", "redfish-csdl", "--logdir", "reports", "--config", "none.ini"]
    process = await asyncio.create_subprocess_exec(
        *command, *options, cwd=directory, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


def summary(output: str) -> tuple[int, int, int]:
    """(passed, warned, failed) from the table that the validator prints."""
    plain = re.sub(r"\x1b\[\d*m", "", output)
    row = re.search(r"\|\s+(\d+)\s+\|\s+(\d+)\s+\|\s+(\d+)\s+\|\s+\d+\s+\|", plain)
    assert row, output
    passed, warned, failed = (int(number) for number in row.groups())
    return passed, warned, failed


def problems(directory: Path) -> str:
    lines = [line for log in directory.glob("reports/*/*.log") for line in log.read_text().splitlines()]
    return "\n".join(line for line in lines if re.search(r" - (ERROR|WARNING|CRITICAL) - ", line))
