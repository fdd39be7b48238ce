"""What the credential statement says of a password that two servers have."""

import msgspec
from site_support import SERVER, Place

from freehold.orchestration.passwords import PasswordIndex, VaultSlots
from freehold.out_of_band.credential_slots import StagedCredential
from freehold.out_of_band.redfish import Credential

OTHER = "server-2"


class View(msgspec.Struct, frozen=True):
    name: str


def slots_of_the_other(place: Place) -> VaultSlots:
    return VaultSlots(place.site.vault, View(OTHER))  # type: ignore[arg-type]


async def own_credential(place: Place) -> Credential:
    stored = place.site.vault.get(f"bmc/{SERVER}/current")
    assert stored is not None
    return msgspec.json.decode(stored, type=Credential)


async def claim(place: Place) -> dict[str, object]:
    """The statement of the step. Our account works by now, so it changes no password."""
    result = await place.finish("take_over_credential")
    (predicate,) = [predicate for name, predicate in result.statements if name == "credential"]
    return predicate


async def test_a_password_that_two_servers_have_is_not_called_unique(place: Place) -> None:
    await place.secured()
    assert (await claim(place))["unique"] is True
    credential = await own_credential(place)
    await slots_of_the_other(place).replace(credential)
    shared = await claim(place)
    assert shared["unique"] is False
    assert shared["password_digest"] == PasswordIndex(place.site.vault).digest(credential.password)
    assert credential.password not in str(shared)


async def test_a_password_that_another_server_may_yet_get_is_not_called_unique(place: Place) -> None:
    await place.secured()
    await slots_of_the_other(place).stage(StagedCredential(credential=await own_credential(place)))
    assert (await claim(place))["unique"] is False


async def test_a_rotation_ends_what_two_servers_share(place: Place) -> None:
    await place.secured()
    before = await own_credential(place)
    await slots_of_the_other(place).replace(before)
    ((_, rotated),) = (await place.step("rotate_credential")).statements
    assert rotated["unique"] is True
    assert (await own_credential(place)).password != before.password
