"""Wherever the controller dies and whenever the BMC reboots: a certificate change ends, and the BMC is no stranger.

The real step and the real client, against a BMC in memory that takes certificates in one of several ways.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.model.resources import Bmc, Credential, ServerSpec
from freehold.model.status import Facts, ServerStatus
from freehold.orchestration.site import EnsureLease
from freehold.orchestration.step import StepContext
from freehold.orchestration.steps import certificates
from freehold.orchestration.view import ServerView
from freehold.out_of_band.certificates import accepted_identity
from freehold.out_of_band.errors import BmcUnreachable
from freehold.out_of_band.redfish import Credential as BmcCredential
from freehold.out_of_band.redfish import RedfishClient
from freehold.out_of_band.transport import Answer, Call, ServerIdentity, describe_certificate, unrecognised
from freehold.root_of_trust import pki

ADDRESS = "10.0.0.1"
NOW = 1_800_000_000.0
CA_KEY, FACTORY_KEY = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
MADE = datetime.fromtimestamp(NOW, UTC)
CA = pki.bmc_ca(CA_KEY, "lab", [ip_network("10.0.0.0/8")], MADE)
FACTORY = pki.root_ca(FACTORY_KEY, "factory", MADE)
ROOT = "/redfish/v1"


def revoked_by(moment: datetime) -> str:
    """The list as the controller keeps it: never out of date while it runs."""
    return pki.pem(pki.revocation_list(CA, CA_KEY, None, [], moment)).decode()


class Crash(BaseException):
    """The controller dies here."""


@dataclass
class ModelBmc:
    """`applies`: when it serves a certificate that it took; `forgets`: a reboot loses the key of the request; `lies`:
    it takes a certificate and answers that it failed. `die_at` counts down to the crash of the controller, with every
    request having a point before and one after it; `reboot_at` likewise to a reboot of the BMC."""

    applies: str
    forgets: bool
    lies: bool
    served: x509.Certificate = FACTORY
    stored: x509.Certificate = FACTORY
    key: ec.EllipticCurvePrivateKey | None = None
    facts: Facts = field(default_factory=lambda: Facts(bmc_identity=pki.spki_sha256(FACTORY)))
    clock: float = NOW
    die_at: int = -1
    reboot_at: int = -1
    away: bool = False
    renewals: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    strangers: int = 0

    # the controller's side

    def identity(self, facts: Facts) -> Any:
        return accepted_identity(facts, None, pki.pem(CA).decode(), revoked_by(self.moment()))

    @asynccontextmanager
    async def bmc(self, view: ServerView, _ensure: EnsureLease) -> AsyncIterator[RedfishClient]:
        transport = Wire(self, self.identity(view.facts))
        async with RedfishClient(transport, BmcCredential("freehold", "x"), sleep=self.sleep) as client:
            yield client

    async def sleep(self, _seconds: float) -> None:
        return None

    async def issue_bmc_certificate(self, key: pki.PublicKey, address: str, now: datetime) -> x509.Certificate:
        return pki.bmc_certificate(key, CA, CA_KEY, address, now)

    async def look(self, _address: str, *, server: str | None = None) -> ServerIdentity:
        self.point()
        return describe_certificate(pki.der(self.served))

    def known(self) -> bool:
        why = unrecognised(pki.der(self.served), self.identity(self.facts), ADDRESS, self.moment())
        return why is None

    # the BMC's side

    def moment(self) -> datetime:
        return datetime.fromtimestamp(self.clock, UTC)

    def point(self) -> None:
        self.die_at -= 1
        self.reboot_at -= 1
        if self.die_at == 0:
            raise Crash
        if self.reboot_at == 0:
            self.reboot()
            raise BmcUnreachable("the BMC reboots")

    def reboot(self) -> None:
        self.served = self.stored
        if self.forgets:
            self.key = None

    def answer(self, call: Call) -> Answer:
        body, path = call.body or {}, call.path.rstrip("/")
        if call.method == "GET":
            return Answer(status=200, body={"@odata.id": path} | TREE[path])
        if path.endswith("GenerateCSR"):
            self.key = ec.generate_private_key(ec.SECP256R1())
            name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, body["CommonName"])])
            request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(self.key, hashes.SHA256())
            return Answer(status=200, body={"CSRString": pki.pem(request).decode()})
        if path.endswith("ReplaceCertificate"):
            return self.take(x509.load_pem_x509_certificate(body["CertificateString"].encode()))
        if path.endswith("Manager.Reset"):
            self.reboot()
        return Answer(status=204)

    def take(self, certificate: x509.Certificate) -> Answer:
        if self.key is None or certificate.public_key() != self.key.public_key():
            return Answer(status=400, body={"error": {"message": "that is not the key of my request"}})
        self.stored, self.key = certificate, None
        if self.applies == "at once":
            self.served = certificate
        return Answer(status=500 if self.lies else 204)


@dataclass
class Wire:
    """A `Transport` that lets nothing through to a BMC that is not recognised."""

    bmc: ModelBmc
    identity: Any

    async def request(self, call: Call) -> Answer:
        self.bmc.point()
        if unrecognised(pki.der(self.bmc.served), self.identity, ADDRESS, self.bmc.moment()) is not None:
            self.bmc.strangers += 1
            raise AssertionError("the BMC has become a stranger by our own doing")
        answer = self.bmc.answer(call)
        self.bmc.point()
        return answer

    async def close(self) -> None:
        return None


def _action(name: str) -> dict[str, Any]:
    return {f"#{name}": {"target": f"{ROOT}/do/{name}"}}


def _to(path: str) -> dict[str, str]:
    return {"@odata.id": f"{ROOT}/{path}"}


TREE: dict[str, dict[str, Any]] = json.loads(
    json.dumps(
        {
            ROOT: {"CertificateService": _to("C"), "Managers": _to("M"), "Systems": _to("S")},
            f"{ROOT}/S": {"Members": []},
            f"{ROOT}/M": {"Members": [_to("M/1")]},
            f"{ROOT}/M/1": {"NetworkProtocol": _to("N"), "Actions": _action("Manager.Reset")},
            f"{ROOT}/N": {"HTTPS": {"Certificates": _to("H")}},
            f"{ROOT}/H": {"Members": [_to("H/1")]},
            f"{ROOT}/H/1": {},
            f"{ROOT}/C": {
                "Actions": _action("CertificateService.GenerateCSR") | _action("CertificateService.ReplaceCertificate")
            },
        }
    )
)
SPEC = ServerSpec(bmc=Bmc(address=ADDRESS, credential=Credential()), nics=())


class Free:
    async def ensure(self, _timeout: float, _server: str) -> None:
        return None


async def one_run(bmc: ModelBmc) -> bool:
    """One run of the step by the engine; whether the goal holds. What it established is written unless it died."""
    view = ServerView(name="s", spec=SPEC, status=ServerStatus(facts=bmc.facts))
    context = StepContext(view, "install_certificate", "k", bmc.clock, 1, False, Free(), None, None)  # type: ignore[arg-type]
    try:
        result = await certificates.install(bmc, context)  # type: ignore[arg-type]
    except (Crash, BmcUnreachable):
        bmc.clock += 5.0
        return False
    assert result.quarantine is None
    bmc.facts = msgspec.structs.replace(bmc.facts, **result.facts)
    bmc.clock += result.retry_after or 0.0
    return result.done


bmcs = st.fixed_dictionaries(
    {"applies": st.sampled_from(["at once", "at a reboot"]), "forgets": st.booleans(), "lies": st.booleans()}
)


@settings(max_examples=120, deadline=None)
@given(
    ways=bmcs,
    rounds=st.lists(st.tuples(st.integers(-1, 22), st.integers(-1, 22), st.booleans()), max_size=12),
    renewals=st.integers(0, 1),
)
@pytest.mark.slow
async def test_wherever_it_is_cut_off_the_bmc_stays_known_and_ends_under_the_ca(
    ways: dict[str, Any], rounds: list[tuple[int, int, bool]], renewals: int
) -> None:
    bmc = ModelBmc(**ways)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificates.transport, "fetch_identity", bmc.look)
        for die_at, reboot_at, written in rounds:
            before = bmc.facts
            bmc.die_at, bmc.reboot_at = die_at, reboot_at
            await one_run(bmc)
            if not written:  # it died between the side effect and its record
                bmc.facts = before
            assert bmc.known()
        bmc.die_at = bmc.reboot_at = -1
        for _ in range(1 + renewals):
            if renewals and bmc.facts.bmc_certificate is not None:
                bmc.clock += 300 * 86400.0 - (bmc.clock - NOW)
            done = False
            for _ in range(40):
                done = await one_run(bmc)
                assert bmc.known()
                if done:
                    break
            if bmc.lies and bmc.applies == "at a reboot":
                return  # it says no each time, so nobody restarts it: a finding for people; but it is known
            assert done
            assert bmc.facts.bmc_certificate is not None
            assert bmc.facts.bmc_certificate.sha256 == pki.sha256(bmc.served)
            assert bmc.facts.bmc_certificate_pending is None
            assert bmc.identity(bmc.facts).spki_sha256 is None
            renewals = 0
    assert bmc.strangers == 0
