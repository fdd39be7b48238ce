"""TLS is verified before anything is sent; broken answers become clear errors; only reads are repeated."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from oob_support import Ca, Keys, no_sleep, running

from freehold.out_of_band import transport as transport_module
from freehold.out_of_band.errors import BmcAnswerUnreadable, BmcIdentityChanged, BmcUnreachable
from freehold.out_of_band.transport import (
    Answer,
    BmcIdentity,
    Call,
    HttpsTransport,
    fetch_identity,
    spki_sha256,
    split_address,
    unrecognised,
)


async def _fine(_: web.Request) -> web.StreamResponse:
    return web.json_response({"fine": True})


async def _once(address: str, identity: BmcIdentity, call: Call) -> Answer:
    transport = HttpsTransport(address, identity, server="s1", sleep=no_sleep)
    try:
        return await transport.request(call)
    finally:
        await transport.close()


def _pin(keys: Keys) -> BmcIdentity:
    return BmcIdentity(spki_sha256=spki_sha256(keys.certificate.public_bytes(Encoding.DER)))


GET = Call(method="GET", path="/redfish/v1/", timeout=5)
POST = Call(method="POST", path="/redfish/v1/x", body={"Password": "secret"}, headers={"X-Auth-Token": "t"}, timeout=5)


async def test_first_contact_reads_the_identity_and_sends_nothing(tmp_path: Path) -> None:
    keys = Keys(tmp_path, "bmc")
    async with running(keys, _fine) as bmc:
        identity = await fetch_identity(bmc.address)
        assert bmc.log == []
        assert identity.spki_sha256 == _pin(keys).spki_sha256
        assert identity.subject == "CN=bmc"
        answer = await _once(bmc.address, BmcIdentity(spki_sha256=identity.spki_sha256), GET)
        assert answer.body == {"fine": True}


@pytest.mark.parametrize("call", [GET, POST], ids=["get", "post"])
async def test_a_changed_key_is_refused_and_nothing_is_sent(tmp_path: Path, call: Call) -> None:
    async with running(Keys(tmp_path, "impostor"), _fine) as bmc:
        with pytest.raises(BmcIdentityChanged, match=r"server s1: the BMC at .* shows another key .* nothing was sent"):
            await _once(bmc.address, _pin(Keys(tmp_path, "real")), call)
        assert bmc.log == []


async def test_key_that_changes_between_two_calls_is_refused(tmp_path: Path) -> None:
    real = Keys(tmp_path, "real")
    async with running(real, _fine) as bmc:
        port = split_address(bmc.address)[1]
        transport = HttpsTransport(bmc.address, _pin(real), sleep=no_sleep)
        assert (await transport.request(GET)).status == 200
    async with running(Keys(tmp_path, "impostor"), _fine, port) as impostor:
        with pytest.raises(BmcIdentityChanged):
            await transport.request(POST)
        assert impostor.log == []
    await transport.close()


async def test_the_pin_outlives_a_renewed_and_an_expired_certificate(tmp_path: Path) -> None:
    first = Keys(tmp_path, "bmc")
    renewed = Keys(tmp_path, "renewed", expired=True, key=first.key)
    async with running(renewed, _fine) as bmc:
        assert (await _once(bmc.address, _pin(first), GET)).status == 200


async def test_ca_mode_accepts_the_operators_ca_only(tmp_path: Path) -> None:
    ca, other = Ca(), Ca()
    async with running(Keys(tmp_path, "bmc", ca=ca), _fine) as bmc:
        assert (await _once(bmc.address, BmcIdentity(ca_pem=ca.pem, crl_pem=ca.crl()), GET)).status == 200
        with pytest.raises(BmcIdentityChanged, match=r"does not verify: .*; nothing was sent"):
            await _once(bmc.address, BmcIdentity(ca_pem=other.pem), POST)
        assert [method for method, _, _ in bmc.log] == ["GET"]


@pytest.mark.parametrize(
    "served",
    ["factory", "expired", "another address", "outside the zone", "revoked", "another CA of the same name"],
)
async def test_under_the_ca_nothing_is_sent_to_anything_else(tmp_path: Path, served: str) -> None:
    ca, wide = Ca(zone="127.0.0.0/24"), Ca()
    # Whoever stole the key of a CA of 127.0.0.0/24 could sign for anybody; the constraint is in the CA's certificate.
    stolen = Ca(zone="127.0.0.0/8", key=ca.key)
    keys = {
        "factory": lambda: Keys(tmp_path, "bmc"),
        "expired": lambda: Keys(tmp_path, "bmc", ca=ca, expired=True),
        "another address": lambda: Keys(tmp_path, "bmc", ca=ca, address="127.0.0.2"),
        "outside the zone": lambda: Keys(tmp_path, "bmc", ca=stolen, address="127.9.9.9"),
        "revoked": lambda: Keys(tmp_path, "bmc", ca=ca),
        "another CA of the same name": lambda: Keys(tmp_path, "bmc", ca=wide),
    }[served]()
    crl = ca.crl(keys.certificate) if served == "revoked" else ca.crl()
    host = "127.9.9.9" if served == "outside the zone" else "127.0.0.1"
    async with running(keys, _fine, host=host) as bmc:
        for call in (GET, POST):
            with pytest.raises(BmcIdentityChanged, match="nothing was sent to it"):
                await _once(bmc.address, BmcIdentity(ca_pem=ca.pem, crl_pem=crl), call)
        assert bmc.log == []
        if served == "outside the zone":  # the zone alone is why
            assert (await _once(bmc.address, BmcIdentity(ca_pem=stolen.pem), GET)).status == 200


async def test_while_a_certificate_is_changed_the_old_key_and_the_new_certificate_both_count(tmp_path: Path) -> None:
    ca, factory = Ca(), Keys(tmp_path, "factory")
    both = BmcIdentity(spki_sha256=_pin(factory).spki_sha256, ca_pem=ca.pem, crl_pem=ca.crl())
    for keys in (factory, Keys(tmp_path, "issued", ca=ca)):
        async with running(keys, _fine) as bmc:
            assert (await _once(bmc.address, both, GET)).status == 200
    for keys in (Keys(tmp_path, "other"), Keys(tmp_path, "impostor", ca=Ca())):
        async with running(keys, _fine) as bmc:
            with pytest.raises(BmcIdentityChanged):
                await _once(bmc.address, both, POST)
            assert bmc.log == []


def test_a_revocation_list_that_is_old_or_foreign_vouches_for_nobody(tmp_path: Path) -> None:
    ca, now = Ca(), datetime.now(UTC)
    der = Keys(tmp_path, "bmc", ca=ca).certificate.public_bytes(Encoding.DER)

    def why(crl: str | None) -> str | None:
        return unrecognised(der, BmcIdentity(ca_pem=ca.pem, crl_pem=crl), "127.0.0.1", now)

    assert why(ca.crl()) is None
    assert "out of date" in (why(ca.crl(now=now - timedelta(days=31))) or "")
    assert "not of the CA" in (why(Ca().crl()) or "")
    assert "does not verify" in (why("no list at all") or "")


@given(junk=st.binary(max_size=200))
def test_what_cannot_be_read_is_not_recognised(junk: bytes) -> None:
    for identity in (BmcIdentity(spki_sha256="00" * 32), BmcIdentity(ca_pem="no PEM"), BmcIdentity(ca_pem="")):
        assert unrecognised(junk, identity, "127.0.0.1", datetime.now(UTC)) is not None


def test_an_identity_is_a_pin_or_a_ca() -> None:
    with pytest.raises(ValueError, match="pinned key, by a CA, or by both"):
        BmcIdentity()
    with pytest.raises(ValueError, match="64 hex"):
        BmcIdentity(spki_sha256="00")


async def test_html_gives_a_clear_error(tmp_path: Path) -> None:
    async def html(_: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>log in</html>", content_type="text/html")

    keys = Keys(tmp_path, "bmc")
    async with running(keys, html) as bmc:
        with pytest.raises(BmcAnswerUnreadable, match=r"HTTP 200 with an HTML page \(text/html\) instead of"):
            await _once(bmc.address, _pin(keys), GET)


async def test_json_as_deep_as_an_abyss_gives_a_clear_error(tmp_path: Path) -> None:
    async def deep(_: web.Request) -> web.StreamResponse:
        return web.Response(body=b'{"a":' * 100_000, content_type="application/json")

    keys = Keys(tmp_path, "bmc")
    async with running(keys, deep) as bmc:
        with pytest.raises(BmcAnswerUnreadable, match="that are not a JSON object"):
            await _once(bmc.address, _pin(keys), GET)


async def test_an_answer_larger_than_the_cap_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "MAX_ANSWER_BYTES", 1 << 20)

    async def large(_: web.Request) -> web.StreamResponse:
        return web.Response(body=b"[" * (2 << 20), content_type="application/json")

    keys = Keys(tmp_path, "bmc")
    async with running(keys, large) as bmc:
        with pytest.raises(BmcAnswerUnreadable, match="larger than 1 MiB"):
            await _once(bmc.address, _pin(keys), GET)


@pytest.mark.parametrize("fault", ["503", "reset"])
async def test_faults_are_retried_for_reads_and_never_for_writes(tmp_path: Path, fault: str) -> None:
    left = 3

    async def flaky(request: web.Request) -> web.StreamResponse:
        nonlocal left
        left -= 1
        if left >= 0:
            if fault == "503":
                return web.Response(status=503, text="<html>busy</html>")
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"fine": True})

    keys = Keys(tmp_path, "bmc")
    async with running(keys, flaky) as bmc:
        assert (await _once(bmc.address, _pin(keys), GET)).body == {"fine": True}
        assert len(bmc.log) == 4
        bmc.log.clear()
        left = 3
        if fault == "503":
            assert (await _once(bmc.address, _pin(keys), POST)).status == 503
        else:
            with pytest.raises(BmcUnreachable, match="whether it took effect is unknown"):
                await _once(bmc.address, _pin(keys), POST)
        assert len(bmc.log) == 1


async def test_a_slow_bmc_ends_at_the_timeout_of_the_call(tmp_path: Path) -> None:
    async def slow(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(2)
        return web.json_response({})

    keys = Keys(tmp_path, "bmc")
    async with running(keys, slow) as bmc:
        with pytest.raises(BmcUnreachable, match=r"no answer within 0\.2 s"):
            await _once(bmc.address, _pin(keys), Call(method="GET", path="/", timeout=0.2))


async def test_nobody_there_is_said_with_the_address(tmp_path: Path) -> None:
    async with running(Keys(tmp_path, "bmc"), _fine) as bmc:
        address = bmc.address
    with pytest.raises(BmcUnreachable, match=address):
        await fetch_identity(address, timeout=2)
    with pytest.raises(BmcUnreachable, match=address):
        await _once(address, BmcIdentity(spki_sha256="00" * 32), GET)


async def test_a_token_does_not_follow_a_redirect_to_another_host(tmp_path: Path) -> None:
    async def away(request: web.Request) -> web.StreamResponse:
        if request.path == "/redfish/v1/moved":
            return web.json_response({"here": True})
        target = "/redfish/v1/moved" if request.path == "/redfish/v1/near" else f"https://{other.address}/"
        return web.Response(status=308, headers={"Location": target})

    keys = Keys(tmp_path, "bmc")
    async with running(keys, _fine) as other, running(keys, away) as bmc:
        near = Call(method="GET", path="/redfish/v1/near", headers={"X-Auth-Token": "t"})
        assert (await _once(bmc.address, _pin(keys), near)).body == {"here": True}
        assert (await _once(bmc.address, _pin(keys), GET)).status == 308
        assert other.log == []


@pytest.mark.parametrize("address", ["", "a/b", "user@host", ":443"])
def test_an_address_is_a_host_and_maybe_a_port(address: str) -> None:
    with pytest.raises(ValueError, match="not a BMC address"):
        split_address(address)
