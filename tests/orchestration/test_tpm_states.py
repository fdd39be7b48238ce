"""What a TPM said of itself at its last quote is kept, and what people and TPM2_Clear change about it."""

from dataclasses import replace

import pytest
from site_support import Place, recorded
from sqlalchemy import update

from freehold.model.status import ServerState
from freehold.orchestration import schema
from freehold.orchestration.conditions import may_be_cleared

EK = "ab" * 32


async def test_the_last_state_of_a_tpm_is_kept_until_it_is_cleared(owned: Place) -> None:
    agents = owned.store.agents
    assert await agents.last_seen(EK) is None
    later = replace(recorded.TPM, firmware_version=(1 << 64) - 1)
    for state in (recorded.TPM, later):
        await agents.saw_tpm(EK, state)
        assert await agents.last_seen(EK) == state
    assert await agents.last_seen("cd" * 32) is None
    await agents.saw_tpm(EK, None)
    assert await agents.last_seen(EK) is None


async def test_cve_2025_1057_what_another_release_wrote_locks_nobody_out(owned: Place) -> None:
    """keylime's types became stricter than the rows in its database, and its registrar could not start any more."""
    await owned.store.agents.saw_tpm(EK, recorded.TPM)

    async def spoil(connection: object) -> None:
        await connection.execute(update(schema.tpm_states).values(state='{"clock": 7}'))  # type: ignore[attr-defined]

    await owned.store.agents._database.write(spoil)
    assert await owned.store.agents.last_seen(EK) is None


async def test_an_ordered_tpm2_clear_begins_anew(owned: Place) -> None:
    await owned.establish(ServerState.DECOMMISSIONING, ek_sha256=EK)
    await owned.speak("ramdisk")
    await owned.store.agents.saw_tpm(EK, recorded.TPM)
    assert may_be_cleared(await owned.view())
    await owned.answer("clear_tpm", {"cleared": True})
    assert (await owned.step("clear_tpm")).done
    assert await owned.store.agents.last_seen(EK) is None
    assert not may_be_cleared(await owned.view())


@pytest.mark.parametrize("state", [ServerState.ACTIVE, ServerState.PROVISIONING, ServerState.QUARANTINED], ids=str)
@pytest.mark.slow
async def test_in_no_other_state_may_counters_go_back(owned: Place, state: ServerState) -> None:
    await owned.establish(state, ek_sha256=EK)
    assert not may_be_cleared(await owned.view())
