"""The store: declared resources, guarded deletion, events, and a database in trouble."""

import asyncio
import sqlite3
import stat
from pathlib import Path

import msgspec
import pytest
from orchestration_rig import Rig, rack
from sqlalchemy.ext.asyncio import AsyncConnection

from freehold.evidence import Ed25519Signer, Statement, Subject, approvals
from freehold.model.documents import DocumentError, load_documents
from freehold.model.resources import Bmc, Credential, Resource, ServerSpec
from freehold.model.status import IntentKind, Order, OrderState, ServerState
from freehold.orchestration.changes import FieldChange
from freehold.orchestration.database import StoreError
from freehold.orchestration.lifecycle import IntentRefusedError
from freehold.orchestration.site_ledger import Due
from freehold.orchestration.store import DeletionRefusedError, NotFoundError, Store
from freehold.root_of_trust.operators import approve

WAIVER = """
apiVersion: freehold/v1
kind: Waiver
metadata: {name: gone}
spec: {server: server-2, finding: deletion-without-certificate, expires: "%s", reason: burnt down}
"""


def statement(due: Due) -> Statement:
    """As the controller appends it."""
    return Statement.claim(due.predicate, [Subject.of_name(due.subject)], due.facts)


def edited(resources: list[Resource], name: str, **changes: object) -> list[Resource]:
    return [
        msgspec.structs.replace(each, spec=msgspec.structs.replace(each.spec, **changes)) if each.name == name else each
        for each in resources
    ]


async def test_applying_twice_changes_nothing(rig: Rig) -> None:
    assert {change.action for change in await rig.store.apply(rack())} == {"created"}
    before = await rig.store.get("Server", "server-1")
    assert {change.action for change in await rig.store.apply(rack())} == {"unchanged"}
    assert (await rig.store.get("Server", "server-1")).revision == before.revision


async def test_a_change_is_shown_field_by_field_and_dry_runs_write_nothing(rig: Rig) -> None:
    await rig.store.apply(rack())
    wanted = edited(rack(), "server-1", boot_method="virtualMedia")
    for dry_run, generation in ((True, 1), (False, 2)):
        changes = {change.name: change for change in await rig.store.apply(wanted, dry_run=dry_run)}
        assert changes["server-1"].action == "updated"
        assert changes["server-1"].fields == (FieldChange("spec.bootMethod", None, "virtualMedia"),)
        assert (await rig.store.get("Server", "server-1")).generation == generation


async def test_a_changed_password_is_not_shown(rig: Rig) -> None:
    await rig.store.apply(rack())
    bmc = Bmc(address="172.30.1.11", credential=Credential(username="admin", password="another-word"))
    changes = await rig.store.apply(edited(rack(), "server-1", bmc=bmc))
    assert "-word" not in str(changes)
    assert FieldChange("spec.bmc.credential.password", "********", "********") in changes[6].fields


async def test_what_is_applied_is_checked_against_what_is_there(rig: Rig) -> None:
    await rig.store.apply(rack())
    (late,) = [each for each in rack() if each.name == "server-2"]
    assert isinstance(late.spec, ServerSpec)
    twin = msgspec.structs.replace(late, name="server-3")
    with pytest.raises(DocumentError) as caught:
        await rig.store.apply([*rack(), twin])
    assert "spec.bmc.address: address 172.30.1.12 is used twice" in str(caught.value)
    with pytest.raises(NotFoundError, match="there is no Server named 'server-3'"):
        await rig.store.get("Server", "server-3")


async def test_a_part_may_refer_to_what_is_there(rig: Rig) -> None:
    await rig.store.apply(rack())
    (image,) = [each for each in rack() if each.kind == "Image"]
    assignment = next(each for each in rack() if each.name == "web-2")
    await rig.store.apply([assignment, image])


async def test_pages(rig: Rig) -> None:
    await rig.store.apply(rack())
    names, after = [], ("", "")
    while page := await rig.store.list_resources(after=after, limit=3):
        after = page[-1].resource.key
        names += [stored.resource.key for stored in page]
    assert names == sorted(resource.key for resource in rack())
    servers = await rig.store.list_resources("Server", state=ServerState.ENROLLED)
    assert [stored.resource.name for stored in servers] == ["server-1", "server-2"]
    assert await rig.store.list_resources("Server", state=ServerState.ACTIVE) == []


async def test_events_are_paged_and_watched(rig: Rig) -> None:
    await rig.store.apply(rack())
    first = await rig.store.events(limit=4)
    rest = await rig.store.events(since=first[-1].id)
    assert len(first) == 4
    assert [event.id for event in (*first, *rest)] == list(range(1, 11))
    watched = rig.store.watch(since=9, interval=0.01)
    assert (await anext(watched)).message == "Assignment web-2"
    await rig.store.add_event("server-1", "note", "hello")
    assert (await anext(watched)).message == "hello"


@pytest.mark.slow
async def test_a_server_is_not_deleted_without_a_certificate(rig: Rig) -> None:
    await rig.store.apply(rack())
    engine = rig.engine()
    await rig.drive_to(engine, ServerState.ACTIVE)
    await rig.drive_to(engine, ServerState.ACTIVE, "server-2")
    with pytest.raises(DeletionRefusedError) as caught:
        await rig.store.delete("Server", "server-1")
    assert str(caught.value) == (
        "server server-1: it is active and has no destruction certificate\n"
        "  what to do: `freehold decommission server-1` first, or declare a Waiver of deletion-without-certificate "
        "for server-1, which two operators sign with `freehold approval sign`"
    )
    await rig.store.record_intent("server-1", IntentKind.DECOMMISSION, by="ann")
    await rig.drive_to(engine, ServerState.AVAILABLE)
    with pytest.raises(DeletionRefusedError, match="there is no Server named 'server-1'"):
        await rig.store.delete("Server", "server-1")  # its assignment refers to it
    await rig.store.delete("Assignment", "web-1")
    await rig.store.delete("Server", "server-1")
    assert await rig.store.states() == {"active": 1}


@pytest.mark.parametrize(
    ("expires", "signers", "goes"),
    [("1970-01-10", 2, False), ("2099-01-01", 1, False), ("2099-01-01", 0, False), ("2099-01-01", 2, True)],
)
@pytest.mark.slow
async def test_a_waiver_lets_a_server_go_once_two_people_signed_and_until_it_expires(
    rig: Rig, expires: str, signers: int, goes: bool
) -> None:
    await rig.store.apply(rack())
    await rig.drive_to(rig.engine(), ServerState.ACTIVE, "server-2")
    people = {name: Ed25519Signer.generate() for name in ("ann", "bob")}
    await rig.store.approvals.found({name: key.public_key for name, key in people.items()}, 1.0)
    with pytest.raises(DeletionRefusedError, match="the server is active under Assignment web-2"):
        await rig.store.delete("Assignment", "web-2")
    await rig.store.apply(load_documents(WAIVER % expires, "waiver.yaml"))
    (asked,) = await rig.store.approvals.list()
    for key in list(people.values())[:signers]:
        await rig.store.approvals.sign(asked.request.id, approve(asked.request, key).to_bytes())
    if goes:
        await rig.store.delete("Assignment", "web-2")
        await rig.store.delete("Server", "server-2")
        with pytest.raises(NotFoundError):
            await rig.store.get("Waiver", "gone")
        founded, *claims = [statement(due) for due in await rig.store.site.due()]
        assert [each.predicate["approved_by"] for each in claims] == [["ann", "bob"]] * 2  # Assignment, then Server
        known = approvals.circles([founded])
        assert all(approvals.check(each, {}, known) for each in claims)
    else:
        assert len(await rig.store.site.due()) == 1
        with pytest.raises(DeletionRefusedError):
            await rig.store.delete("Server", "server-2")


async def test_intents_are_refused_where_they_make_no_sense(rig: Rig) -> None:
    await rig.store.apply(rack())
    with pytest.raises(IntentRefusedError, match="a server that is enrolled cannot be decommissioned"):
        await rig.store.record_intent("server-1", IntentKind.DECOMMISSION, by="ann")
    with pytest.raises(NotFoundError, match="there is no Server named 'server-9'"):
        await rig.store.record_intent("server-9", IntentKind.PAUSE, by="ann")


async def test_orders_are_given_once_and_answered_once(rig: Rig) -> None:
    await rig.store.apply(rack())
    agents = rig.store.agents
    order = await agents.order("server-1", "write_image", "write_image", {"size": 1})
    assert await agents.order("server-1", "write_image", "write_image", {"size": 2}) == order
    assert await agents.next_order("server-1") == order
    assert await agents.next_order("server-2") is None
    assert await agents.progress("server-1", order.id, {"done": 1, "total": 2})
    assert not await agents.finish("server-2", order.id, ok=True, result={}, error=None)
    assert await agents.finish("server-1", order.id, ok=True, result={"sha256": "x"}, error=None)
    assert not await agents.finish("server-1", order.id, ok=False, result={}, error=None)
    after = await agents.order("server-1", "write_image", "write_image", {})
    assert isinstance(after, Order)
    assert (after.state, after.result) == (OrderState.DONE, {"sha256": "x"})


async def test_a_full_disk_is_told_and_nothing_is_lost(rig: Rig) -> None:
    await rig.store.apply(rack())

    async def limit(connection: AsyncConnection) -> None:
        await connection.exec_driver_sql("PRAGMA max_page_count = 1")

    async def unlimit(connection: AsyncConnection) -> None:
        await connection.exec_driver_sql("PRAGMA max_page_count = 1000000")

    database = rig.store._database
    await database.write(limit)
    with pytest.raises(StoreError) as caught:
        await rig.store.add_event(None, "filler", "x" * 500_000)
    assert str(caught.value) == (
        f"the disk that holds the store {rig.path} is full\n  what to do: Make room; work goes on where it stopped."
    )
    await database.write(unlimit)
    await rig.drive_to(rig.engine(), ServerState.ACTIVE)


async def test_a_locked_store_is_told(rig: Rig) -> None:
    store = await Store.open(rig.path, clock=rig.clock, busy_timeout=0.05)
    other = sqlite3.connect(rig.path, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="is locked by another process"):
            await store.apply(rack())
        other.execute("ROLLBACK")
        await store.apply(rack())
    finally:
        other.close()
        await store.close()


async def test_a_write_that_fails_does_not_take_its_neighbours_along(rig: Rig) -> None:
    await rig.store.apply(rack())
    results = await asyncio.gather(
        rig.store.add_event(None, "note", "one"),
        rig.store.record_intent("server-9", IntentKind.PAUSE, by="ann"),
        rig.store.add_event(None, "note", "two"),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [type(None), NotFoundError, type(None)]
    assert [event.message for event in await rig.store.events(since=10)] == ["one", "two"]


async def test_a_file_that_is_no_store(tmp_path: Path) -> None:
    path = tmp_path / "freehold.db"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreError, match="is not a sound Freehold store"):
        await Store.open(path)


async def test_a_store_of_another_version(rig: Rig) -> None:
    async def age(connection: AsyncConnection) -> None:
        await connection.exec_driver_sql("UPDATE about SET value = '0' WHERE name = 'version'")

    await rig.store._database.write(age)
    with pytest.raises(StoreError, match="the store has layout 0, this Freehold reads layout 2"):
        await Store.open(rig.path)


async def test_the_store_is_its_owner_s_alone(rig: Rig) -> None:
    assert stat.S_IMODE(rig.path.stat().st_mode) == 0o600


async def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot open the store"):
        await Store.open(tmp_path / "file" / "freehold.db")
