"""Quotes that a BMC hands over: a software TPM signs them, and a BMC in memory carries them, truly or not."""

import base64
import dataclasses
import struct
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from site_support import recorded

from freehold.agent.tpm import Key, Tpm
from freehold.orchestration.steps import agentless
from freehold.out_of_band.component_integrity import component_integrity
from freehold.out_of_band.redfish import Credential, RedfishClient
from freehold.out_of_band.transport import Answer, Call
from freehold.root_of_trust.attestation.event_log import parse_event_log
from freehold.root_of_trust.attestation.structures import Public, parse_public

sys.path.append(str(Path(__file__).parents[1] / "agent"))
from swtpm_support import Vendor, powered

pytestmark = pytest.mark.host
R = "/redfish/v1"
TPM, SPDM = f"{R}/ComponentIntegrity/TPM-0", f"{R}/ComponentIntegrity/SPDM-0"
TRUSTED = f"{R}/Chassis/1/TrustedComponents/T"
BITS = bytes.fromhex("ff7b00")  # PCRs 0 to 9 and 11 to 14, the lowest first
QUOTE = f"{TPM}/Actions/ComponentIntegrity.TPMGetSignedMeasurements"
LOG = f"{TRUSTED}/Actions/TrustedComponent.TPMGetEventLog"


def certificate_for(key: Any) -> str:
    """By whoever issues attestation keys their certificates: nobody relies on it."""
    issuer, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "AK of the BMC")])
    made = x509.CertificateBuilder(name, name, key, 1, now - timedelta(days=1), now + timedelta(days=1))
    return made.sign(issuer, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


STRANGER = certificate_for(ec.generate_private_key(ec.SECP256R1()).public_key())


@dataclass
class QuotingBmc:
    """A `Transport`: ComponentIntegrity over a TPM. Its fields are what tests make it do wrong."""

    tpm: Tpm
    ak: Key
    certificates: list[str]
    nonce: bytes | None = None
    broken: bool = False
    log: bytes | None = field(default_factory=recorded.log_bytes)
    offered: dict[str, Any] = field(default_factory=dict)

    async def close(self) -> None:
        return None

    async def request(self, call: Call) -> Answer:
        path = call.path.rstrip("/")
        if call.method == "POST":
            return self._act(path, call.body or {})
        found = self._resources().get(path)
        return Answer(status=200, body=found) if found is not None else Answer(status=404)

    def _act(self, path: str, body: dict[str, Any]) -> Answer:
        if path == LOG and self.log is not None:
            return Answer(status=200, body={"EventLog": base64.b64encode(self.log).decode()})
        if path != QUOTE:
            return Answer(status=404)
        if self.broken:
            return Answer(status=200, body={"SignedMeasurements": "?"})
        assert base64.b64decode(body["PCRSelection"]) == struct.pack(">IHB", 1, 0x000B, 3) + BITS
        assert base64.b64decode(body["Scheme"]) == b"\0\x10"
        nonce = self.nonce or bytes.fromhex(body["Nonce"])
        attest, signature = self.tpm.quote(self.ak, nonce, agentless.SELECTION)
        signed = struct.pack(">H", len(attest)) + attest + signature
        return Answer(status=200, body={"SignedMeasurements": base64.b64encode(signed).decode()})

    def _resources(self) -> dict[str, Any]:
        members = [{"@odata.id": uri} for uri in (SPDM, TPM)]
        action = {"#ComponentIntegrity.TPMGetSignedMeasurements": {"target": QUOTE}}
        kept = {f"{TRUSTED}/Certificates/{at}": pem for at, pem in enumerate(self.certificates)}
        return {
            R: {"ComponentIntegrity": {"@odata.id": f"{R}/ComponentIntegrity"}},
            f"{R}/Systems": {"Members": []},
            f"{R}/ComponentIntegrity": {"Members": members},
            SPDM: {
                "@odata.id": SPDM, "Id": "SPDM-0", "ComponentIntegrityType": "SPDM", "TargetComponentURI": TRUSTED,
                "ComponentIntegrityEnabled": True,
            },
            TPM: {
                "@odata.id": TPM, "Id": "TPM-0", "ComponentIntegrityType": "TPM", "TargetComponentURI": TRUSTED,
                "ComponentIntegrityEnabled": True, "TPM": {"NonceSizeBytesMaximum": 32}, "Actions": action,
            } | self.offered,
            TRUSTED: {
                "@odata.id": TRUSTED, "Certificates": {"@odata.id": f"{TRUSTED}/Certificates"},
                "Actions": {"#TrustedComponent.TPMGetEventLog": {"target": LOG}},
            },
            f"{TRUSTED}/Certificates": {"Members": [{"@odata.id": uri} for uri in kept]},
            **{uri: {"@odata.id": uri, "CertificateString": pem} for uri, pem in kept.items()},
        }  # fmt: skip


@pytest.fixture(scope="module")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Vendor:
    return Vendor(tmp_path_factory.mktemp("vendor") / "v")


@pytest.fixture
def bmc(vendor: Vendor) -> Iterator[QuotingBmc]:
    """Over a TPM into which a recorded boot was measured; the BMC quotes with the key that the agent attests with."""
    state = vendor.directory / "one"
    with powered(state if state.exists() else vendor.make("one")) as tpm, tpm.create_ak() as ak:
        for event in parse_event_log(recorded.log_bytes()).events:
            if event.type != 3:
                tpm.pcr_extend(event.pcr, dict(event.digests))
        yield QuotingBmc(tpm, ak, [certificate_for(public(ak).key)])


def public(ak: Key) -> Public:
    return parse_public(ak.public)


@asynccontextmanager
async def talking(bmc: QuotingBmc) -> AsyncIterator[RedfishClient]:
    async with RedfishClient(bmc, Credential("u", "p")) as client:
        yield client


async def asked(bmc: QuotingBmc, **policy: object) -> dict[str, Any]:
    """What is recorded of the TPM."""
    async with talking(bmc) as client:
        spdm, tpm = await agentless.ask(client, public(bmc.ak), recorded.policy(**policy))  # type: ignore[arg-type]
    assert (spdm["id"], spdm["why"]) == ("SPDM-0", "measurements by SPDM are not verified")
    return tpm


async def test_a_quote_by_the_key_that_the_agent_attests_with_is_appraised(bmc: QuotingBmc) -> None:
    told = await asked(bmc)
    assert (told["id"], told["relied_on"], told["trusted"], told["reasons"]) == ("TPM-0", True, True, [])
    assert len(bytes.fromhex(told["nonce"])) == 32
    assert agentless.findings("server-1", [told]) == ()


async def test_another_boot_than_the_one_that_was_promised_is_a_finding(bmc: QuotingBmc) -> None:
    told = await asked(bmc, pcr11=(bytes(32),))
    assert told["trusted"] is False
    (finding,) = agentless.findings("server-1", [told])
    assert "PCR 11" in finding.detail


async def test_a_replayed_quote_is_a_finding(bmc: QuotingBmc) -> None:
    bmc.nonce = b"an older nonce, of an older quote"
    (finding,) = agentless.findings("server-1", [await asked(bmc)])
    assert "TPM-0 that its BMC handed over does not agree: the quote is not for this challenge" in finding.detail


async def test_a_log_that_does_not_replay_proves_nothing(bmc: QuotingBmc) -> None:
    bmc.log = recorded.log_bytes("setup-mode")
    told = await asked(bmc)
    assert told["trusted"] is False
    assert "does not replay" in told["reasons"][0]


async def test_a_quote_by_a_key_of_its_own_is_recorded_and_not_relied_on(bmc: QuotingBmc) -> None:
    """Its certificate does not say that the key is restricted: it could have signed what no TPM has measured."""
    stranger = ec.generate_private_key(ec.SECP256R1()).public_key()
    foreign = dataclasses.replace(public(bmc.ak), key=stranger)
    async with talking(bmc) as client:
        told = (await agentless.ask(client, foreign, recorded.policy()))[1]
    assert (told["relied_on"], told["nonce_is_ours"], told["pcrs"]) == (False, True, {"sha256": list(agentless.PCRS)})
    assert told["signed_by"] == "CN=AK of the BMC"
    assert "trusted" not in told
    assert agentless.findings("server-1", [told]) == ()
    bmc.nonce = b"an older nonce"
    async with talking(bmc) as client:
        told = (await agentless.ask(client, foreign, recorded.policy()))[1]
    (finding,) = agentless.findings("server-1", [told])
    assert "it is not over the nonce that was sent" in finding.detail


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"certificates": []}, "the BMC names no certificate of an attestation key"),
        ({"certificates": ["junk"]}, "is not a certificate"),
        ({"certificates": [STRANGER]}, "the quote's signature is not by the server's attestation key"),
        ({"broken": True}, "no SignedMeasurements in base64"),
        ({"log": None}, "the BMC has no event log of the TPM"),
        ({"offered": {"Actions": {}}}, "the BMC offers no quote of it"),
        ({"offered": {"ComponentIntegrityEnabled": False}}, "the BMC offers no quote of it"),
        ({"offered": {"TPM": {"NonceSizeBytesMaximum": 8}}}, "it takes nonces of 8 bytes only"),
    ],
)  # fmt: skip
async def test_what_a_bmc_does_not_give_is_said_in_words_and_relied_on_by_nobody(
    bmc: QuotingBmc, wrong: dict[str, Any], why: str
) -> None:
    for name, value in wrong.items():
        setattr(bmc, name, value)
    told = await asked(bmc)
    assert told["relied_on"] is False
    assert why in told["why"]


async def test_a_bmc_without_the_collection_offers_nothing(bmc: QuotingBmc) -> None:
    async with talking(bmc) as client:
        client.root.clear()
        assert await component_integrity(client) == ()
        client.root["ComponentIntegrity"] = {"@odata.id": f"{R}/Nowhere"}
        assert await component_integrity(client) == ()
