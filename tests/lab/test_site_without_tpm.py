"""A server whose board has no TPM: it stops and says so; two people sign, and it goes on by tickets, which no report
takes for a proof."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from site_rig import SiteRig, site_rig

from freehold.evidence import Envelope, Statement
from freehold.interfaces.cli.evidence import open_view
from freehold.sovereignty.questions import Claim, Run, Verdict, answer

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1200)]

WAIVER = {
    "apiVersion": "freehold/v1",
    "kind": "Waiver",
    "metadata": {"name": "no-chip"},
    "spec": {"server": "server-1", "finding": "missing-tpm", "expires": "2099-01-01", "reason": "an old board"},
}


def test_it_stops_with_the_reason_and_goes_on_under_a_waiver_of_two(tmp_path: Path) -> None:
    with site_rig(tmp_path, "notpm", 1, "--no-tpm", "server-1") as rig:
        rig.declare(assigned=["server-1"])
        rig.serve()
        rig.found_operators()
        it_stops(rig)
        two_sign(rig)
        rig.wait_state("active")
        every_report_says_so(rig)


def it_stops(rig: SiteRig) -> None:
    status = rig.wait(
        "reason", lambda status: status.get("waiting_for", "").startswith("a usable TPM 2.0, or a waiver")
    )
    assert status["state"] == "discovering"
    (finding,) = status["findings"]
    assert finding["kind"] == "no-tpm"
    assert "declare a Waiver of missing-tpm for server-1" in finding["remedy"]
    assert any("its BMC lists no TPM" in event for event in rig.events("server-1"))
    assert json.loads(rig.in_lab("status", "-o", "json").stdout)["servers"][0]["power"] == "Off"
    assert len(rig.statements("boot-config")) == 1


def two_sign(rig: SiteRig) -> None:
    path = rig.lab / "waiver.yaml"
    path.write_text(yaml.safe_dump(WAIVER))
    rig.freehold("apply", "-f", str(path))
    for asked in json.loads(rig.freehold("approval", "list", "-o", "json").stdout)["items"]:
        rig.sign(asked["id"])


def every_report_says_so(rig: SiteRig) -> None:
    assert rig.statements("attestation") == []
    assert len(rig.statements("admission")) == 3  # discovered, provisioned, and the OS
    facts = rig.status()["facts"]
    assert facts["tpm_waived"]
    assert "ek_sha256" not in facts
    assert "boot_ticket" not in facts
    shown = rig.freehold("describe", "server-1").stdout
    assert "INFO missing-tpm (server-1): it has no usable TPM 2.0" in shown
    assert "NONE, by a waiver" in shown
    found = json.loads(rig.freehold("audit", "server-1", "--lab", str(rig.lab), "-o", "json").stdout)
    assert [each["kind"] for each in found["servers"][0]["findings"]] == ["missing-tpm"]
    answers = answer(Run(claims(rig), "server-1"))
    assert Verdict.PASS not in {answers[number].verdict for number in (0, 4, 5, 6)}
    assert "let in by ticket, which proves nothing" in answers[4].reason
    refused = rig.freehold("attest", "server-1", check=False)
    assert "it has no TPM, and goes without by a waiver" in refused.stderr


def claims(rig: SiteRig) -> list[Claim]:
    found: list[Any] = []
    for entry in open_view(rig.state).entries():
        said = Statement.from_bytes(Envelope.from_bytes(entry.envelope).payload)
        subject = said.subject[0].name
        found.append(Claim(index=entry.index, name=said.kind.value, subject=subject, predicate=said.predicate))
    return found
