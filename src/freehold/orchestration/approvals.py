"""Keeper of the people who may approve, of what they are asked, and of what they signed. What counts as approved is
decided by `root_of_trust.operators`, each time anew from the signatures."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import msgspec
from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from freehold.evidence import Predicate, PublicKey
from freehold.model.errors import FreeholdError
from freehold.model.resources import WaiverSpec
from freehold.orchestration.database import Database
from freehold.orchestration.schema import approvals, circles, operators, servers, signatures
from freehold.orchestration.site_ledger import owe
from freehold.orchestration.waivers import ActiveWaiver, request_of, signed
from freehold.root_of_trust.operators import (
    PAYLOAD_TYPE,
    THRESHOLD,
    Act,
    Asked,
    Granted,
    NotApproved,
    Operators,
    OperatorsRefused,
    Request,
    approvers,
    as_evidence,
    grant,
    require_approval,
)

OPERATORS = "operators"
"""Subject of what the evidence log says of the people themselves."""


class UnknownRequest(FreeholdError):
    """Nobody has asked for an approval of that id."""


class Approved(msgspec.Struct, frozen=True, kw_only=True):
    """A request that at least two people signed, and what the evidence log says of that."""

    request: Request
    by: tuple[str, ...]
    claim: dict[str, Any]


class ApprovalLedger:
    """`store.approvals`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def operators(self) -> Operators:
        async with self._database.read() as connection:
            return await _people(connection)

    async def found(self, people: Mapping[str, PublicKey], now: float) -> bool:
        """Enrol the first operators; False if just these are enrolled already. Whoever comes first founds the circle;
        later changes need two of its members (`replace`). Raises `OperatorsRefused`."""
        wanted = Operators.of(people)
        if len(wanted.people) < 2:
            raise OperatorsRefused("one person cannot approve for two", expected="the keys of two people or more")

        async def work(connection: AsyncConnection) -> bool:
            there = await _people(connection)
            if there.people and _pems(there) != _pems(wanted):
                raise OperatorsRefused(
                    f"this site has operators: {', '.join(sorted(there.people))}",
                    remedy="change them with `freehold operator replace`, which two of them approve",
                )
            if not there.people:
                await _enrol(connection, wanted, now)
                facts = {"event": "founded", "operators": _plain(wanted), "at": now}
                await owe(connection, Predicate.APPROVAL, OPERATORS, facts)
            return not there.people

        return await self._database.write(work)

    async def replace(self, request_id: str, now: float) -> tuple[str, ...]:
        """Put the people of an approved `operators` request in place of today's; who approved. Raises `NotApproved`."""

        async def work(connection: AsyncConnection) -> tuple[str, ...]:
            asked = await _asked(connection, request_id)
            if asked.request.act is not Act.OPERATORS:
                raise NotApproved(f"the request {request_id} is about {asked.request.act}")
            names = await require_signatures(connection, request_id, now)
            pems = asked.request.details["people"]
            wanted = _operators(pems)
            await _remember(connection)
            await carry_out(connection, asked.request, OPERATORS, {"operators": _plain(wanted)}, now)
            await connection.execute(delete(operators))
            await _enrol(connection, wanted, now)
            return names

        return await self._database.write(work)

    async def ask(self, request: Request) -> str:
        """Ask two people; the request's id. Asking the same again changes nothing."""

        await self._database.write(lambda connection: ask_for(connection, request, request.at))
        return request.id

    async def sign(self, request_id: str, envelope: bytes) -> str:
        """Keep one person's approval; the person's name. Raises `UnknownRequest`, `NotApproved`."""

        async def work(connection: AsyncConnection) -> str:
            asked = await _asked(connection, request_id)
            if asked.spent is not None:
                raise NotApproved(
                    f"the request {request_id} is closed", remedy="what is still wanted is asked for anew"
                )
            people = await _people(connection)
            names = approvers(asked.request.to_bytes(), PAYLOAD_TYPE, [envelope], people)
            if not names:
                raise NotApproved(
                    f"this is no operator's signature of request {request_id}",
                    expected=f"the key of one of: {', '.join(sorted(people.people)) or 'nobody (no operators yet)'}",
                )
            row = {"approval": request_id, "operator": names[0], "envelope": envelope.decode()}
            mine = (signatures.c.approval == request_id) & (signatures.c.operator == names[0])
            # In place of an earlier one: it may be by a key that this person had before.
            await connection.execute(delete(signatures).where(mine))
            await connection.execute(insert(signatures).values(**row))
            # Who waits for this looks again now. It is rare, so nobody keeps a list of who waits for what.
            await connection.execute(update(servers).values(next_due=0.0, wakes=servers.c.wakes + 1))
            return names[0]

        return await self._database.write(work)

    async def show(self, request_id: str) -> Asked:
        """Raises `UnknownRequest`."""
        async with self._database.read() as connection:
            return await _asked(connection, request_id)

    async def list(self, *, after: str = "", limit: int = 500, closed: bool = False) -> list[Asked]:
        """A page of requests in the order of their ids; only open ones unless `closed`."""
        query = select(approvals.c.id).where(approvals.c.id > after)
        if not closed:
            query = query.where(approvals.c.spent.is_(None))
        async with self._database.read() as connection:
            ids = (await connection.execute(query.order_by(approvals.c.id).limit(limit))).scalars().all()
            return [await _asked(connection, each) for each in ids]

    async def require(self, request_id: str, now: float) -> tuple[str, ...]:
        """Who approved it; at least two people. Raises `UnknownRequest`, `NotApproved`."""
        async with self._database.read() as connection:
            return await require_signatures(connection, request_id, now)

    async def approved(self, act: Act, subject: str, now: float) -> tuple[Approved, ...]:
        """What two people let be done to `subject` and nobody has done yet, oldest first."""
        async with self._database.read() as connection:
            found = await _open(connection, act, subject)
            valid = [each for each in found if len(each.approved_by) >= THRESHOLD and now < each.request.expires]
            claims = [await approval_claim(connection, each.request) for each in valid]
        return tuple(
            Approved(request=each.request, by=each.approved_by, claim=claim)
            for each, claim in zip(valid, claims, strict=True)
        )

    async def show_credential(self, request_id: str, server: str, shown_to: str, now: float) -> tuple[str, ...]:
        """Close an approved request to show the password of a BMC; who approved it. What the evidence log shall say of
        it is kept in the same transaction: nothing is shown without a trace. Raises `UnknownRequest`, `NotApproved`."""

        async def work(connection: AsyncConnection) -> tuple[str, ...]:
            request = (await _asked(connection, request_id)).request
            wanted = f"bmc/{server}"
            if (request.act, request.subject) != (Act.BREAK_GLASS, wanted):
                raise NotApproved(
                    f"the request {request_id} is about {request.act} for {request.subject}",
                    server=server,
                    expected=f"{Act.BREAK_GLASS} for {wanted}",
                )
            names = await require_signatures(connection, request_id, now)
            facts = {"server": server, "shown_to": shown_to}
            await carry_out(connection, request, f"server/{server}", facts, now)
            return names

        return await self._database.write(work)

    async def done(self, request_id: str, subject: str, facts: dict[str, Any], now: float) -> None:
        """What two people approved about the site is done; the evidence log shall hear of it, with `facts`. Raises
        `UnknownRequest`, `NotApproved`."""

        async def work(connection: AsyncConnection) -> None:
            await require_signatures(connection, request_id, now)
            await carry_out(connection, (await _asked(connection, request_id)).request, subject, facts, now)

        await self._database.write(work)

    async def granted(self, request_id: str) -> Granted:
        """As the function `granted`."""
        async with self._database.read() as connection:
            return await granted(connection, request_id)

    async def spend(self, request_id: str, now: float) -> None:
        """What was approved is done, so the request is closed; or nobody wants it any more."""
        await self._database.write(lambda connection: spend(connection, request_id, now))


async def signed_waivers(
    connection: AsyncConnection, declared: Iterable[tuple[str, WaiverSpec]]
) -> dict[str, list[ActiveWaiver]]:
    """By server: the waivers among `declared` (name, spec) that two operators have signed."""
    found: dict[str, list[ActiveWaiver]] = {}
    people = None
    for name, spec in declared:
        people = people or await _people(connection)
        waiver = signed(name, spec, await _envelopes(connection, request_of(name, spec).id), people)
        if waiver is not None:
            found.setdefault(spec.server, []).append(waiver)
    return found


async def asked_among(connection: AsyncConnection, request_ids: Iterable[str]) -> dict[str, Asked]:
    """Those of the requests that there are, by id."""
    found = {}
    for each in request_ids:
        with suppress(UnknownRequest):
            found[each] = await _asked(connection, each)
    return found


async def ask_for(connection: AsyncConnection, request: Request, now: float) -> None:
    """Put a request before the operators; one that is there stays as it is."""
    if await connection.scalar(select(approvals.c.id).where(approvals.c.id == request.id)) is None:
        await connection.execute(
            insert(approvals).values(id=request.id, request=request.to_bytes().decode(), at=request.at or now)
        )


async def _people(connection: AsyncConnection) -> Operators:
    rows = await connection.execute(select(operators.c.name, operators.c.public_key))
    return _operators({row.name: row.public_key for row in rows})


async def _people_before(connection: AsyncConnection, at: float) -> Operators:
    """The operators just before `at`; today's, if they are the first and were enrolled before there was a history."""
    newest = select(circles.c.people).order_by(circles.c.id.desc()).limit(1)
    if await connection.scalar(newest) is None:
        return await _people(connection)
    found = await connection.scalar(newest.where(circles.c.since < at))
    return _operators(msgspec.json.decode(found)) if found is not None else Operators.of({})


async def _remember(connection: AsyncConnection) -> None:
    """Begin the history with today's operators, if they were enrolled before there was one."""
    if await connection.scalar(select(circles.c.id).limit(1)) is None:
        since = await connection.scalar(select(operators.c.enrolled).order_by(operators.c.enrolled).limit(1))
        await _append(connection, await _people(connection), since or 0.0)


async def _append(connection: AsyncConnection, people: Operators, since: float) -> None:
    pems = {name: pem.decode() for name, pem in _pems(people).items()}
    await connection.execute(insert(circles).values(since=since, people=msgspec.json.encode(pems).decode()))


def _operators(pems: Mapping[str, str]) -> Operators:
    return Operators.of({name: PublicKey.from_pem(pem.encode()) for name, pem in pems.items()})


def _plain(people: Operators) -> list[dict[str, str]]:
    """For the evidence log. `key_id` is the SHA-256 of the key, as `freehold operator keygen` printed it."""
    return [
        {"name": name, "key_id": key.key_id, "public_key": key.pem.decode()}
        for name, key in sorted(people.people.items())
    ]


def _pems(people: Operators) -> dict[str, bytes]:
    return {name: key.pem for name, key in people.people.items()}


async def _enrol(connection: AsyncConnection, people: Operators, now: float) -> None:
    rows = [{"name": name, "public_key": pem.decode(), "enrolled": now} for name, pem in _pems(people).items()]
    await connection.execute(insert(operators), rows)
    await _append(connection, people, now)


async def _asked(connection: AsyncConnection, request_id: str) -> Asked:
    row = (await connection.execute(select(approvals).where(approvals.c.id == request_id))).one_or_none()
    if row is None:
        raise UnknownRequest(
            f"nobody has asked for an approval {request_id}", remedy="see `freehold approval list` for those that are"
        )
    request = Request.from_bytes(row.request.encode())
    people = await (_people(connection) if row.spent is None else _people_before(connection, row.spent))
    names = approvers(request.to_bytes(), PAYLOAD_TYPE, await _envelopes(connection, request_id), people)
    return Asked(request=request, approved_by=names, spent=row.spent)


async def _open(connection: AsyncConnection, act: Act, subject: str) -> list[Asked]:
    """There are few open requests at any time, so nobody keeps an index of them."""
    rows = await connection.execute(select(approvals).where(approvals.c.spent.is_(None)).order_by(approvals.c.at))
    requests = [Request.from_bytes(row.request.encode()) for row in rows]
    return [await _asked(connection, each.id) for each in requests if (each.act, each.subject) == (act, subject)]


async def _envelopes(connection: AsyncConnection, request_id: str) -> list[bytes]:
    found = select(signatures.c.envelope).where(signatures.c.approval == request_id)
    return [envelope.encode() for envelope in (await connection.execute(found)).scalars()]


async def approval_claim(connection: AsyncConnection, request: Request) -> dict[str, Any]:
    """For the evidence log, with the signatures."""
    evidence = as_evidence(request, await _envelopes(connection, request.id), await _people(connection))
    return {"event": request.act.value, **evidence}


async def granted(connection: AsyncConnection, request_id: str) -> Granted:
    """An approval that was carried out, verified again by the keys that the operators had at that time. Raises
    `UnknownRequest`, `NotApproved`."""
    asked = await _asked(connection, request_id)
    if asked.spent is None:
        raise NotApproved(f"the request {request_id} was not carried out yet")
    people = await _people_before(connection, asked.spent)
    return grant(asked.request, await _envelopes(connection, request_id), people, asked.spent)


async def expired(connection: AsyncConnection, request_id: str, now: float) -> bool:
    """Nobody can approve it any more."""
    return now >= (await _asked(connection, request_id)).request.expires


async def carry_out(
    connection: AsyncConnection, request: Request, subject: str, facts: dict[str, Any], now: float
) -> None:
    """Close an approved request; the evidence log shall hear of it, with the signatures, in the same transaction."""
    claim = await approval_claim(connection, request)
    await owe(connection, Predicate.APPROVAL, subject, {**claim, **facts, "at": now})
    await spend(connection, request.id, now)


async def spend_approved(connection: AsyncConnection, request_id: str, server: str, now: float) -> None:
    """What two people approved about a server is done."""
    request = (await _asked(connection, request_id)).request
    await carry_out(connection, request, f"server/{server}", {"server": server}, now)


async def spend(connection: AsyncConnection, request_id: str, now: float) -> None:
    """Close a request."""
    await connection.execute(update(approvals).where(approvals.c.id == request_id).values(spent=now))


async def require_signatures(connection: AsyncConnection, request_id: str, now: float) -> tuple[str, ...]:
    """Who approved the request; at least two people. Raises `UnknownRequest`, `NotApproved`."""
    asked = await _asked(connection, request_id)
    request = asked.request
    if asked.spent is not None:
        raise NotApproved(f"the request {request.id} is closed", remedy="ask for it anew")
    return require_approval(request, await _envelopes(connection, request.id), await _people(connection), now)
