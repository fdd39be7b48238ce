"""The executed test when it does not go well: what is said, what is kept, and what never counts as a proof."""

import dataclasses
import sys
import time
from pathlib import Path

import pytest

from freehold.evidence import Ed25519Signer, EvidenceLog, verify_bundle
from freehold.interfaces.cli.prove import NotProven, card, claim_state, lab_name
from freehold.model.errors import FreeholdError
from freehold.model.status import ServerState, ServerStatus
from freehold.orchestration.controller import recorder
from freehold.orchestration.opening import open_log, serving
from freehold.sovereignty.prove import Count, Progress, Prover, Report
from freehold_lab.network import Layout

sys.path.append(str(Path(__file__).parents[1] / "orchestration"))
from site_support import SERVER, Place, a_place


class Outside:
    """A rack whose counter may be broken, and from which something may leave."""

    def __init__(self, *, counted: int = 3, leaks: int = 0) -> None:
        self.counts, self.counted, self.leaks = [0, 0], counted, leaks

    async def cut(self) -> None: ...

    async def count(self) -> Count:
        return Count(*self.counts)

    async def attempt(self) -> None:
        self.counts = [self.counted, self.counted]

    async def reachability(self, server: str) -> list[dict[str, str]]:
        raise AssertionError("the server never gets that far")

    control_reachability = reachability


async def proved(place: Place, tmp_path: Path, rack: Outside) -> tuple[Report, list[Progress]]:
    """A run about a server that ends in quarantine before it is active."""
    status = ServerStatus(state=ServerState.QUARANTINED, state_since=time.time(), reason="PCR 7: Secure Boot is off")
    await place.set_status(status)
    shown: list[Progress] = []
    people = {name: Ed25519Signer.generate() for name in ("alice", "bob", "carol")}
    with open_log(tmp_path / "state", "lab", place.site.keys) as log:
        assert isinstance(log, EvidenceLog)
        prover = Prover(place.site, place.store, log, recorder(log), rack, people, SERVER, shown.append)
        rack_after = rack.leaks
        if rack_after:
            original = rack.count

            async def leaking() -> Count:
                found = await original()
                return Count(found.packets + rack_after, found.lookups)

            counts = iter([rack.count, rack.count, rack.count, leaking])
            rack.count = lambda: next(counts)()  # type: ignore[method-assign]
        return await prover.run(tmp_path / "bundle"), shown


async def test_a_lifecycle_that_does_not_end_is_answered_and_exported_all_the_same(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        report, shown = await proved(place, tmp_path, Outside())
    assert report.failure is not None
    assert "it is quarantined: PCR 7: Secure Boot is off" in report.failure.what
    assert not hasattr(report.failure, "exit_code")  # 1: it failed; 3 is for what tried to leave
    assert NotProven.exit_code == 3
    assert report.answers[0].verdict == "NOT PROVEN"
    assert report.nothing_left
    assert verify_bundle(report.bundle).statements["egress"] == 1
    text = card(report, 60.0)
    assert "NOT COMPLETED  it is quarantined: PCR 7: Secure Boot is off" in text
    assert "stage 1: Manual" in text
    assert shown[0].text == "outside path cut; control attempt counted: 3 packets, 3 look-ups"


async def test_what_leaves_is_counted_and_never_a_pass(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        report, _ = await proved(place, tmp_path, Outside(leaks=2))
    assert not report.nothing_left
    assert report.egress["packets"] == 2
    assert report.answers[0].verdict == "NON-SOVEREIGN"
    assert "tried to leave 2 packets" in card(report, 60.0)


async def test_a_counter_that_does_not_count_proves_nothing(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        report, _ = await proved(place, tmp_path, Outside(counted=0))
    assert not report.nothing_left
    assert "the counter was not shown to work" in report.answers[0].reason


@pytest.mark.parametrize("packets", [0, 1])
async def test_nothing_left_needs_zero_and_a_working_control(tmp_path: Path, packets: int) -> None:
    async with a_place(tmp_path) as place:
        report, _ = await proved(place, tmp_path, Outside())
    egress = report.egress | {"packets": packets}
    assert dataclasses.replace(report, egress=egress).nothing_left is (packets == 0)


def test_two_runs_on_one_host_have_labs_of_their_own(tmp_path: Path) -> None:
    one, other = lab_name(tmp_path / "one"), lab_name(tmp_path / "other")
    assert one != other
    assert [Layout(name, 1).lab for name in (one, other)] == [one, other]  # the lab takes such a name


def test_the_state_of_a_site_is_never_thrown_away(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "vault.key").write_text("the only passwords of somebody's BMCs")
    with pytest.raises(FreeholdError, match="is the state of a site, not of a proof"):
        claim_state(tmp_path / "site")
    assert (tmp_path / "site" / "vault.key").exists()
    claim_state(tmp_path / "mine")
    (tmp_path / "mine" / "left").touch()
    claim_state(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["made-by-prove"]


def test_a_proof_that_still_runs_keeps_its_state(tmp_path: Path) -> None:
    claim_state(tmp_path / "mine")
    with serving(tmp_path / "mine"), pytest.raises(FreeholdError, match="another controller"):
        claim_state(tmp_path / "mine")
