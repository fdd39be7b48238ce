"""Preparing and drift, against the lab's Redfish service: what is changed behind our back is seen, and put back."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from site_support import SERVER, Place

from freehold.model.errors import FreeholdError
from freehold.model.findings import Severity
from freehold.model.resources import DriftKind, Waivable
from freehold.model.status import Medium, ServerState
from freehold.orchestration.steps.table import DOERS
from freehold.orchestration.waivers import exceptions
from freehold.out_of_band import server as oob
from freehold.out_of_band.errors import BmcError
from freehold.out_of_band.hardening import opened
from freehold.out_of_band.posture import read_accounts, read_posture
from freehold.out_of_band.redfish import RedfishClient
from freehold.out_of_band.secure_boot import secure_boot_state

SYSTEM = "/redfish/v1/Systems/1"
PROTOCOLS = "/redfish/v1/Managers/1/NetworkProtocol"
ACCOUNTS = "/redfish/v1/AccountService"
HOST_INTERFACE = "/redfish/v1/Managers/1/HostInterfaces/1"
FOREIGN = {"UserName": "mallory", "Password": "some-Password-1", "RoleId": "Administrator"}


async def add_account(client: RedfishClient, place: Place) -> None:
    await client.post("/redfish/v1/AccountService/Accounts", FOREIGN)


async def turn_order_round(client: RedfishClient, place: Place) -> None:
    await oob.set_boot_order(client, tuple(reversed(await oob.boot_order(client))))


async def turn_ipmi_on(client: RedfishClient, place: Place) -> None:
    await oob.set_ipmi(client, True)


async def open_snmp(client: RedfishClient, place: Place) -> None:
    await client.patch(PROTOCOLS, {"SNMP": {"ProtocolEnabled": True}})


async def change_bios(client: RedfishClient, place: Place) -> None:
    place.hardware.pending.bios["NumLock"] = False
    await oob.power(client, "reset")


async def turn_secure_boot_off(client: RedfishClient, place: Place) -> None:
    await client.patch(f"{SYSTEM}/SecureBoot", {"SecureBootEnable": False})


async def empty_db(client: RedfishClient, place: Place) -> None:
    await place.hardware.set_secure_boot_database("db", [], [])


Change = Callable[[RedfishClient, Place], Awaitable[None]]
CHANGES: dict[DriftKind, tuple[Change, str]] = {
    DriftKind.BMC_ACCOUNT: (add_account, "bmc-account: mallory is Administrator, declared absent"),
    DriftKind.BOOT_ORDER: (turn_order_round, "boot-order: boot order is Boot0002 Boot0001 Boot0000, declared Boot0000"),
    DriftKind.IPMI: (turn_ipmi_on, "ipmi: IPMI over LAN is on, declared off"),
    DriftKind.BMC_SERVICE: (open_snmp, "bmc-service: SNMP is open, declared closed"),
    DriftKind.BIOS_ATTRIBUTE: (change_bios, "bios-attribute: NumLock is False, declared True"),
    DriftKind.SECURE_BOOT: (turn_secure_boot_off, "secure-boot: Secure Boot is off, declared on"),
    DriftKind.SECURE_BOOT_KEYS: (empty_db, "secure-boot-keys: db is empty, declared "),
}


async def accepted(place: Place) -> None:
    """Prepared, running, and checked for the first time."""
    assert (await place.finish("enroll_secure_boot")).done
    async with place.own_bmc() as client:
        await oob.power(client, "on")
    first = await place.step("check_drift")
    assert first.facts["drift"] == ()
    assert first.statements[0][1]["first_check"] is True


@pytest.mark.parametrize("kind", CHANGES, ids=str)
@pytest.mark.slow
async def test_each_kind_of_drift_is_seen_and_put_back(owned: Place, kind: DriftKind) -> None:
    await accepted(owned)
    change, words = CHANGES[kind]
    async with owned.own_bmc() as client:
        await change(client, owned)
    seen = await owned.step("check_drift")
    assert [drift.kind for drift in seen.facts["drift"]] == [kind]
    assert words in seen.events[0]
    assert seen.findings[0].kind == kind
    assert seen.statements[0][0] == "drift"
    boots = len(owned.hardware.boots)
    if kind in (DriftKind.SECURE_BOOT, DriftKind.SECURE_BOOT_KEYS):  # a fact before anything is written
        first = await owned.step(f"remediate/{kind}")
        assert (first.done, first.facts, len(owned.hardware.boots)) == (False, {"secure_boot_changing": True}, boots)
    done = await owned.step(f"remediate/{kind}")
    assert not (await owned.view()).facts.secure_boot_changing
    assert done.facts["remediated"] == (kind,)
    needs_restart = kind in (DriftKind.BIOS_ATTRIBUTE, DriftKind.SECURE_BOOT, DriftKind.SECURE_BOOT_KEYS)
    assert done.statements[0][1]["restarted"] is needs_restart
    assert len(owned.hardware.boots) == boots + needs_restart
    again = await owned.step("check_drift")
    assert again.facts["drift"] == ()
    assert kind.value in again.resolved
    assert list(again.statements[0][1]["drift"]) == []
    quiet = await owned.step("check_drift")
    assert (quiet.statements, quiet.events) == ((), ())


@pytest.mark.parametrize("kind", [DriftKind.BMC_ACCOUNT, DriftKind.BIOS_ATTRIBUTE, DriftKind.SECURE_BOOT], ids=str)
@pytest.mark.slow
async def test_a_remediation_that_was_cut_off_just_before_its_end_is_finished(
    owned: Place, kind: DriftKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    await accepted(owned)
    async with owned.own_bmc() as client:
        await CHANGES[kind][0](client, owned)
    await owned.step("check_drift")
    if kind is DriftKind.SECURE_BOOT:
        assert not (await owned.step(f"remediate/{kind}")).done

    async def cut_off(*_: Any) -> None:
        raise ConnectionResetError

    with monkeypatch.context() as patch:
        patch.setattr(oob, "power", cut_off)
        needs_restart = kind in (DriftKind.BIOS_ATTRIBUTE, DriftKind.SECURE_BOOT, DriftKind.SECURE_BOOT_KEYS)
        if needs_restart:
            with pytest.raises(ConnectionResetError):
                await owned.step(f"remediate/{kind}")
        else:  # all its commands were sent, and nothing was written down
            ctx = await owned.context(f"remediate/{kind}")
            await DOERS["remediate"](owned.site, ctx)
    assert (await owned.view()).facts.secure_boot_changing is (kind is DriftKind.SECURE_BOOT)
    assert (await owned.step(f"remediate/{kind}")).done
    assert (await owned.step("check_drift")).facts["drift"] == ()


async def test_secure_boot_keys_that_were_half_put_back_stay_unsettled_until_it_was_repeated(
    owned: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await accepted(owned)
    async with owned.own_bmc() as client:
        whole = (await secure_boot_state(client)).entries
        await empty_db(client, owned)
    await owned.step("check_drift")
    await owned.step("remediate/secure-boot-keys")
    async with owned.own_bmc() as client:
        assert (await secure_boot_state(client)).entries["db"] == ()
    honest = owned.hardware.set_secure_boot_database

    async def failing(name: Any, certificates: list[bytes], signatures: list[str]) -> None:
        if name == "PK":
            raise RuntimeError("power loss")
        await honest(name, certificates, signatures)

    with monkeypatch.context() as patch:
        patch.setattr(owned.hardware, "set_secure_boot_database", failing)
        with pytest.raises(FreeholdError, match="power loss"):
            await owned.step("remediate/secure-boot-keys")
    assert (await owned.view()).facts.secure_boot_changing
    assert (await owned.step("remediate/secure-boot-keys")).done
    assert not (await owned.view()).facts.secure_boot_changing
    async with owned.own_bmc() as client:
        assert (await secure_boot_state(client)).entries == whole


async def test_secure_boot_keys_that_somebody_put_back_meanwhile_are_not_being_changed_any_more(owned: Place) -> None:
    await accepted(owned)
    await owned.establish(ServerState.ACTIVE, secure_boot_changing=True)
    assert (await owned.step("check_drift")).facts["secure_boot_changing"] is False


async def test_a_new_firmware_is_seen_and_cannot_be_put_back(owned: Place) -> None:
    await accepted(owned)
    owned.hardware.pending.version = "9.9.9"
    async with owned.own_bmc() as client:
        await oob.power(client, "reset")
    seen = await owned.step("check_drift")
    assert {drift.kind for drift in seen.facts["drift"]} == {DriftKind.FIRMWARE_VERSION}
    assert "is 9.9.9, declared 2.04.1" in seen.events[0]
    with pytest.raises(FreeholdError, match="firmware-version cannot be remediated") as refused:
        await owned.step("remediate/firmware-version")
    assert "declare spec.remediation.firmware-version: quarantine" in str(refused.value)
    assert SERVER in str(refused.value)


async def test_a_foreign_account_that_came_before_the_first_check_is_drift(owned: Place) -> None:
    await owned.finish("enroll_secure_boot")
    async with owned.own_bmc() as client:
        await add_account(client, owned)
        await oob.set_ipmi(client, True)
    first = await owned.step("check_drift")
    assert [(drift.kind, drift.subject) for drift in first.facts["drift"]] == [
        (DriftKind.BMC_ACCOUNT, "mallory"),
        (DriftKind.IPMI, "IPMI over LAN"),
    ]
    assert first.findings[0].remedy


async def test_every_service_that_was_closed_is_watched_and_closed_again(owned: Place) -> None:
    await accepted(owned)
    async with owned.own_bmc() as client:
        await open_snmp(client, owned)
        await client.patch(PROTOCOLS, {"SSDP": {"ProtocolEnabled": True}})
        await client.patch(HOST_INTERFACE, {"InterfaceEnabled": True, "CredentialBootstrapping": {"Enabled": True}})
        await client.patch(ACCOUNTS, {"LDAP": {"ServiceEnabled": True}})
    seen = await owned.step("check_drift")
    bootstrapping, interface = f"credential bootstrapping at {HOST_INTERFACE}", f"host interface {HOST_INTERFACE}"
    assert {drift.subject for drift in seen.facts["drift"]} == {
        *("SNMP", "SSDP", bootstrapping, interface, "directory LDAP")
    }
    assert all(finding.severity is Severity.WARNING and finding.remedy for finding in seen.findings)
    for _ in range(2):  # safe to repeat
        assert (await owned.step("remediate/bmc-service")).done
    async with owned.own_bmc() as client:
        assert opened(await read_posture(client)) == ()
    assert (await owned.step("check_drift")).facts["drift"] == ()


async def test_what_the_bmc_refuses_to_close_is_remembered_and_what_it_was_too_busy_for_is_not(
    owned: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with owned.own_bmc() as client:
        await open_snmp(client, owned)
    status = 503

    async def refuse(client: RedfishClient, path: str, *_: Any, **__: Any) -> None:
        raise BmcError("no", status=status, server=SERVER)

    monkeypatch.setattr(RedfishClient, "patch", refuse)
    with pytest.raises(BmcError):
        await owned.step("close_services")
    status = 400
    assert (await owned.step("close_services")).facts["services_left_open"] == ("SNMP",)


async def test_a_service_that_the_bmc_never_let_us_close_is_no_drift(owned: Place) -> None:
    async with owned.own_bmc() as client:
        await open_snmp(client, owned)
    await owned.establish(services_left_open=("SNMP",))
    await accepted(owned)


async def test_a_directory_that_a_waiver_lets_stay_is_neither_drift_nor_closed_with_the_rest(owned: Place) -> None:
    async with owned.own_bmc() as client:
        await client.patch(ACCOUNTS, {"LDAP": {"ServiceEnabled": True}})
    await owned.establish(services_left_open=("directory LDAP",))
    await accepted(owned)
    async with owned.own_bmc() as client:
        await open_snmp(client, owned)
    seen = await owned.step("check_drift")
    assert [drift.subject for drift in seen.facts["drift"]] == ["SNMP"]
    assert (await owned.step("remediate/bmc-service")).done
    async with owned.own_bmc() as client:
        assert opened(await read_posture(client)) == ("directory LDAP",)


async def test_a_foreign_key_that_came_before_the_first_check_is_drift(owned: Place) -> None:
    await owned.finish("enroll_secure_boot")
    await empty_db(None, owned)  # type: ignore[arg-type]
    first = await owned.step("check_drift")
    assert [(drift.kind, drift.subject) for drift in first.facts["drift"]] == [(DriftKind.SECURE_BOOT_KEYS, "db")]


async def test_declared_bios_settings_are_staged_before_the_first_start(owned: Place) -> None:
    await owned.declare(bios={"SriovGlobalEnable": True, "NumLock": True})
    done = await owned.step("apply_bios")
    assert done.statements[0][1]["staged"] == ["SriovGlobalEnable"]
    async with owned.own_bmc() as client:
        await oob.power(client, "on")
        assert (await oob.bios_attributes(client))["SriovGlobalEnable"] is True
    assert (await owned.step("apply_bios")).statements[0][1]["staged"] == []


async def test_a_bios_setting_that_does_not_exist_is_an_error_that_names_the_server(owned: Place) -> None:
    await owned.declare(bios={"Nonsense": 1})
    with pytest.raises(FreeholdError, match="the BIOS has no attribute Nonsense") as refused:
        await owned.step("apply_bios")
    assert f"server {SERVER}" in str(refused.value)


async def test_no_reference_values_without_an_attested_boot(owned: Place) -> None:
    refused = await owned.step("approve_reference")
    assert refused.quarantine is not None
    assert "no boot of this server was attested" in refused.quarantine


async def test_decommissioning_reasserts_what_the_last_tenant_changed(owned: Place) -> None:
    await accepted(owned)
    await owned.declare(bios={"NumLock": True})
    async with owned.own_bmc() as client:
        for change in (add_account, turn_ipmi_on, change_bios, turn_secure_boot_off):
            await change(client, owned)
        await oob.set_boot_http(client, "http://192.0.2.1/evil.efi", once=False)
    first = await owned.step("reassert_state")
    assert (first.done, first.facts) == (False, {"secure_boot_changing": True})  # the planner enrols next
    await owned.finish("enroll_secure_boot")
    done = await owned.step("reassert_state")
    assert (done.statements[0][1]["ipmi"], done.statements[0][1]["secure_boot_generation"]) == ("off", 1)
    async with owned.own_bmc() as client:
        assert await oob.power_state(client) == "Off"
        assert [account.username for account in await read_accounts(client) if account.enabled] == ["freehold"]
        assert (await secure_boot_state(client)).enabled
    assert owned.hardware.pending.bios["NumLock"] is True
    assert (await owned.hardware.boot_override()).enabled == "Disabled"


async def test_a_bmc_without_an_ipmi_switch_can_be_decommissioned_too(
    owned: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await owned.finish("enroll_secure_boot")

    async def none(client: RedfishClient, enabled: bool) -> bool:
        raise oob.NotSupported("the BMC has no IPMI switch in NetworkProtocol", server=SERVER)

    monkeypatch.setattr(oob, "set_ipmi", none)
    for step in ("disable_ipmi", "reassert_state"):
        done = await owned.step(step)
        assert done.statements[0][1]["ipmi"] == "the BMC has no IPMI switch"


async def test_certification_looks_at_every_medium_once_more(owned: Place) -> None:
    media = {"serial": "N0", "planted": True, "sanitized": True, "verified": True}
    with pytest.raises(FreeholdError, match="no medium was sanitized"):
        await owned.step("certify")
    await owned.establish(ServerState.DECOMMISSIONING, media=media_of(media))
    with pytest.raises(FreeholdError, match="medium N0 has no sanitization statement") as refused:
        await owned.step("certify")
    assert "what to do: decommission again" in str(refused.value)
    await owned.establish(media=media_of(media | {"details": {"statement": medium(clean=False, reasons=["dirty"])}}))
    with pytest.raises(FreeholdError, match="1 of 1 media are not proven clean: NX serial N0: dirty"):
        await owned.step("certify")
    await owned.establish(media=media_of(media | {"details": {"statement": medium(serial="N1")}}))
    with pytest.raises(FreeholdError, match="statement of medium N0 is about N1"):
        await owned.step("certify")
    await owned.establish(media=media_of(media | {"details": {"statement": medium()}}))
    assert owned.evidence.statements == []
    done = await owned.step("certify")
    assert done.facts == {"certificate_index": 0}
    assert owned.evidence.statements[0][2]["media"] == [medium(reasons=())]


def media_of(*media: dict[str, Any]) -> Any:
    return msgspec.convert(list(media), tuple[Medium, ...])


def medium(**changes: Any) -> dict[str, Any]:
    given = {
        "serial": "N0",
        "model": "NX",
        "size_bytes": 1 << 30,
        "category": "Clear",
        "technique": "one",
        "samples": 64,
    }
    given |= {"command": "c", "raw_status": "status 0", "started": "", "finished": "", "verification_method": "samples"}
    given |= {
        "sample_seed": "5eed",
        "samples": 64,
        "canaries_planted": 64,
        "canaries_found": 0,
        "clean": True,
        "reasons": [],
    }
    return given | changes


async def test_a_demand_ends_the_session_and_keeps_when_the_os_last_proved_itself(owned: Place) -> None:
    day = 86400.0
    now = time.time()
    await owned.establish(ServerState.ACTIVE, last_attestation=now - 9 * day)
    await owned.speak("os", started=now - day, attested_at=now - day)
    asked = await owned.step("renew_attestation")
    assert (asked.done, asked.quarantine, asked.facts["last_attestation"]) == (False, None, now - day)
    first = asked.facts["attestation_demanded"]
    assert now <= first <= time.time()
    assert (await owned.view()).agent is None
    # Made again, it is the first one that silence counts from.
    await owned.establish(ServerState.ACTIVE, **asked.facts)
    again = await owned.step("renew_attestation")
    assert again.facts == {"last_attestation": now - day, "attestation_demanded": first}
    # What was answered is over.
    await owned.establish(ServerState.ACTIVE, last_attestation=first + 1)
    assert (await owned.step("renew_attestation")).facts["attestation_demanded"] > first


async def test_a_waiver_that_ended_is_a_critical_finding_until_it_is_signed_anew(owned: Place) -> None:
    await owned.establish(ServerState.ACTIVE, secure_boot_enrolled=False, secure_boot_waived=True)
    told = await owned.step("tell_ended_waivers")
    assert told.facts == {"waivers_ended": (Waivable.SECURE_BOOT_DATABASES,)}
    [found] = told.findings
    assert (found.severity, found.kind, found.subject) == (Severity.CRITICAL, "waiver-ended", "secure-boot-databases")
    assert "has not the site's Secure Boot keys" in found.detail
    assert "Waiver of secure-boot-databases" in (found.remedy or "")
    assert "its Secure Boot databases were not written" in found.evidence
    assert "no signed Waiver of secure-boot-databases holds" in found.evidence
    assert told.statements == (("posture", {"kind": "waiver-ended", "lacks": ["secure-boot-databases"]}),)
    assert told.events == (found.detail,)
    view = await owned.view()
    assert found in exceptions(view.waivers, view.facts, SERVER, time.time())  # told once to whoever asks for both
    await owned.establish(ServerState.ACTIVE, secure_boot_enrolled=True, secure_boot_waived=False, **told.facts)
    over = await owned.step("tell_ended_waivers")
    assert (over.facts, over.findings, over.resolved) == ({"waivers_ended": ()}, (), ("waiver-ended",))
    assert over.events == ()


async def test_ipmi_that_nothing_turned_off_and_two_people_let_is_no_drift(owned: Place) -> None:
    await accepted(owned)
    async with owned.own_bmc() as client:
        await turn_ipmi_on(client, owned)
    await owned.establish(ServerState.ACTIVE, ipmi_waived=True)
    assert (await owned.step("check_drift")).facts["drift"] == ()
    await owned.establish(ServerState.ACTIVE, ipmi_waived=False)
    assert [each.kind for each in (await owned.step("check_drift")).facts["drift"]] == [DriftKind.IPMI]
