"""A factory password in a Server document is gone from the store once the BMC has one of ours, and stays gone."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from orchestration_rig import Rig, rack
from site_support import SERVER, Place, documents

from freehold.model.errors import FreeholdError
from freehold.model.resources import ERASED, Credential, Resource, ServerSpec
from freehold.model.status import ServerState
from freehold.orchestration import factory_passwords
from freehold.orchestration.passwords import VaultSlots
from freehold.orchestration.store import Store

WORD = "factory-label-4711"


def labelled(word: str = WORD, username: str = "root") -> list[Resource]:
    """The rack; server-1 was delivered with `word`."""

    def changed(each: Resource) -> Resource:
        if each.key != ("Server", "server-1"):
            return each
        assert isinstance(each.spec, ServerSpec)
        bmc = msgspec.structs.replace(each.spec.bmc, credential=Credential(username=username, password=word))
        return msgspec.structs.replace(each, spec=msgspec.structs.replace(each.spec, bmc=bmc))

    return [changed(each) for each in rack()]


async def credential(store: Store) -> Credential:
    spec = (await store.get("Server", "server-1")).resource.spec
    assert isinstance(spec, ServerSpec)
    return spec.bmc.credential


def on_disk(path: Path, word: str) -> list[str]:
    """The files of the store that hold `word`."""
    files = sorted(path.parent.glob(path.name + "*"))
    return [each.name for each in files if word.encode() in each.read_bytes()]


async def test_before_the_take_over_it_is_kept(rig: Rig) -> None:
    await rig.store.apply(labelled())
    assert await rig.store.site.erase_factory_passwords(1.0) == ()
    assert (await credential(rig.store)).password == WORD


async def test_after_the_take_over_no_file_of_the_store_has_it(rig: Rig) -> None:
    await rig.store.apply(labelled())
    assert on_disk(rig.path, WORD)
    await rig.drive_to(rig.engine(), ServerState.DISCOVERING)
    before = await rig.store.get("Server", "server-1")
    assert await rig.store.site.erase_factory_passwords(1.0) == ("server-1",)
    assert await rig.store.site.scrub()
    assert on_disk(rig.path, WORD) == []
    after = await rig.store.get("Server", "server-1")
    assert await credential(rig.store) == Credential(username="root", password=ERASED)
    assert (after.generation, after.revision) == (before.generation, before.revision)  # nobody has declared anything
    assert await rig.store.site.erase_factory_passwords(2.0) == ()
    (event,) = [each for each in await rig.store.events(server="server-1") if each.kind == "erased"]
    assert WORD not in event.message


async def test_applying_the_same_document_again_changes_nothing_and_brings_nothing_back(rig: Rig) -> None:
    await rig.store.apply(labelled())
    await rig.drive_to(rig.engine(), ServerState.ACTIVE)
    await rig.store.site.erase_factory_passwords(1.0)
    for word in (WORD, "another-word-0815"):
        assert {change.action for change in await rig.store.apply(labelled(word))} == {"unchanged"}
    changes = {each.name: each for each in await rig.store.apply(labelled("another-word-0815", username="admin"))}
    assert [field.path for field in changes["server-1"].fields] == ["spec.bmc.credential.username"]
    assert await credential(rig.store) == Credential(username="admin", password=ERASED)
    await rig.store.site.scrub()
    assert on_disk(rig.path, "another-word-0815") == on_disk(rig.path, WORD) == []
    await rig.drive_to(rig.engine(), ServerState.ACTIVE)  # and it stays what it was


def test_an_erased_document_is_erased_once_and_shown_as_any_other() -> None:
    other = next(each for each in labelled() if each.key == ("Server", "server-1"))
    assert other.has_password
    assert not other.is_erased
    assert other.erased().is_erased
    assert other.erased().erased() == other.erased()
    assert ERASED not in str(other.erased().to_document())  # people see the mask


async def test_the_controller_does_it_by_itself(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factory_passwords, "INTERVAL", 0.01)
    await rig.store.apply(labelled())
    watcher = asyncio.create_task(factory_passwords.watch_factory_passwords(rig.store))
    await rig.drive_to(rig.engine(), ServerState.ACTIVE)
    for _ in range(500):
        if not on_disk(rig.path, WORD):
            break
        await asyncio.sleep(0.01)
    watcher.cancel()
    await asyncio.gather(watcher, return_exceptions=True)
    assert on_disk(rig.path, WORD) == []


async def test_a_real_bmc_is_worked_on_and_rotated_after_its_factory_password_is_gone(place: Place) -> None:
    await place.secured()
    assert await place.store.site.erase_factory_passwords(1.0) == (SERVER,)
    await place.declare()  # the same file again
    assert await place.store.site.erase_factory_passwords(2.0) == ()
    assert (await place.finish("record_posture")).done
    assert (await place.finish("rotate_credential")).done
    async with place.own_bmc() as client:
        assert client


async def test_what_was_erased_is_never_sent_to_a_bmc(place: Place) -> None:
    view = await place.view()
    erased = next(each for each in documents() if each.name == SERVER).erased()
    assert isinstance(erased.spec, ServerSpec)
    slots = VaultSlots(place.site.vault, msgspec.structs.replace(view, spec=erased.spec))
    with pytest.raises(FreeholdError, match="was erased after the take-over; nothing was sent") as raised:
        await slots.current()
    assert f"`freehold credential set {SERVER}`" in (raised.value.remedy or "")
