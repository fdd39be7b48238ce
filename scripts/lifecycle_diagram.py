#!/usr/bin/env python3
"""Write docs/lifecycle.md from the lifecycle table and the planner's goals; `--print` shows it only."""

import sys
from pathlib import Path

from freehold.orchestration.lifecycle import DEADLINES, NEXT, exits, mermaid
from freehold.orchestration.planner import GOALS

PAGE = Path(__file__).parents[1] / "docs" / "lifecycle.md"


def page() -> str:
    rows = []
    for state in NEXT:
        goals = ", ".join(goal.name for goal in GOALS[state]) or "-"
        deadline = f"{DEADLINES[state] / 60:g} min" if state in DEADLINES else "-"
        rows.append(f"| {state} | {goals} | {', '.join(exits(state)) or '-'} | {deadline} |")
    return "\n".join(
        [
            "# Lifecycle of a server",
            "",
            "Made by `scripts/lifecycle_diagram.py` from `orchestration/lifecycle.py` and `orchestration/planner.py`.",
            "",
            "```mermaid",
            mermaid(),
            "```",
            "",
            "| state | goals, in order | may become | stuck after |",
            "|---|---|---|---|",
            *rows,
            "",
            "A release (`freehold release`) leads from `quarantined` back to what was interrupted: a failed erase goes",
            "back to decommissioning, and nothing goes from quarantine straight to available.",
            "",
        ]
    )


if __name__ == "__main__":
    if "--print" in sys.argv[1:]:
        sys.stdout.write(page())
    else:
        PAGE.write_text(page())
