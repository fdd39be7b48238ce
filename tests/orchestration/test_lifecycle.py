import re
import subprocess
import sys
from pathlib import Path

import pytest

from freehold.model.status import Facts, IntentKind, ServerState
from freehold.orchestration.lifecycle import (
    FORGETS,
    NEXT,
    IllegalTransitionError,
    IntentRefusedError,
    check_intent,
    exits,
    forget,
    released_to,
    transition,
)

S = ServerState
ROOT = Path(__file__).parents[2]


def test_every_state_has_a_row() -> None:
    assert set(NEXT) == set(S)


@pytest.mark.parametrize("state", S)
@pytest.mark.parametrize("target", S)
def test_a_pair_is_legal_or_named_in_the_error(state: S, target: S) -> None:
    if target in exits(state):
        assert transition(state, target) is target
    else:
        with pytest.raises(IllegalTransitionError, match=f"{state} -> {target} is not a transition"):
            transition(state, target)


@pytest.mark.parametrize("state", sorted(set(S) - {S.QUARANTINED, S.RETIRED}))
def test_any_state_may_fall_into_quarantine(state: S) -> None:
    assert transition(state, S.QUARANTINED) is S.QUARANTINED


@pytest.mark.parametrize("target", S)
def test_only_a_release_leads_out_of_quarantine(target: S) -> None:
    with pytest.raises(IllegalTransitionError):
        transition(S.QUARANTINED, target)


def test_only_sanitization_and_preparation_lead_to_available() -> None:
    assert {state for state in S if S.AVAILABLE in exits(state)} == {S.PREPARING, S.DECOMMISSIONING}
    with pytest.raises(IllegalTransitionError):
        transition(S.QUARANTINED, S.AVAILABLE, released=True)


@pytest.mark.parametrize("state", sorted(set(S) - {S.QUARANTINED, S.RETIRED}))
def test_a_release_leads_somewhere_legal(state: S) -> None:
    target = released_to(state)
    assert transition(S.QUARANTINED, target, released=True) is target


def test_a_failed_erase_is_released_back_to_erasing() -> None:
    assert released_to(S.DECOMMISSIONING) is S.DECOMMISSIONING


def test_facts_that_are_forgotten_exist() -> None:
    for names in FORGETS.values():
        assert set(names) <= set(Facts.__struct_fields__)


def test_a_new_tenant_starts_without_the_last_one_s_facts() -> None:
    facts = Facts(image_written=True, os_booted_at=1.0, certificate_index=3, bmc_identity="kept")
    assert forget(facts, S.PROVISIONING) == Facts(bmc_identity="kept")


@pytest.mark.parametrize(
    ("state", "kind", "message"),
    [
        (S.QUARANTINED, IntentKind.DECOMMISSION, "a server that is quarantined cannot be decommissioned"),
        (S.SECURING, IntentKind.RETIRE, "a server that is securing cannot be decommissioned"),
        (S.ACTIVE, IntentKind.RELEASE, "a server that is active is not in quarantine"),
        (S.RETIRED, IntentKind.QUARANTINE, "the server is retired already"),
        (S.AVAILABLE, IntentKind.ATTEST, "nothing that could attest runs on a server that is available now"),
        (S.QUARANTINED, IntentKind.ATTEST, "nothing that could attest .* is quarantined now\n.*freehold release"),
    ],
)
def test_intents_that_make_no_sense(state: S, kind: IntentKind, message: str) -> None:
    with pytest.raises(IntentRefusedError) as refused:
        check_intent(state, kind)
    assert re.search(message, str(refused.value))


def test_the_page_in_the_docs_is_made_from_the_table() -> None:
    page = subprocess.run(
        [sys.executable, ROOT / "scripts/lifecycle_diagram.py", "--print"], capture_output=True, text=True, check=True
    ).stdout
    assert (ROOT / "docs/lifecycle.md").read_text() == page, "run scripts/lifecycle_diagram.py"
