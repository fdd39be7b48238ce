"""The agent against the agent API over real TLS on loopback, with a backend that records what it hears."""

import asyncio
import datetime
import hashlib
import ipaddress
import ssl
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_der_public_key
from cryptography.x509.oid import NameOID
from swtpm_support import Vendor, connect, running

from freehold.agent import client as client_module
from freehold.agent import orders
from freehold.agent.client import Agent, Controller
from freehold.agent.identity import qualifying_data
from freehold.agent.ticket import record
from freehold.agent.tpm import TpmError
from freehold.provisioning.agent_api import create_agent_app
from freehold.provisioning.agent_messages import (
    Admission,
    AgentRefusedError,
    Challenge,
    Order,
    UnknownCertificateError,
)
from freehold.root_of_trust.attestation import session
from freehold.root_of_trust.attestation.credential import make_credential
from freehold.root_of_trust.attestation.errors import QuoteError
from freehold.root_of_trust.attestation.quote import check_quote
from freehold.root_of_trust.attestation.structures import parse_public

NONCE = bytes(range(32))
TICKET = b"t" * 32
PCRS = {"sha256": [0, 1, 2, 4, 7, 11]}


def issue(name, issuer=None, issuer_key=None, address="127.0.0.1", public=None):
    """(certificate, key): a CA without an issuer, else one with an IP SAN, for a key of our own or for `public`."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer.subject if issuer else subject)
    builder = builder.public_key(public or key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(
        now + datetime.timedelta(days=1)
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    if issuer:
        san = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        builder = builder.add_extension(san, critical=False)
    return builder.sign(issuer_key or key, hashes.SHA256()), key


class Site:
    """CA file, server context, certificate digest."""

    def __init__(self, path, address="127.0.0.1"):
        path.mkdir()
        ca, ca_key = self.authority = issue("site CA")
        certificate, key = issue("controller", ca, ca_key, address)
        self.ca = path / "ca.pem"
        self.ca.write_bytes(ca.public_bytes(Encoding.PEM))
        pem = path / "server.pem"
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        pem.write_bytes(certificate.public_bytes(Encoding.PEM) + private)
        self.der = certificate.public_bytes(Encoding.DER)
        self.server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server_context.load_cert_chain(pem)
        self.server_context.verify_mode = ssl.CERT_OPTIONAL
        self.server_context.load_verify_locations(self.ca)

    def admit(self, public):
        """(PEM of a certificate for a session's public key, its SHA-256 in hex)."""
        certificate, _ = issue("agent", *self.authority, public=load_der_public_key(public))
        return certificate.public_bytes(Encoding.PEM).decode(), certificate.fingerprint(hashes.SHA256()).hex()

    def client_context(self):
        context = ssl.create_default_context(cafile=self.ca)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context


class Backend:
    """Hands out the given orders one after the other; keeps every message."""

    def __init__(self, *given, drop_results=0, refuse=0):
        self.queue, self.given, self.results = list(given), list(given), []
        self.hellos, self.evidence, self.progressed, self.readies = [], [], [], []
        self.entries = []
        self.drop_results, self.refuse, self.forget_at = drop_results, refuse, None
        self.live, self.digest, self.secret, self.valid_for = set(), None, b"s" * 32, 3600.0
        self.site = None

    async def hello(self, hello, peer):
        self.hellos.append(hello)
        if hello.ek_public is None:
            raise AgentRefusedError("the server has no usable TPM", remedy="turn the TPM on in the firmware's setup")
        if self.refuse:
            self.refuse -= 1
            raise AgentRefusedError("the server is not enrolled", remedy="enroll it")
        blob, encrypted = b"blob", b"encrypted"
        if len(hello.ek_public) > 100:  # a real one
            ek, ak = parse_public(hello.ek_public), parse_public(hello.ak_public)
            credential = make_credential(ek, ak.name, self.secret)
            blob, encrypted = credential.blob, credential.encrypted_secret
        return Challenge(session="s1", credential_blob=blob, encrypted_secret=encrypted, nonce=NONCE, pcrs=PCRS)

    async def attest(self, evidence, tls_certificate_sha256, peer):
        self.evidence.append(evidence)
        self.digest = tls_certificate_sha256
        if evidence.secret != self.secret:
            raise AgentRefusedError("the credential was not activated", remedy="look at the TPM")
        pem, shown = self.site.admit(evidence.public_key)
        self.live = {shown}
        return Admission(certificate=pem, valid_for=self.valid_for)

    async def enter(self, entry, peer):
        self.entries.append(entry)
        if entry.ticket != TICKET:
            raise AgentRefusedError("not of this boot", remedy="start it anew")
        pem, shown = self.site.admit(entry.public_key)
        self.live = {shown}
        return Admission(certificate=pem, valid_for=self.valid_for)

    async def authenticate(self, certificate):
        if certificate not in self.live:
            raise UnknownCertificateError("no live session", remedy="attest")

    async def next_order(self, certificate, wait):
        return self.queue[0] if self.queue else None

    async def progress(self, certificate, order_id, progress):
        self.progressed.append((order_id, progress))

    async def result(self, certificate, order_id, result):
        self.results.append((order_id, result))
        if self.drop_results:
            self.drop_results -= 1
            raise RuntimeError("database password is hunter2")
        if self.queue and self.queue[0].id == order_id:
            self.queue.pop(0)
        if self.forget_at == order_id:
            self.live.clear()

    async def ready(self, certificate, ready):
        self.readies.append(ready)


class FakeTpm:
    """Counts what it is asked."""

    class Key:
        def __init__(self, public):
            self.public = public

    def __init__(self):
        self.quoted, self.busy = [], 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def create_ek(self):
        return self.Key(b"ek")

    def create_ak(self):
        return self.Key(b"ak")

    def ek_certificate(self):
        return b"certificate"

    def activate_credential(self, ak, ek, blob, encrypted):
        return b"s" * 32

    def quote(self, ak, qualifying, selection):
        self.quoted.append((qualifying, selection))
        return b"quote", b"signature"


@asynccontextmanager
async def serving(backend, site):
    backend.site = site
    app = create_agent_app(backend, hashlib.sha256(site.der).digest())
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=site.server_context).start()
    yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


class Stopped(BaseException):
    """Ends an agent that would retry for ever."""


async def run_agent(backend, site, machine, *, tpm=None, mode="ramdisk", context=None, pauses=10):
    """Run until an order to leave; returns (fake TPM, orders to leave, pauses)."""
    left, waits = [], []
    tpm = tpm or FakeTpm()

    def pause(seconds):
        waits.append(seconds)
        if len(waits) >= pauses:
            raise Stopped

    def open_tpm(_):
        if isinstance(tpm, Exception):
            raise tpm
        if getattr(tpm, "busy", 0):
            tpm.busy -= 1
            raise TpmError("the TPM is busy", "wait")
        return tpm

    def run():
        try:
            agent.run()
        except Stopped:
            return
        finally:
            agent.controller.close()

    async with serving(backend, site) as url:
        controller = Controller(url, lambda: context or site.client_context())
        agent = Agent(
            controller, mode, root=machine.root, leave=lambda *what: left.append(what), open_tpm=open_tpm, pause=pause
        )
        await asyncio.to_thread(run)
    return tpm, left, waits


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path / "site")


REBOOT = Order(id="9", kind="reboot", args={})


async def test_from_hello_to_reboot(machine, site):
    machine.write("sys/kernel/security/tpm0/binary_bios_measurements", b"log")
    machine.write("proc/sys/kernel/random/boot_id", "boot-1\n")
    machine.disk("N0", 1 << 20)
    backend = Backend(Order(id="1", kind="inventory", args={}), REBOOT)
    tpm, left, waits = await run_agent(backend, site, machine)
    assert left == [("reboot", "ramdisk")]
    assert waits == []
    assert [(number, result.ok) for number, result in backend.results] == [("1", True), ("9", True)]
    assert backend.results[0][1].result["disks"][0]["serial"] == "N0"
    assert (backend.hellos[0].boot_id, backend.hellos[0].ek_certificate) == ("boot-1", b"certificate")
    assert backend.evidence[0].event_log == b"log"
    public = backend.evidence[0].public_key
    assert tpm.quoted == [(qualifying_data(NONCE, "s1", site.der, public), PCRS)]
    assert backend.digest == hashlib.sha256(site.der).digest()
    bound = backend.digest + hashlib.sha256(public).digest()
    assert tpm.quoted[0][0] == hashlib.sha256(NONCE + b"s1" + bound).digest()
    assert tpm.quoted[0][0] == session.qualifying_data(NONCE, "s1", site.der, public)


@pytest.mark.host
async def test_credential_and_quote_of_a_real_tpm(machine, site, tmp_path):
    backend = Backend(REBOOT)
    with running(Vendor(tmp_path / "vendor").make("t0")) as path:
        _, left, _ = await run_agent(backend, site, machine, tpm=connect(path), pauses=1)
    assert left
    evidence, ak = backend.evidence[0], parse_public(backend.hellos[0].ak_public)
    wanted = qualifying_data(NONCE, "s1", site.der, evidence.public_key)
    quote = check_quote(ak, evidence.quote, evidence.signature, qualifying_data=wanted, selection=PCRS)
    assert quote is not None
    with pytest.raises(QuoteError):
        check_quote(ak, evidence.quote, evidence.signature, qualifying_data=bytes(32), selection=PCRS)
    assert backend.hellos[0].ek_certificate[:1] == b"\x30"


async def test_failed_order_is_an_answer_and_the_agent_goes_on(machine, site):
    backend = Backend(Order(id="1", kind="dance", args={}), Order(id="2", kind="write_image", args={}), REBOOT)
    await run_agent(backend, site, machine)
    errors = [result.error.what for _, result in backend.results[:2]]
    assert "unknown order 'dance'" in errors[0]
    assert "'manifest_url' is missing" in errors[1]


async def test_order_delivered_twice_is_done_once_and_answered_twice(machine, site, monkeypatch):
    done = []
    monkeypatch.setitem(orders.ORDERS, "inventory", lambda *_: done.append(1) or {"runs": len(done)})
    backend = Backend(*[Order(id="1", kind="inventory", args={})] * 2, REBOOT)
    await run_agent(backend, site, machine)
    assert done == [1]
    assert [result.result for number, result in backend.results if number == "1"] == [{"runs": 1}] * 2


async def test_result_is_delivered_again_after_a_server_failure_and_secrets_stay_inside(machine, site, capsys):
    backend = Backend(Order(id="1", kind="inventory", args={}), REBOOT, drop_results=2)
    _, left, waits = await run_agent(backend, site, machine)
    assert left
    assert waits == [1.0, 2.0]
    assert len(backend.results) == 4
    said = capsys.readouterr().out
    assert "hunter2" not in said
    assert "result of order 1 failed: the controller answers 500" in said


async def test_reboot_waits_for_its_result_to_arrive(machine, site):
    backend = Backend(REBOOT, drop_results=1)
    _, left, _ = await run_agent(backend, site, machine)
    assert left == [("reboot", "ramdisk")]
    assert len(backend.results) == 2


async def test_refusal_is_said_and_tried_again_with_back_off(machine, site, capsys):
    _, left, waits = await run_agent(Backend(REBOOT, refuse=3), site, machine)
    assert left
    assert waits == [1.0, 2.0, 4.0]
    assert "attestation failed: the controller answers 403: the server is not enrolled" in capsys.readouterr().out


async def test_server_without_tpm_is_named_to_the_controller(machine, site, capsys):
    backend = Backend(REBOOT)
    await run_agent(backend, site, machine, tpm=TpmError("no TPM", "turn it on"), pauses=3)
    (hello,) = backend.hellos
    assert hello.ek_public is None
    assert backend.evidence == []
    assert "no usable TPM" in capsys.readouterr().out


async def test_a_tpm_that_is_busy_at_first_is_not_called_missing(machine, site):
    backend = Backend(REBOOT)
    tpm = FakeTpm()
    tpm.busy = 2
    _, left, waits = await run_agent(backend, site, machine, tpm=tpm)
    assert (left, waits) == ([("reboot", "ramdisk")], [1.0, 2.0])
    (hello,) = backend.hellos
    assert hello.ek_public is not None


def with_ticket(machine, secret=TICKET):
    machine.write("proc/sys/kernel/random/boot_id", "boot-1\n")
    machine.write("sys/block/sr0/removable", "1\n")
    machine.write("dev/sr0", bytes(4096) + record(secret))


async def test_without_a_tpm_the_ticket_of_this_boot_is_shown_and_no_hello_said(machine, site, capsys):
    with_ticket(machine)
    backend = Backend(Order(id="1", kind="inventory", args={}), REBOOT)
    backend.forget_at = "1"
    _, left, waits = await run_agent(backend, site, machine, tpm=TpmError("no TPM", "turn it on"))
    assert (left, waits) == ([("reboot", "ramdisk")], [])
    assert (backend.hellos, backend.evidence) == ([], [])
    first, second = backend.entries
    assert (first.mode, first.boot_id, first.ticket, second.ticket) == ("ramdisk", "boot-1", TICKET, TICKET)
    assert first.public_key != second.public_key
    said = capsys.readouterr().out
    assert "let in by ticket" in said
    assert TICKET.hex() not in said


async def test_a_ticket_that_is_refused_is_said_and_tried_again(machine, site, capsys):
    with_ticket(machine, b"o" * 32)
    backend = Backend(REBOOT)
    _, left, _ = await run_agent(backend, site, machine, tpm=TpmError("no TPM", "turn it on"), pauses=2)
    assert (left, len(backend.entries)) == ([], 2)
    assert "the controller answers 403: not of this boot" in capsys.readouterr().out


async def test_a_tpm_that_the_controller_does_not_take_leaves_the_ticket(machine, site):
    with_ticket(machine)
    backend = Backend(REBOOT, refuse=1)
    _, left, _ = await run_agent(backend, site, machine)
    assert left
    assert (len(backend.hellos), len(backend.entries), backend.evidence) == (1, 1, [])


async def test_an_attestation_that_failed_is_not_made_good_by_a_ticket(machine, site):
    with_ticket(machine)
    backend = Backend(REBOOT)
    backend.secret = b"x" * 32
    _, left, _ = await run_agent(backend, site, machine, pauses=2)
    assert (left, backend.entries, len(backend.evidence)) == ([], [], 2)


async def test_the_os_shows_the_ticket_of_its_seed_partition_and_no_other(machine, site):
    with_ticket(machine, b"o" * 32)
    machine.write("sys/class/block/nvme0n1p2/uevent", "PARTNAME=CIDATA\n")
    machine.write("dev/nvme0n1p2", bytes(4096) + record(TICKET))
    backend = Backend(REBOOT)
    _, left, _ = await run_agent(backend, site, machine, tpm=TpmError("no TPM", "turn it on"), mode="os")
    assert left == [("reboot", "os")]
    assert [(one.mode, one.ticket) for one in backend.entries] == [("os", TICKET)]


async def test_forgotten_session_leads_to_a_new_attestation(machine, site):
    backend = Backend(Order(id="1", kind="inventory", args={}), REBOOT)
    backend.forget_at = "1"
    _, left, _ = await run_agent(backend, site, machine)
    assert left
    assert len(backend.evidence) == 2


async def test_each_attestation_is_with_a_fresh_key(machine, site):
    backend = Backend(Order(id="1", kind="inventory", args={}), REBOOT)
    backend.forget_at = "1"
    await run_agent(backend, site, machine)
    first, second = (evidence.public_key for evidence in backend.evidence)
    assert first != second


async def test_a_certificate_is_renewed_before_it_ends(machine, site):
    backend = Backend(*[Order(id=str(number), kind="inventory", args={}) for number in range(3)], REBOOT)
    backend.valid_for = 0.0
    real = backend.authenticate

    async def lasting_from_the_third_on(certificate):
        backend.valid_for = 3600.0 if len(backend.evidence) >= 2 else 0.0
        await real(certificate)

    backend.authenticate = lasting_from_the_third_on
    _, left, waits = await run_agent(backend, site, machine, mode="os")
    assert (left, waits) == ([("reboot", "os")], [])
    assert len(backend.evidence) == 3


async def test_an_order_that_outlasts_its_certificate_is_finished_and_answered_once(machine, site, monkeypatch):
    runs = []

    def slow(_, context):
        runs.append(1)
        backend.live.clear()  # the controller was restarted
        for done in (1, 2, 100):
            context.progress(done, 100, "write")
        return {}

    monkeypatch.setitem(orders.ORDERS, "inventory", slow)
    monkeypatch.setattr(client_module, "PROGRESS_EVERY_S", 0.0)
    backend = Backend(Order(id="1", kind="inventory", args={}), REBOOT)
    _, left, waits = await run_agent(backend, site, machine)
    assert (left, waits, runs) == ([("reboot", "ramdisk")], [], [1])
    assert len(backend.evidence) == 2
    assert [one.done for _, one in backend.progressed] == [2, 100]
    assert [number for number, _ in backend.results] == ["1", "9"]


async def test_an_agent_whose_certificate_tls_does_not_take_any_more_attests_again(machine, site):
    """A handshake that fails for our certificate's sake fails for ever: that must not be taken for the network."""
    backend = Backend(Order(id="1", kind="inventory", args={}), REBOOT)
    real, taken = site.admit, []

    def first_of_a_stranger(public):
        taken.append(public)
        if len(taken) > 1:
            return real(public)
        certificate, _ = issue("agent", *issue("another CA"), public=load_der_public_key(public))
        return certificate.public_bytes(Encoding.PEM).decode(), ""

    site.admit = first_of_a_stranger
    _, left, waits = await run_agent(backend, site, machine)
    assert (left, waits) == ([("reboot", "ramdisk")], [1.0, 2.0])
    assert len(backend.evidence) == 2


async def test_os_mode_reports_ready(machine, site):
    machine.write("sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c", b"\6\0\0\0\1")
    backend = Backend(REBOOT)
    _, left, _ = await run_agent(backend, site, machine, mode="os")
    assert left == [("reboot", "os")]
    assert backend.readies[0].secure_boot is True
    assert backend.hellos[0].mode == "os"


async def test_progress_reaches_the_backend(machine, site, monkeypatch):
    def slow(_, context):
        for done in (1, 2, 100):
            context.progress(done, 100, "write")
        return {}

    monkeypatch.setitem(orders.ORDERS, "inventory", slow)
    monkeypatch.setattr(client_module, "PROGRESS_EVERY_S", 60.0)
    backend = Backend(Order(id="1", kind="inventory", args={}), REBOOT)
    await run_agent(backend, site, machine)
    assert [(number, one.done, one.phase) for number, one in backend.progressed][-1] == ("1", 100, "write")
    assert len(backend.progressed) == 2


async def test_controller_of_another_ca_hears_nothing(machine, site, tmp_path, capsys):
    other = Site(tmp_path / "other")
    backend = Backend(REBOOT)
    await run_agent(backend, site, machine, context=other.client_context(), pauses=2)
    assert backend.hellos == []
    assert "certificate verify failed" in capsys.readouterr().out


async def test_controller_with_another_address_in_its_certificate_hears_nothing(machine, tmp_path, capsys):
    backend = Backend(REBOOT)
    await run_agent(backend, Site(tmp_path / "far", "127.0.0.9"), machine, pauses=1)
    assert backend.hellos == []
    assert "IP address mismatch" in capsys.readouterr().out


@pytest.mark.parametrize("answer", [{}, {"session": "s1", "nonce": "?"}, {"session": "s1", "nonce": None}])
async def test_malformed_challenge_is_said_and_tried_again(machine, site, monkeypatch, capsys, answer):
    real, answers = Controller.call, [answer]
    monkeypatch.setattr(Controller, "call", lambda *args, **more: answers.pop() if answers else real(*args, **more))
    _, left, waits = await run_agent(Backend(REBOOT), site, machine)
    assert left
    assert waits == [1.0]
    assert "attestation failed: the controller's answer is malformed" in capsys.readouterr().out
