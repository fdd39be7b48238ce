"""The BMC itself: TLS and its certificate, restart, network protocols, logs, event delivery."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from bmc_rig import PASSWORD, ROOT, Authority, Rig, certificate, error_key, pem, port_of, request, running, served
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from freehold_lab.bmc.context import BmcConfig
from freehold_lab.bmc.memory import MemoryHardware
from freehold_lab.bmc.service import serve
from freehold_lab.bmc.tls import forget_certificates, restore_factory_certificate

MANAGER = f"{ROOT}/Managers/1"
CERTIFICATES = f"{MANAGER}/NetworkProtocol/HTTPS/Certificates"
GENERATE = f"{ROOT}/CertificateService/Actions/CertificateService.GenerateCSR"
REPLACE = f"{ROOT}/CertificateService/Actions/CertificateService.ReplaceCertificate"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(tmp_path) as rig:
        yield rig


def config(state_dir: Path, port: int = 0) -> BmcConfig:
    return BmcConfig(factory_password=PASSWORD, state_dir=state_dir, port=port, reset_seconds=0.3)


async def test_factory_certificate_is_self_signed_and_kept(tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        runner = await serve(MemoryHardware(), config(tmp_path))
        seen.append(await asyncio.to_thread(served, port_of(runner)))
        status, _ = await request(port_of(runner), seen[0], "GET", MANAGER)
        await runner.cleanup()
        assert status == 200
    assert seen[0] == seen[1]
    assert seen[0].issuer == seen[0].subject
    key = seen[0].public_key()
    assert isinstance(key, rsa.RSAPublicKey)
    assert key.key_size == 2048
    assert (tmp_path / "https.pem").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("algorithm", ["TPM_ALG_RSA", "TPM_ALG_ECDSA"])
async def test_replaced_certificate_is_really_served(tmp_path: Path, algorithm: str) -> None:
    runner = await serve(MemoryHardware(), config(tmp_path))
    port, authority = port_of(runner), Authority()
    factory = await asyncio.to_thread(served, port)
    wanted = {
        "CertificateCollection": {"@odata.id": CERTIFICATES},
        "CommonName": "bmc1.oob",
        "Country": "NO",
        "AlternativeNames": ["127.0.0.1", "bmc1.oob"],
        "KeyPairAlgorithm": algorithm,
    }
    status, answer = await request(port, factory, "POST", GENERATE, wanted)
    assert status == 200
    names = x509.load_pem_x509_csr(answer["CSRString"].encode()).extensions
    assert names.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName) == [
        "bmc1.oob"
    ]
    assert (await asyncio.to_thread(served, port)) == factory  # a request alone changes nothing
    signed = authority.sign(answer["CSRString"])
    body = {
        "CertificateString": signed,
        "CertificateType": "PEM",
        "CertificateUri": {"@odata.id": f"{CERTIFICATES}/1"},
    }
    assert (await request(port, factory, "POST", REPLACE, body))[0] == 204
    assert pem(await asyncio.to_thread(served, port)) == signed
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await request(port, factory, "GET", MANAGER)
    status, shown = await request(port, authority.certificate, "GET", f"{CERTIFICATES}/1")
    assert (status, shown["Subject"]["CommonName"]) == (200, "bmc1.oob")
    await runner.cleanup()
    again = await serve(MemoryHardware(), config(tmp_path))
    assert pem(await asyncio.to_thread(served, port_of(again))) == signed
    await again.cleanup()


async def test_certificate_of_a_foreign_key_is_refused(rig: Rig) -> None:
    _, before = await rig.get(f"{CERTIFICATES}/1")
    for text in (pem(certificate("someone")), "nonsense"):
        body = {
            "CertificateString": text,
            "CertificateType": "PEM",
            "CertificateUri": {"@odata.id": f"{CERTIFICATES}/1"},
        }
        status, answer = await rig.post(REPLACE, body)
        assert (status, error_key(answer)) == (400, "ActionParameterValueError")
    assert (await rig.get(f"{CERTIFICATES}/1"))[1] == before


async def replaced(port: int, trusted: x509.Certificate, authority: Authority) -> str:
    """A certificate of `authority`, given to the BMC by its own request."""
    wanted = {"CertificateCollection": {"@odata.id": CERTIFICATES}, "CommonName": "127.0.0.1"}
    _, answer = await request(port, trusted, "POST", GENERATE, wanted)
    signed = authority.sign(answer["CSRString"])
    uri = {"@odata.id": f"{CERTIFICATES}/1"}
    body = {"CertificateString": signed, "CertificateType": "PEM", "CertificateUri": uri}
    assert (await request(port, trusted, "POST", REPLACE, body))[0] == 204
    return signed


async def test_a_certificate_that_waits_is_served_after_a_restart(tmp_path: Path) -> None:
    hardware = MemoryHardware()
    hardware.faults.certificate_waits = True
    runner = await serve(hardware, config(tmp_path))
    port, authority = port_of(runner), Authority()
    factory = await asyncio.to_thread(served, port)
    signed = await replaced(port, factory, authority)
    assert await asyncio.to_thread(served, port) == factory
    reset = f"{MANAGER}/Actions/Manager.Reset"
    assert (await request(port, factory, "POST", reset, {"ResetType": "GracefulRestart"}))[0] == 204
    for _ in range(40):
        await asyncio.sleep(0.1)
        try:
            now = await asyncio.to_thread(served, port)
        except OSError:
            continue
        if now != factory:
            break
    assert pem(now) == signed
    await runner.cleanup()


async def test_the_factory_certificate_can_come_back(tmp_path: Path) -> None:
    runner = await serve(MemoryHardware(), config(tmp_path))
    factory = await asyncio.to_thread(served, port_of(runner))
    await replaced(port_of(runner), factory, Authority())
    await runner.cleanup()
    restore_factory_certificate(tmp_path)
    again = await serve(MemoryHardware(), config(tmp_path))
    assert await asyncio.to_thread(served, port_of(again)) == factory
    await again.cleanup()


async def test_another_board_has_a_key_of_its_own(tmp_path: Path) -> None:
    runner = await serve(MemoryHardware(), config(tmp_path))
    factory = await asyncio.to_thread(served, port_of(runner))
    await replaced(port_of(runner), factory, Authority())
    await runner.cleanup()
    forget_certificates(tmp_path)
    again = await serve(MemoryHardware(), config(tmp_path))
    shown = await asyncio.to_thread(served, port_of(again))
    assert (shown.subject, shown.issuer) == (factory.subject, factory.subject)
    assert shown.public_key() != factory.public_key()
    await again.cleanup()
    restore_factory_certificate(tmp_path)  # from now on this is its factory key
    last = await serve(MemoryHardware(), config(tmp_path))
    assert await asyncio.to_thread(served, port_of(last)) == shown
    await last.cleanup()


async def test_a_request_may_name_somebody_else(tmp_path: Path) -> None:
    hardware = MemoryHardware()
    async with running(tmp_path, hardware) as rig:
        wanted = {"CertificateCollection": {"@odata.id": CERTIFICATES}, "CommonName": "127.0.0.1"}
        hardware.faults.csr_subject = "controller.example"
        _, answer = await rig.post(GENERATE, wanted)
    subject = x509.load_pem_x509_csr(answer["CSRString"].encode()).subject
    assert subject.rfc4514_string() == "CN=controller.example"


async def test_manager_reset_makes_it_unreachable_for_a_while_and_ends_sessions(tmp_path: Path) -> None:
    runner = await serve(MemoryHardware(), config(tmp_path))
    port = port_of(runner)
    factory = await asyncio.to_thread(served, port)
    sessions = f"{ROOT}/SessionService/Sessions"
    await request(port, factory, "POST", sessions, {"UserName": "root", "Password": PASSWORD})
    assert (await request(port, factory, "GET", sessions))[1]["Members@odata.count"] == 1
    status, _ = await request(
        port, factory, "POST", f"{MANAGER}/Actions/Manager.Reset", {"ResetType": "GracefulRestart"}
    )
    assert status == 204
    refused = 0
    for _ in range(60):
        await asyncio.sleep(0.05)
        try:
            status, body = await request(port, factory, "GET", sessions)
        except aiohttp.ClientConnectionError:
            refused += 1
            continue
        if refused:
            break
    assert refused >= 2
    assert (status, body["Members@odata.count"]) == (200, 0)
    await runner.cleanup()


async def test_ipmi_is_on_from_the_factory_and_can_be_turned_off(rig: Rig) -> None:
    path = f"{MANAGER}/NetworkProtocol"
    _, body = await rig.get(path)
    assert body["IPMI"] == {"ProtocolEnabled": True, "Port": 623}
    status, body = await rig.patch(path, {"IPMI": {"ProtocolEnabled": False}, "NTP": {"NTPServers": ["172.30.1.2"]}})
    assert (status, body["IPMI"]["ProtocolEnabled"]) == (200, False)
    assert body["NTP"]["NTPServers"] == ["172.30.1.2"]
    assert "NetworkProtocolChanged" in await rig.log()
    status, body = await rig.patch(path, {"HTTPS": {"ProtocolEnabled": False}})
    assert (status, error_key(body)) == (400, "PropertyValueNotInList")


async def test_log_is_cleared_and_says_by_whom(rig: Rig) -> None:
    await rig.post(f"{ROOT}/EventService/Actions/EventService.SubmitTestEvent")
    log = f"{MANAGER}/LogServices/AuditLog"
    _, entries = await rig.get(f"{log}/Entries")
    assert (await rig.get(entries["Members"][0]["@odata.id"]))[1]["MessageId"] == "HaldenEvent.1.0.TestEvent"
    assert (await rig.post(f"{log}/Actions/LogService.ClearLog"))[0] == 204
    assert await rig.log() == ["LogCleared"]
    assert (await rig.get(entries["Members"][0]["@odata.id"]))[0] == 404


async def test_events_are_pushed_to_subscribers(rig: Rig) -> None:
    events: asyncio.Queue[tuple[Any, Any]] = asyncio.Queue()

    async def listen(request: web.Request) -> web.Response:
        await events.put((await request.json(), request.headers.get("X-Key")))
        return web.Response()

    app = web.Application()
    app.router.add_post("/events", listen)
    async with TestServer(app) as listener:
        subscription = {
            "Destination": str(listener.make_url("/events")),
            "Protocol": "Redfish",
            "Context": "site-1",
            "HttpHeaders": [{"X-Key": "secret"}],
        }
        status, body = await rig.post(f"{ROOT}/EventService/Subscriptions", subscription)
        assert status == 201
        assert body["HttpHeaders"] == []  # may hold secrets: never shown (EventDestination.HttpHeaders)
        await rig.patch(f"{MANAGER}/NetworkProtocol", {"SSH": {"ProtocolEnabled": False}})
        event, header = await asyncio.wait_for(events.get(), 5)
        assert (event["Context"], header) == ("site-1", "secret")
        assert event["Events"][0]["MessageId"] == "HaldenEvent.1.0.NetworkProtocolChanged"
        assert (await rig.delete(body["@odata.id"]))[0] == 204
        await rig.post(f"{ROOT}/EventService/Actions/EventService.SubmitTestEvent")
        await asyncio.sleep(0.1)
        assert events.empty()


async def test_subscription_needs_an_http_destination(rig: Rig) -> None:
    body = {"Destination": "mailto:a@b", "Protocol": "Redfish"}
    assert (await rig.post(f"{ROOT}/EventService/Subscriptions", body))[0] == 400


async def test_fault_connection_resets_over_tls(tmp_path: Path) -> None:
    hardware = MemoryHardware()
    runner = await serve(hardware, config(tmp_path))
    factory = await asyncio.to_thread(served, port_of(runner))
    hardware.faults.connection_resets = 1
    context = ssl.create_default_context(cadata=pem(factory))
    context.check_hostname = False
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(runner), ssl=context)
    writer.write(b"GET /redfish/v1 HTTP/1.1\r\nHost: bmc\r\n\r\n")
    with pytest.raises(ConnectionResetError):  # aiohttp's client would repeat a GET by itself
        await reader.read()
    writer.close()
    assert (await request(port_of(runner), factory, "GET", MANAGER))[0] == 200
    await runner.cleanup()


async def test_snmp_and_host_interface_are_open_from_the_factory_and_can_be_closed(rig: Rig) -> None:
    protocols, interface = f"{MANAGER}/NetworkProtocol", f"{MANAGER}/HostInterfaces/1"
    _, body = await rig.get(protocols)
    assert body["SNMP"]["EnableSNMPv1"] is True
    assert [row["CommunityString"] for row in body["SNMP"]["CommunityStrings"]] == ["public"]
    _, body = await rig.patch(protocols, {"SNMP": {"EnableSNMPv1": False, "EnableSNMPv2c": False}})
    assert (body["SNMP"]["EnableSNMPv1"], body["SNMP"]["EnableSNMPv3"]) == (False, True)
    assert body["SNMP"]["ProtocolEnabled"] is True
    _, body = await rig.get(interface)
    assert (body["InterfaceEnabled"], body["CredentialBootstrapping"]["Enabled"]) == (True, True)
    _, body = await rig.patch(interface, {"CredentialBootstrapping": {"Enabled": False}})
    assert body["CredentialBootstrapping"] == {"Enabled": False, "EnableAfterReset": True, "RoleId": "Administrator"}
    assert body["InterfaceEnabled"] is True
    assert (await rig.patch(interface, {"AuthenticationModes": ["AuthNone"]}))[0] == 400
