"""Bad input, bad tokens and limits of the agent API; the good path is tests/agent/test_protocol.py."""

import base64
import gzip
import json

import pytest
from aiohttp.test_utils import TestClient, TestServer

from freehold.model.errors import FreeholdError
from freehold.provisioning.agent_api import create_agent_app
from freehold.provisioning.agent_messages import Challenge, UnknownOrderError, UnknownTokenError

HELLO = {
    "protocol": 1, "mode": "ramdisk", "boot_id": "b", "macs": ["52:54:00:00:00:10"], "ek_public": "ZWs=",
    "smbios": {"uuid": None, "serial": None, "vendor": None, "product": None},
    "ek_certificate": None, "ak_public": "YWs=",
}  # fmt: skip
EVIDENCE = {"session": "s", "secret": "cw==", "quote": "cQ==", "signature": "cw==", "event_log": ""}


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
        return "good"

    async def authenticate(self, token):
        if token != "good":
            raise UnknownTokenError("unknown token", remedy="attest again")

    async def next_order(self, token, wait):
        self.seen.append(wait)

    async def progress(self, token, order_id, progress):
        raise UnknownOrderError(f"no order {order_id}", remedy="none")

    async def result(self, token, order_id, result):
        self.seen.append((order_id, result))

    async def ready(self, token, ready):
        self.seen.append(ready)


@pytest.fixture
def backend():
    return Backend()


@pytest.fixture
async def client(backend):
    async with TestClient(TestServer(create_agent_app(backend, bytes(32)))) as client:
        yield client


GOOD = {"Authorization": "Bearer good"}


async def test_hello_becomes_bytes_and_the_challenge_base64(client, backend):
    response = await client.post("/agent/v1/hello", json=HELLO)
    answer = await response.json()
    assert response.status == 200
    assert (answer["nonce"], answer["pcrs"]) == (base64.b64encode(b"n" * 32).decode(), {"sha256": [0]})
    assert (backend.seen[0][0].ek_public, backend.seen[0][1]) == (b"ek", "127.0.0.1")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mode": "kiosk"}, "$.mode"), ({"protocol": 2}, "$.protocol"), ({"ek_public": "?"}, "$.ek_public"),
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


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 60000, b"null", b"\xff\xfe"])
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


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer bad"}, {"Authorization": "Basic good"}])
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "orders"), ("POST", "orders/1/progress"), ("POST", "orders/1/result"), ("POST", "ready")],
)
async def test_without_a_good_token_nothing_is_heard(client, backend, method, path, headers):
    response = await client.request(method, f"/agent/v1/{path}", headers=headers, data=b"{}")
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


@pytest.mark.parametrize("failure", [RuntimeError("key=hunter2"), FreeholdError("vault at /secret is sealed")])
async def test_unexpected_failures_tell_the_peer_nothing(client, backend, failure):
    backend.failure = failure
    response = await client.post("/agent/v1/hello", json=HELLO)
    text = await response.text()
    assert response.status == 500
    assert "hunter2" not in text
    assert "secret" not in text
    assert json.loads(text)["error"]["remedy"]
