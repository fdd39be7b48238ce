"""A finding without evidence cannot be judged by who reads it: every one that an audit may show has some."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from freehold.model.errors import FreeholdError
from freehold.model.findings import refusal_of

SOURCE = Path(__file__).parents[2] / "src" / "freehold"
NOT_AUDITED = {
    "operations/drift.py",
    "orchestration/outcomes.py",
    "orchestration/steps/agentless.py",
    "orchestration/steps/certificates.py",
    "orchestration/steps/preparing.py",
    "orchestration/steps/secure_boot.py",
    "orchestration/steps/securing.py",
    "orchestration/steps/table.py",
    "orchestration/steps/tickets.py",
    "root_of_trust/attestation/appraise.py",
    "root_of_trust/vault/audit.py",
}
"""What `freehold audit` does not show: findings of steps stand in `describe`, those of a vault in `vault audit`."""


def findings_made(path: Path) -> Iterator[tuple[int, ast.expr | None]]:
    """(line, what is given as evidence) of each `Finding(…)`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Finding":
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            yield node.lineno, given.get("evidence")


def test_every_finding_that_an_audit_may_show_is_made_with_evidence() -> None:
    made = {
        (str(path.relative_to(SOURCE)), line): evidence
        for path in sorted(SOURCE.rglob("*.py"))
        for line, evidence in findings_made(path)
    }
    assert len(made) > 30
    bare = {
        where
        for where, evidence in made.items()
        if where[0] not in NOT_AUDITED
        and (evidence is None or (isinstance(evidence, ast.Constant) and not str(evidence.value).strip()))
    }
    assert bare == set()
    assert {path for path, _ in made} >= NOT_AUDITED  # no exception outlives its module


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FreeholdError("no"), "depot /d: FreeholdError"),
        (FreeholdError("no", expected="a list"), "depot /d: FreeholdError, expected a list"),
        (PermissionError(13, "Permission denied"), "depot /d: PermissionError"),
    ],
)
def test_what_is_refused_says_where_it_was_read(error: FreeholdError | OSError, said: str) -> None:
    assert refusal_of("depot /d", error) == said
