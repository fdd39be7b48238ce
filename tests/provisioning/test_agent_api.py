"""Bad input, strangers and limits of the agent API; the good path is tests/agent/test_protocol.py."""

import base64
import gzip
import json

import pytest
from agent_routes import guarded
from aiohttp.test_utils import TestClient, TestServer

from freehold.model.errors import FreeholdError
from freehold.provisioning import agent_api
from freehold.provisioning.agent_api import create_agent_app
from freehold.provisioning.agent_messages import Admission, Challenge, UnknownCertificateError, UnknownOrderError

HELLO = {
    "protocol": 2, "mode": "ramdisk", "boot_id": "b", "macs": ["52:54:00:00:00:10"], "ek_public": "ZWs=",
    "smbios": {"uuid": None, "serial": None, "vendor": None, "product": None},
    "ek_certificate": None, "ak_public": "YWs=",
}  # fmt: skip
EVIDENCE = {
    "session": "s",
    "secret": "cw==",
    "quote": "cQ==",
    "signature": "cw==",
    "event_log": "",
    "public_key": "aw==",
}


class Backend:
    def __init__(self):
        self.seen, self.failure = [], None

    async def hello(self, hello, peer):
        self.seen.append((hello, peer))
        if self.failure:
            raise self.failure
        return Challenge(
            session="s", credential_blob=b"b", encrypted_secret=b"e", nonce=b"n" * 32, pcrs={"sha256": [0]}
        )

    async def attest(self, evidence, digest, peer):
        self.seen.append(evidence)
        return Admission(certificate="PEM", valid_for=60.0)

    async def authenticate(self, certificate):
        if certificate != "good":
            raise UnknownCertificateError("no live session", remedy="attest again")

    async def next_order(self, certificate, wait):
        self.seen.append(wait)

    async def progress(self, certificate, order_id, progress):
        raise UnknownOrderError(f"no order {order_id}", remedy="none")

    async def result(self, certificate, order_id, result):
        self.seen.append((order_id, result))

    async def ready(self, certificate, ready):
        self.seen.append(ready)


@pytest.fixture
def backend():
    return Backend()


@pytest.fixture
async def client(backend, monkeypatch):
    """Without TLS: which certificate the peer has shown stands in a header. The real thing is in test_agent_door."""
    monkeypatch.setattr(agent_api, "certificate_of", lambda request: request.headers.get("Shown"))
    async with TestClient(TestServer(create_agent_app(backend, bytes(32)))) as client:
        yield client


GOOD = {"Shown": "good"}


async def test_hello_becomes_bytes_and_the_challenge_base64(client, backend):
    response = await client.post("/agent/v1/hello", json=HELLO)
    answer = await response.json()
    assert response.status == 200
    assert (answer["nonce"], answer["pcrs"]) == (base64.b64encode(b"n" * 32).decode(), {"sha256": [0]})
    assert (backend.seen[0][0].ek_public, backend.seen[0][1]) == (b"ek", "127.0.0.1")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mode": "kiosk"}, "$.mode"), ({"protocol": 1}, "$.protocol"), ({"ek_public": "?"}, "$.ek_public"),
        ({"macs": ["x"]}, "$.macs"), ({"smbios": {}}, "$.smbios"), ({"admin": True}, "admin"),
        ({"boot_id": 1}, "$.boot_id"),
        ({"boot_id": "x" * 257}, "$.boot_id"),
    ],
)  # fmt: skip
async def test_bad_field_is_named(client, backend, change, named):
    response = await client.post("/agent/v1/hello", json=HELLO | change)
    assert response.status == 400
    assert named in (await response.json())["error"]["what"]
    assert backend.seen == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        pytest.param(b"[" * 60000, id="recursive structures: lists 60,000 deep"),
        pytest.param(b'{"smbios":' * 6000, id="recursive structures: objects 6,000 deep"),
        b"null",
        b"\xff\xfe",
    ],
)
async def test_bodies_that_are_no_messages(client, body):
    response = await client.post("/agent/v1/hello", data=body)
    assert response.status == 400
    assert "what" in (await response.json())["error"]


async def test_event_log_of_one_mebibyte_is_taken_and_a_larger_one_is_not(client, backend):
    log = base64.b64encode(bytes(1 << 20)).decode()
    assert (await client.post("/agent/v1/attest", json=EVIDENCE | {"event_log": log})).status == 200
    log = base64.b64encode(bytes((1 << 20) + 3)).decode()
    assert (await client.post("/agent/v1/attest", json=EVIDENCE | {"event_log": log})).status == 400
    response = await client.post("/agent/v1/attest", data=b" " * (2 << 20))
    assert response.status == 413
    assert (await client.post("/agent/v1/hello", data=b" " * (65 << 10))).status == 413
    assert len(backend.seen) == 1


async def test_cve_2022_23951_a_body_that_inflates_is_cut_off_at_the_limit(client, backend):
    """keylime's verifier inflated a quote of any size, and died of it."""
    bomb = gzip.compress(b" " * (64 << 20))
    assert len(bomb) < 64 << 10
    response = await client.post("/agent/v1/hello", data=bomb, headers={"Content-Encoding": "gzip"})
    assert response.status == 413
    assert backend.seen == []


GUARDED = guarded(create_agent_app(Backend(), bytes(32)))


def test_cve_2026_1709_the_routes_behind_the_certificate_are_all_of_the_app_but_three():
    assert len(GUARDED) >= 5
    assert {("GET", "/agent/v1/orders"), ("POST", "/agent/v1/orders/1/result")} < set(GUARDED)


@pytest.mark.parametrize("headers", [{}, {"Shown": "bad"}, {"Authorization": "Bearer good"}])
@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_cve_2026_1709_without_the_certificate_of_a_live_session_nothing_is_heard(
    client, backend, method, path, headers
):
    response = await client.request(method, path, headers=headers, data=b"{}")
    assert response.status == 401
    assert backend.seen == []


async def test_no_order_is_204_and_wait_is_bounded(client, backend):
    for wait, status in (("3", 204), ("100000", 204), ("-1", 400), ("x", 400)):
        assert (await client.get(f"/agent/v1/orders?wait={wait}", headers=GOOD)).status == status
    assert backend.seen == [3.0, 60.0]


@pytest.mark.parametrize(("ok", "error"), [(True, {"what": "w", "remedy": "r"}), (False, None), ("yes", None)])
async def test_contradictory_result_is_refused(client, backend, ok, error):
    result = {"ok": ok, "result": {}, "error": error}
    assert (await client.post("/agent/v1/orders/1/result", json=result, headers=GOOD)).status == 400
    assert backend.seen == []


async def test_unknown_order_is_404(client):
    progress = {"done": 1, "total": 2, "unit": "bytes", "phase": "write"}
    response = await client.post("/agent/v1/orders/7/progress", json=progress, headers=GOOD)
    assert (response.status, (await response.json())["error"]["what"]) == (404, "no order 7")


async def test_plain_http_shows_no_certificate(backend):
    async with TestClient(TestServer(create_agent_app(backend, bytes(32)))) as client:
        response = await client.get("/agent/v1/orders", headers=GOOD)
        assert (response.status, (await response.json())["error"]["what"]) == (401, "the agent shows no certificate")


@pytest.mark.parametrize("failure", [RuntimeError("key=hunter2"), FreeholdError("vault at /secret is sealed")])
async def test_unexpected_failures_tell_the_peer_nothing(client, backend, failure):
    backend.failure = failure
    response = await client.post("/agent/v1/hello", json=HELLO)
    text = await response.text()
    assert response.status == 500
    assert "hunter2" not in text
    assert "secret" not in text
    assert json.loads(text)["error"]["remedy"]
