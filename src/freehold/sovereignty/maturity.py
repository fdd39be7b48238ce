"""The maturity stage that the seven answers prove. Pure."""

from collections.abc import Sequence

import msgspec

from freehold.sovereignty.questions import Answer, Verdict

NAMES = {1: "Manual", 2: "Managed", 3: "Orchestrated", 4: "Proven Sovereign"}
HOLDS = {Verdict.PASS, Verdict.DEGRADED}


class Maturity(msgspec.Struct, frozen=True, kw_only=True):
    stage: int
    name: str
    missing: tuple[str, ...]


def maturity(answers: Sequence[Answer]) -> Maturity:
    """Stage 4 is seven times PASS. Stage 3 is the whole lifecycle without outside calls: offline rebuild, isolation
    and verified decommission PASS, credentials and firmware at least DEGRADED. Stage 2 is a rebuild offline."""
    by_number = {answer.number: answer.verdict for answer in answers}
    if all(by_number.get(number) is Verdict.PASS for number in range(1, 8)):
        return Maturity(stage=4, name=NAMES[4], missing=())
    third = all(by_number.get(n) is Verdict.PASS for n in (1, 3, 6)) and all(by_number.get(n) in HOLDS for n in (2, 4))
    stage = 3 if third else 2 if by_number.get(1) in HOLDS else 1
    missing = tuple(
        f"question {answer.number} is {answer.verdict}: {answer.reason}"
        for answer in answers
        if answer.verdict is not Verdict.PASS
    )
    return Maturity(stage=stage, name=NAMES[stage], missing=missing)
