"""A fleet that rotates, on the engine: on schedule, on demand, under another rate, across restarts and failures."""

import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
from orchestration_rig import Clock, Rig, rack

from freehold.model.errors import FreeholdError
from freehold.model.resources import ServerSpec, SiteSpec
from freehold.model.status import BmcCertificate, Facts, IntentKind, ServerState, ServerStatus
from freehold.orchestration.engine import Engine
from freehold.orchestration.ledger import Completion
from freehold.orchestration.step import StepContext, StepResult
from freehold.orchestration.store import Store

FLEET = 12
NAMES = [f"s{number}" for number in range(FLEET)]


class Fleet(Rig):
    """`began`: when each rotation began, in order. The BMC of a name in `broken` refuses."""

    def __init__(self, path: Path, store: Store, clock: Clock) -> None:
        super().__init__(path, store, clock)
        self.began: list[tuple[str, float]] = []
        self.broken: set[str] = set()

    async def declare(self, **site: int) -> None:
        whole = rack("server-1")
        like = next(each for each in whole if each.kind == "Server")
        assert isinstance(like.spec, ServerSpec)
        bmc, nic = like.spec.bmc, like.spec.nics[0]
        servers = [
            msgspec.structs.replace(
                like,
                name=name,
                spec=msgspec.structs.replace(
                    like.spec,
                    bmc=msgspec.structs.replace(bmc, address=f"172.30.1.{50 + number}"),
                    nics=(msgspec.structs.replace(nic, mac=f"52:54:00:00:01:{number:02x}", address=None),),
                ),
            )
            for number, name in enumerate(NAMES)
        ]
        others = [each for each in whole if each.kind not in ("Server", "Assignment")]
        others = [
            msgspec.structs.replace(each, spec=msgspec.structs.replace(each.spec, **site))
            if isinstance(each.spec, SiteSpec)
            else each
            for each in others
        ]
        await self.store.apply([*others, *servers])

    async def owned(self, since: float) -> None:
        """Every server is in the pool, with a password of that age."""
        certificate = BmcCertificate(serial="1", sha256="c", not_before=since, not_after=since + 397 * 86400)
        facts = Facts(bmc_credential_since=since, bmc_certificate=certificate, secure_boot_enrolled=True)
        status = ServerStatus(state=ServerState.AVAILABLE, state_since=since, facts=facts)
        await self.store.ledger.enter("setup", self.clock.now, 60.0)
        for claim in await self.store.ledger.claim("setup", self.clock.now + 1, FLEET):
            await self.store.ledger.complete(claim, Completion(status=status, next_due=self.clock.now), self.clock.now)
        await self.store.ledger.leave("setup")

    async def ask(self) -> None:
        for name in NAMES:
            await self.store.record_intent(name, IntentKind.ROTATE, by="ann")

    def controller(self) -> Engine:
        steps = dict(self.world.steps())
        plain = steps["rotate_credential"]

        async def rotate(context: StepContext) -> StepResult:
            self.began.append((context.name, self.clock.now))
            if context.name in self.broken:
                raise FreeholdError("the BMC does not answer", server=context.name)
            return await plain(context)

        steps["rotate_credential"] = rotate
        return Engine(self.store, steps, self.evidence, clock=self.clock, monotonic=self.clock, alone=True)

    async def until(self, done: Callable[[], bool], engine: Engine | None = None) -> None:
        engine = engine or self.controller()
        for _ in range(3000):
            if done():
                return
            if await engine.round() == 0:
                due = await self.store.ledger.next_due()
                assert due is not None
                self.clock.now = max(self.clock.now, due)
        raise AssertionError(self.began)

    def rotated(self) -> int:
        return sum(self.world.server(name).rotations > 0 for name in NAMES)


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    clock = Clock()
    store = await Store.open(tmp_path / "freehold.db", clock=clock)
    made = Fleet(tmp_path / "freehold.db", store, clock)
    yield made
    await made.store.close()


def gaps(fleet: Fleet) -> list[float]:
    times = [at for _, at in fleet.began]
    return [later - earlier for earlier, later in itertools.pairwise(times)]


async def test_a_fleet_that_is_asked_to_rotate_does_so_at_the_rate_of_the_site(fleet: Fleet) -> None:
    await fleet.declare(rotations_per_minute=6)
    await fleet.owned(fleet.clock.now)
    await fleet.ask()
    engine = fleet.controller()
    await fleet.until(lambda: len(fleet.began) == 3, engine)
    assert (await fleet.status(NAMES[-1])).waiting_for.startswith("its turn to rotate the BMC password, at ")
    await fleet.until(lambda: fleet.rotated() == FLEET, engine)
    assert len(fleet.began) == FLEET
    spent = fleet.began[-1][1] - fleet.began[0][1]
    assert (FLEET - 2) * 10.0 <= spent <= FLEET * 10.0
    assert max(gaps(fleet)) <= 20.0


async def test_a_fleet_whose_passwords_are_all_too_old_does_not_rotate_in_one_moment(fleet: Fleet) -> None:
    await fleet.declare(rotations_per_minute=6)
    await fleet.owned(fleet.clock.now - 31 * 86400)
    await fleet.until(lambda: fleet.rotated() == FLEET)
    assert fleet.began[-1][1] - fleet.began[0][1] >= (FLEET - 2) * 10.0


@pytest.mark.slow
async def test_a_higher_rate_counts_at_once(fleet: Fleet) -> None:
    await fleet.declare(rotations_per_minute=1)
    await fleet.owned(fleet.clock.now)
    await fleet.ask()
    engine = fleet.controller()
    await fleet.until(lambda: len(fleet.began) == 2, engine)
    await fleet.declare(rotations_per_minute=6000)
    emergency = fleet.clock.now
    await fleet.until(lambda: fleet.rotated() == FLEET, engine)
    assert fleet.clock.now - emergency < 2.0


@pytest.mark.slow
async def test_turns_survive_a_restart(fleet: Fleet) -> None:
    await fleet.declare(rotations_per_minute=6)
    await fleet.owned(fleet.clock.now)
    await fleet.ask()
    await fleet.until(lambda: len(fleet.began) == 4)
    await fleet.store.close()
    fleet.store = await Store.open(fleet.path, clock=fleet.clock)
    await fleet.until(lambda: fleet.rotated() == FLEET)
    assert len(fleet.began) == FLEET
    assert (FLEET - 2) * 10.0 <= fleet.began[-1][1] - fleet.began[0][1] <= FLEET * 10.0


@pytest.mark.slow
async def test_a_bmc_that_fails_costs_nobody_else_the_turn_and_every_attempt_counts(fleet: Fleet) -> None:
    await fleet.declare(rotations_per_minute=6)
    await fleet.owned(fleet.clock.now)
    fleet.broken = {NAMES[0], NAMES[5]}
    await fleet.ask()
    await fleet.until(lambda: fleet.rotated() == FLEET - 2)
    assert fleet.clock.now - fleet.began[0][1] <= FLEET * 10.0 + 1.0
    start = fleet.began[0][1]
    for first in (at for _, at in fleet.began):
        assert sum(first <= at < first + 60.0 for _, at in fleet.began) <= 6 + 1
    fleet.broken = set()
    await fleet.until(lambda: fleet.rotated() == FLEET)
    assert fleet.clock.now - start < 300.0


@pytest.mark.slow
async def test_who_fails_again_and_again_backs_off_although_it_gets_a_turn_each_time(fleet: Fleet) -> None:
    await fleet.declare(rotations_per_minute=600)
    await fleet.owned(fleet.clock.now)
    fleet.broken = {NAMES[0]}
    await fleet.store.record_intent(NAMES[0], IntentKind.ROTATE, by="ann")
    await fleet.until(lambda: len(fleet.began) == 8)
    assert [round(each) for each in gaps(fleet)][:6] == [2, 4, 8, 16, 32, 64]
