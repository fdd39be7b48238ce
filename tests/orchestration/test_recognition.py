"""Which server a machine at the agents' door is: found in the store without reading the fleet."""

import msgspec
import pytest
from site_support import SERVER, Place, documents

from freehold.model.resources import ServerSpec
from freehold.model.status import ServerState
from freehold.orchestration import recognition
from freehold.orchestration.recognition import Recognition
from freehold.provisioning.agent_messages import AgentRefusedError
from freehold.root_of_trust.attestation.ek import ek_identity

EK = b"a public area"


async def mac_of(place: Place) -> str:
    return (await place.view()).spec.nics[0].mac


async def test_a_mac_is_that_of_a_nic_in_any_case_and_not_what_stands_elsewhere_in_a_document(place: Place) -> None:
    mac = await mac_of(place)
    declared = []
    for each in documents():
        if not isinstance(each.spec, ServerSpec):
            continue
        if each.name == SERVER:
            nics = tuple(msgspec.structs.replace(nic, mac=nic.mac.upper()) for nic in each.spec.nics)
            declared.append(msgspec.structs.replace(each, spec=msgspec.structs.replace(each.spec, nics=nics)))
        else:
            declared.append(msgspec.structs.replace(each, labels={"was": mac}))
    await place.store.apply(declared)
    assert (await Recognition(place.store).recognize([mac], None, "10.0.0.9")).name == SERVER


async def test_a_bound_tpm_comes_first_and_only_where_it_is_the_bound_one(place: Place) -> None:
    who, identity = Recognition(place.store), ek_identity(EK)
    await place.establish(ServerState.DISCOVERING, ek_sha256=identity)
    assert (await who.recognize([], EK, "10.0.0.9")).name == SERVER
    await place.establish(ServerState.DISCOVERING, ek_sha256=None, inband_inventory={"ek_sha256": identity})
    with pytest.raises(AgentRefusedError, match="with MAC none is no declared server"):
        await who.recognize([], EK, "10.0.0.9")


@pytest.mark.parametrize("macs", [["%"], ["_" * 17], [""]])
async def test_what_is_no_mac_finds_nobody(place: Place, macs: list[str]) -> None:
    with pytest.raises(AgentRefusedError, match="no declared server"):
        await Recognition(place.store).recognize(macs, None, "10.0.0.9")


async def test_strangers_who_say_hello_in_a_loop_do_not_have_the_fleet_read_each_time(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, real = 0, place.store.ledger.identities

    async def counted() -> tuple[dict[str, str], dict[str, list[str]]]:
        nonlocal reads
        reads += 1
        return await real()

    monkeypatch.setattr(place.store.ledger, "identities", counted)
    who = Recognition(place.store)
    for number in range(20):
        with pytest.raises(AgentRefusedError, match="no declared server"):
            await who.recognize([f"02:00:00:00:00:{number:02x}"], f"stranger {number}".encode(), "10.0.0.9")
    assert (await who.recognize([await mac_of(place)], None, "10.0.0.9")).name == SERVER
    assert reads == 1
    # A key that was bound since: by its MAC, and by its key, once the fleet is read again.
    await place.establish(ServerState.DISCOVERING, ek_sha256=ek_identity(EK))
    assert (await who.recognize([await mac_of(place)], EK, "10.0.0.9")).name == SERVER
    monkeypatch.setattr(recognition, "REFRESH", 0.0)
    assert (await who.recognize([], EK, "10.0.0.9")).name == SERVER


async def test_what_was_declared_anew_counts_for_a_machine_that_was_known_before(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A NIC that moved to another document."""
    who, mac = Recognition(place.store), await mac_of(place)
    assert (await who.recognize([mac], None, "10.0.0.9")).name == SERVER
    declared = {each.name: each for each in documents() if isinstance(each.spec, ServerSpec)}
    mine, other = declared[SERVER], next(each for name, each in declared.items() if name != SERVER)
    assert isinstance(mine.spec, ServerSpec)
    assert isinstance(other.spec, ServerSpec)
    swapped = [
        msgspec.structs.replace(mine, spec=msgspec.structs.replace(mine.spec, nics=other.spec.nics)),
        msgspec.structs.replace(other, spec=msgspec.structs.replace(other.spec, nics=mine.spec.nics)),
    ]
    await place.store.apply(swapped)
    monkeypatch.setattr(recognition, "REFRESH", 0.0)
    assert (await who.recognize([mac], None, "10.0.0.9")).name == other.name


async def test_a_tpm_that_was_bound_since_is_its_server_though_it_names_the_mac_of_another(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = Recognition(place.store)
    of_another = next(
        each.spec.nics[0].mac for each in documents() if isinstance(each.spec, ServerSpec) and each.name != SERVER
    )
    assert (await who.recognize([of_another], None, "10.0.0.9")).name != SERVER
    await place.establish(ServerState.DISCOVERING, ek_sha256=ek_identity(EK))
    monkeypatch.setattr(recognition, "REFRESH", 0.0)
    assert (await who.recognize([of_another], EK, "10.0.0.9")).name == SERVER
