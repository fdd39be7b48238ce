"""Which server a machine at the agents' door is: found in the store without reading the fleet."""

import msgspec
import pytest
from site_support import SERVER, Place, documents

from freehold.model.resources import ServerSpec
from freehold.model.status import ServerState
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
