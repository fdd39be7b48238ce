"""The probe for factory credentials, under a write-ahead count in the vault: who repeats it soon, or dies in the
middle, comes no nearer to the BMC's lockout."""

import asyncio
from collections.abc import Callable

import msgspec

from freehold.model.findings import Finding
from freehold.out_of_band import factory_credentials as factory
from freehold.out_of_band.advisories import Firmware
from freehold.out_of_band.posture import Posture
from freehold.out_of_band.redfish import Credential, RedfishClient
from freehold.root_of_trust.vault import Vault


class Spent(msgspec.Struct, frozen=True):
    """Attempts that may count on the BMC; the last were begun `at` (UNIX seconds)."""

    attempts: int
    at: float


async def probe(
    vault: Vault,
    server: str,
    connect: Callable[[Credential], RedfishClient],
    posture: Posture,
    firmware: Firmware,
    *,
    own: str,
    now: float,
) -> tuple[Finding, ...]:
    """`own`: the account that is never tried. `posture`: of just now, with the BMC's lockout policy."""
    policy, path = posture.policy, f"bmc/{server}/defaults-probed"
    wanted = factory.candidates(firmware, posture.accounts, own)
    window = float(policy.lockout_counter_reset_after or factory.WINDOW)
    begun: list[int] = []

    def begin(stored: bytes | None) -> bytes:
        known = msgspec.json.decode(stored, type=Spent) if stored is not None else Spent(0, 0.0)
        spent = known.attempts if now - known.at <= window else 0
        begun.append(max(0, min(len(wanted), factory.allowance(policy) - spent)))
        return msgspec.json.encode(Spent(spent + begun[-1], now if begun[-1] else known.at))

    if wanted:
        await asyncio.to_thread(vault.update, path, begin)
    tried = await factory.try_credentials(connect, wanted[: begun[-1]]) if begun else ()
    return factory.default_findings(server, wanted, tried, policy)
