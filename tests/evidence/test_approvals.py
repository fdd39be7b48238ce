"""Approvals in a bundle: an auditor sees who approved, by the keys of that time, and a forged one is refused."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from freehold.evidence import (
    Artifacts,
    BundleRefused,
    Ed25519Signer,
    EvidenceLog,
    Predicate,
    Statement,
    Subject,
    canonical,
    dsse,
    export,
    verify_bundle,
)
from freehold.evidence.approvals import PAYLOAD_TYPE

SIGNER = Ed25519Signer.generate()
ANN, BOB, CAROL, DAVE = (Ed25519Signer.generate() for _ in range(4))
VALUES = {"0": ["aa"], "2": []}


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def operators(at: float, **people: Ed25519Signer) -> dict[str, Any]:
    listed = [
        {"name": name, "key_id": key.key_id, "public_key": key.public_key_pem.decode()} for name, key in people.items()
    ]
    return {"event": "founded", "operators": listed, "at": at}


def of_values(kept: Artifacts, at: float, people: Mapping[str, Ed25519Signer], values: Any = None) -> dict[str, Any]:
    """A firmware-reference statement; `values`: what was approved, if it is something else than it says."""
    request = canonical.dumps({"act": "reference-values", "details": {"values": {"digests": values or VALUES}}})
    named = {"request": kept.keep(request)}
    for name, key in people.items():
        named[f"approval-{name}"] = kept.keep(dsse.sign(request, PAYLOAD_TYPE, key).to_bytes())
        named[f"operator-{name}"] = kept.keep(key.public_key_pem)
    claim = {"kind": "firmware-reference", "digests": VALUES, "approved_by": sorted(people), "approved_at": at}
    return {**claim, "artifacts": named}


def inline(at: float, people: Mapping[str, Ed25519Signer], signed: bytes | None = None) -> dict[str, Any]:
    request = {"act": "break-glass", "subject": "bmc/server-1"}
    given = [
        {
            "name": name,
            "key_id": key.key_id,
            "public_key": key.public_key_pem.decode(),
            "envelope": dsse.sign(signed or canonical.dumps(request), PAYLOAD_TYPE, key).to_dict(),
        }
        for name, key in people.items()
    ]
    return {"event": "break-glass", "request": request, "approved_by": given, "at": at}


def checked(directory: Path, kept: Artifacts, *claims: tuple[Predicate, dict[str, Any]]) -> str:
    """What `freehold verify` says of approvals in a bundle with these statements."""
    with EvidenceLog.open_for_writing(directory / "log", SIGNER, "freehold.dev/site/test") as log:
        log.append_all([Statement.claim(kind, [Subject.of_name("site")], facts) for kind, facts in claims])
        bundle = export(log, directory / "run", SIGNER, report={}, artifacts=kept.all(), public_keys={})
    return verify_bundle(bundle, SIGNER.public_key_pem).checks[8]


FOUNDED = (Predicate.APPROVAL, operators(1.0, ann=ANN, bob=BOB))
REPLACED = (Predicate.APPROVAL, operators(5.0, carol=CAROL, dave=DAVE))


def test_approvals_verify_by_the_operators_of_their_time(tmp_path: Path) -> None:
    kept = Artifacts(tmp_path / "kept")
    said = checked(
        tmp_path,
        kept,
        FOUNDED,
        (Predicate.POSTURE, of_values(kept, 2.0, {"ann": ANN, "bob": BOB})),
        REPLACED,
        (Predicate.POSTURE, of_values(kept, 2.0, {"ann": ANN, "bob": BOB})),  # of the next server of that board
        (Predicate.APPROVAL, inline(6.0, {"carol": CAROL, "dave": DAVE})),
    )
    assert said == "approvals: the signatures of all 3 that statements carry verify, by the operators of that time"


@pytest.mark.parametrize("form", ["artifacts", "inline"])
@pytest.mark.parametrize(
    ("people", "at", "why"),
    [
        ({"ann": ANN, "carol": CAROL}, 2.0, f"carol \\(key {CAROL.key_id}\\) was no operator of the site then"),
        ({"ann": ANN, "bob": BOB}, 6.0, "was no operator of the site then"),
        ({"ann": CAROL, "bob": BOB}, 2.0, "was no operator of the site then"),
    ],
    ids=["not yet", "no longer", "another key under the name"],
)
def test_who_was_no_operator_then_approved_nothing(
    tmp_path: Path, form: str, people: dict[str, Ed25519Signer], at: float, why: str
) -> None:
    kept = Artifacts(tmp_path / "kept")
    if form == "inline":
        forged = (Predicate.APPROVAL, inline(at, people))
    else:
        forged = (Predicate.POSTURE, of_values(kept, at, people))
    with pytest.raises(BundleRefused, match=why) as refused:
        checked(tmp_path, kept, FOUNDED, REPLACED, forged)
    assert refused.value.check == "approval of statement 2"


def test_the_signature_of_something_else_is_no_approval(tmp_path: Path) -> None:
    people = {"ann": ANN, "bob": BOB}
    kept = Artifacts(tmp_path / "kept")
    other = (Predicate.APPROVAL, inline(2.0, people, signed=b'{"act":"waiver"}'))
    with pytest.raises(BundleRefused, match="what ann signed is another request"):
        checked(tmp_path / "1", kept, FOUNDED, other)
    moved = (Predicate.POSTURE, of_values(kept, 2.0, people, values={"0": ["bb"], "2": []}))
    with pytest.raises(BundleRefused, match="what was approved is not what it says"):
        checked(tmp_path / "2", kept, FOUNDED, moved)
    claim = of_values(kept, 2.0, {"ann": ANN}) | {"approved_by": ["ann", "bob"]}
    with pytest.raises(BundleRefused, match="not the approvals that it names"):
        checked(tmp_path / "3", kept, FOUNDED, (Predicate.POSTURE, claim))


WAIVED = {"name": "old", "server": "server-1", "finding": "bmc-account", "reason": "contract", "account": "field"}


def waiver(at: float, people: Mapping[str, Ed25519Signer], signed: bytes | None = None, **said: Any) -> dict[str, Any]:
    """A `waiver` statement; `said`: what it says other than what was signed."""
    details = {key: value for key, value in WAIVED.items() if key != "name"} | {"waiver": "old"}
    request = {"act": "waiver", "subject": "server/server-1", "details": details, "at": 0.0, "expires": 86400.0}
    given = inline(at, people, signed or canonical.dumps(request))["approved_by"]
    claim = {**WAIVED, "approved_by": sorted(people), "at": at}
    return {**claim, "approval": {"request_id": "x", "request": request, "approved_by": given}, **said}


def test_a_waiver_carries_the_signatures_of_those_who_were_operators_when_it_was_relied_on(tmp_path: Path) -> None:
    both = {"ann": ANN, "bob": BOB}
    older = {key: value for key, value in waiver(2.0, both).items() if key != "approval"}
    kept = Artifacts(tmp_path / "kept")
    said = checked(tmp_path, kept, FOUNDED, (Predicate.WAIVER, waiver(2.0, both)), (Predicate.WAIVER, older))
    assert said.startswith("approvals: the signatures of all 1 that statements carry verify")


@pytest.mark.parametrize(
    ("claim", "why"),
    [
        (waiver(6.0, {"ann": ANN, "bob": BOB}), "was no operator of the site then"),
        (waiver(2.0, {"ann": ANN, "bob": CAROL}), "was no operator of the site then"),
        (waiver(2.0, {"ann": ANN, "bob": BOB}, signed=b"{}"), "what ann signed is another request"),
        (waiver(2.0, {"ann": ANN, "bob": BOB}, account="root"), "what was waived is not what it says"),
        (waiver(2.0, {"ann": ANN, "bob": BOB}, reason="another"), "what was waived is not what it says"),
        (waiver(2.0, {"ann": ANN, "bob": BOB}, server="server-2"), "what was approved is another waiver"),
        (waiver(2.0, {"ann": ANN, "bob": BOB}, name="new"), "what was approved is another waiver"),
        (waiver(2.0, {"ann": ANN, "bob": BOB}, approved_by=["ann", "carol"]), "not those of the people that it names"),
        (waiver(2.0, {"ann": ANN}), "not those of the people that it names"),
        (waiver(86400.0, {"ann": ANN, "bob": BOB}), "the waiver had ended"),
    ],
)
def test_a_waiver_that_its_signatures_do_not_bear_is_refused(tmp_path: Path, claim: dict[str, Any], why: str) -> None:
    with pytest.raises(BundleRefused, match=why):
        checked(tmp_path, Artifacts(tmp_path / "kept"), FOUNDED, REPLACED, (Predicate.WAIVER, claim))
