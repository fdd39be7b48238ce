"""`get`, `describe`, `events`, `watch`: what a tired person reads at three in the morning."""

import json
import shlex
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import msgspec
import pytest
import yaml
from cli_support import RACK, Shell

from freehold.interfaces.cli.following import last_event_id, last_events
from freehold.model.findings import Finding, Severity
from freehold.model.resources import KINDS, DriftKind
from freehold.model.status import AgentSession, Drift, Facts, ImageFact, Medium, ServerState, ServerStatus
from freehold.orchestration.store import Store

NOW = time.time()
"""Ages are counted from here; the commands of this file believe that it is still this second."""


@pytest.fixture(autouse=True)
def _still_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)


FINDING = Finding(
    severity=Severity.WARNING,
    kind="stuck",
    subject="server-1",
    detail="provisioning for 70 minutes",
    remedy="look at its console",
)
ACTIVE = ServerStatus(
    state=ServerState.ACTIVE,
    state_since=NOW - 7500,
    reason="attested",
    step="check_drift",
    waiting_for="the next look",
    findings=(FINDING,),
    facts=Facts(
        image=ImageFact(name="debian-12", version="3fa2", manifest="ab" * 32),
        bmc_identity="cd" * 32,
        bmc_credential_committed=True,
        ek_sha256="ef" * 32,
        last_attestation=NOW - 600,
        drift=(Drift(kind=DriftKind.IPMI, subject="ipmi", expected="off", observed="on"),),
        media=(Medium(serial="S1", sanitized=True, verified=False),),
    ),
)
AGENT = AgentSession(
    id="1",
    mode="os",
    boot_id="b-7",
    started=NOW - 650,
    last_seen=NOW - 5,
    attested_at=NOW - 600,
    ready_at=NOW - 590,
    details={"hostname": "web-1", "addresses": ["172.30.3.11"]},
)


def test_get_servers_says_the_state_and_why(site: Shell) -> None:
    answer = site("get", "servers")
    assert answer.out.splitlines()[0].split() == ["NAME", "STATE", "AGE", "FINDINGS", "WHY"]
    assert answer.out.splitlines()[1].split() == ["server-1", "enrolled", "0s", "0", "declared"]


def test_wide_says_everything_at_a_glance(site: Shell) -> None:
    site.set_status("server-1", ACTIVE)
    site.set_agent("server-1", AGENT)
    head, line, other = site("get", "servers", "-o", "wide").out.splitlines()
    columns = ["NAME", "STATE", "AGE", "STEP", "PROGRESS", "IMAGE", "BMC", "OS", "ATTESTED", "FINDINGS", "WHY"]
    assert head.split() == columns
    cells = [cell.strip() for cell in line.split("   ") if cell.strip()]
    assert cells == [
        "server-1", "active", "2h", "check_drift", "-", "debian-12 3fa2", "172.30.1.11", "ready web-1 172.30.3.11",
        "10m ago", "1", "waits for the next look",
    ]  # fmt: skip
    assert "(debian)" in other
    assert "never" in other


def test_an_attestation_of_a_revoked_image_is_never_shown_as_a_clean_one(site: Shell) -> None:
    facts = msgspec.structs.replace(ACTIVE.facts, image_revoked="ab" * 32)
    site.set_status("server-1", msgspec.structs.replace(ACTIVE, facts=facts))
    site.set_agent("server-1", AGENT)
    assert "10m ago, of a revoked image" in site("get", "servers", "-o", "wide").out
    assert "10m ago, of a revoked image" in site("describe", "server", "server-1").out


def test_paused_and_stuck_and_progress_stand_out(site: Shell) -> None:
    stuck = ServerStatus(state=ServerState.PROVISIONING, state_since=NOW, reason="no route", attempts=3, stuck=True)
    site.set_status("server-1", stuck)
    assert site("pause", "server-1").code == 0

    async def order(store: Store) -> None:
        given = await store.agents.order("server-1", "write_image", "write_image", {})
        progress = {"done": 45, "total": 100, "phase": "write"}
        await store.agents.progress("server-1", given.id, progress)

    site.store(order)
    line = site("get", "server", "server-1", "-o", "wide").out.splitlines()[1]
    assert "provisioning (paused, stuck)" in line
    assert "write 45 %" in line
    assert line.endswith("attempt 3 failed: no route")


@pytest.mark.parametrize("word", ["server", "Servers", "SRV", "network", "net", "Policies", "img", "assignments"])
def test_kinds_have_several_names(site: Shell, word: str) -> None:
    assert len(site("get", word).out.splitlines()) > 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("output", ["table", "wide"])
@pytest.mark.slow
def test_every_kind_has_a_table(site: Shell, kind: str, output: str) -> None:
    answer = site("get", kind, "-o", output)
    assert answer.code == 0
    assert answer.out.startswith("NAME   ") or answer.out.startswith("NAME ")
    assert site("get", kind, "-o", "json").json()["next"] is None


def test_unknown_kind_and_unknown_name_say_what_there_is(site: Shell) -> None:
    unknown = site("get", "pods")
    assert unknown.code == 2
    assert "there is no kind 'pods'; there are sites, networks, policies, images," in unknown.err
    answer = site("get", "server", "server-9")
    assert answer.code == 1
    assert answer.err == "freehold: there is no Server named 'server-9'\n  expected: server-1, server-2\n"
    assert site("describe", "server-9", "-o", "json").error()["expected"] == "server-1, server-2"


def test_looking_at_no_site_founds_none(shell: Shell) -> None:
    answer = shell("get", "servers")
    assert answer.code == 1
    assert f"there is no site in {shell.state}" in answer.err
    assert not shell.state.exists()


def test_lists_come_in_pages(site: Shell) -> None:
    first = site("get", "networks", "--limit", "2")
    assert [line.split()[0] for line in first.out.splitlines()[1:]] == ["oob", "production"]
    assert first.err == "there is more: go on with --after production\n"
    second = site("get", "networks", "--limit", "2", "--after", "production", "-o", "json").json()
    assert [each["metadata"]["name"] for each in second["items"]] == ["provisioning"]
    assert second["next"] is None


def test_only_servers_in_a_state(site: Shell) -> None:
    site.set_status("server-2", ACTIVE)
    assert [e["metadata"]["name"] for e in site("get", "srv", "--in", "active", "-o", "json").json()["items"]] == [
        "server-2"
    ]
    assert site("get", "images", "--in", "active").code == 2


def test_json_has_the_whole_status_and_no_password(site: Shell) -> None:
    answer = site("get", "server", "server-1", "-o", "json")
    found = answer.json()
    assert found["status"]["state"] == "enrolled"
    assert (found["status"]["stuck"], found["status"]["findings"], found["paused"]) == (False, [], False)
    assert found["assignment"] == "web-1"
    assert "factory-word" not in answer.out + site("describe", "server-1").out


def test_yaml_is_the_document(site: Shell) -> None:
    documents = list(yaml.safe_load_all(site("get", "policies", "-o", "yaml").out))
    assert documents == [each for each in yaml.safe_load_all(RACK.read_text()) if each["kind"] == "Policy"]


def test_describe_has_it_all(site: Shell) -> None:
    site.set_status("server-1", ACTIVE)
    site.set_agent("server-1", AGENT)
    text = site("describe", "server", "server-1").out
    assert text == site("describe", "server-1").out
    assert text.startswith("server-1: active for 2h\n  why:         attested\n  waits for:   the next look\n")
    for part in (
        "WARNING stuck (server-1): provisioning for 70 minutes\n    what to do: look at its console",
        f"BMC key:     SHA-256 {'cd' * 32}",
        f"TPM EK:      SHA-256 {'ef' * 32}",
        "last:        10m ago",
        "given:       debian-12 3fa2",
        "OS:          ready web-1 172.30.3.11",
        "ipmi ipmi: off -> on",
        "S1: sanitized, read back: DATA FOUND",
        "created: Server server-1",
    ):
        assert part in text, part
    found = site("describe", "server-1", "-o", "json").json()
    assert found["status"]["facts"]["ek_sha256"] == "ef" * 32
    assert found["agent"]["details"]["hostname"] == "web-1"
    assert found["events"][0]["kind"] == "created"
    assert site("describe", "image", "debian").code == 2


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({}, "not our keys yet"),
        ({"secure_boot_waived": True}, "not our keys, by a waiver"),
        ({"secure_boot_enrolled": True, "secure_boot_generation": 2, "secure_boot_confirmed": 1}, "by the BMC's word"),
        ({"secure_boot_enrolled": True, "secure_boot_confirmed": 1}, "keys of generation 1, confirmed by PCR 7"),
    ],
)
def test_who_says_that_the_secure_boot_keys_are_ours(site: Shell, facts: dict[str, Any], words: str) -> None:
    status = msgspec.structs.replace(ACTIVE, facts=msgspec.structs.replace(ACTIVE.facts, **facts))
    site.set_status("server-1", status)
    (line,) = [each for each in site("describe", "server-1").out.splitlines() if "Secure Boot:" in each]
    assert words in line


def test_a_server_without_a_tpm_is_not_shown_as_attested(site: Shell) -> None:
    facts = msgspec.structs.replace(ACTIVE.facts, ek_sha256=None, tpm_waived=True, reference_values={})
    site.set_status("server-1", msgspec.structs.replace(ACTIVE, facts=facts))
    site.set_agent("server-1", AGENT)
    wide = site("get", "servers", "-o", "wide").out.splitlines()[1]
    assert "never: no TPM, let in 10m ago" in wide
    text = site("describe", "server-1").out
    for part in (
        "CRITICAL waiver-ended (missing-tpm): it has no usable TPM 2.0: nothing proves what it boots",
        "TPM EK:      NONE, by a waiver",
        "last:        never: no TPM, let in 10m ago",
        "reference:   none: there is no TPM to measure",
    ):
        assert part in text, part


def test_what_an_agent_says_does_not_command_the_terminal(site: Shell) -> None:
    site.set_status("server-1", ACTIVE)
    details = {"hostname": "web\x1b[2J\x1b]0;x\x07", "addresses": []}
    site.set_agent(
        "server-1", AgentSession(id="1", mode="os", boot_id="b", started=1, last_seen=1, ready_at=1.0, details=details)
    )
    for words in (("get", "servers", "-o", "wide"), ("describe", "server-1"), ("get", "servers", "-o", "json")):
        text = site(*words).out
        assert "x1b[2J" in text or "u001b[2J" in text
        assert "\x1b" not in text
        assert "\x07" not in text


def test_events_are_paged_and_filtered(site: Shell) -> None:
    first = site("events", "--limit", "3")
    assert len(first.out.splitlines()) == 4
    assert first.err == "there is more: go on with --since 3\n"
    found = site("events", "server-2", "-o", "json").json()
    assert [(each["kind"], each["message"]) for each in found["items"]] == [
        ("created", "Server server-2"),
        ("created", "Assignment web-2"),
    ]
    assert site("events", "server-9").code == 1


@pytest.mark.parametrize("count", [0, 1, 2, 7, 40])
def test_the_newest_events_are_found_without_reading_all(shell: Shell, count: int) -> None:
    async def work(store: Store) -> None:
        for number in range(count):
            await store.add_event("s" if number % 2 else None, "note", str(number))
        assert await last_event_id(store) == count
        newest = [each.message for each in await last_events(store, "s", 3)]
        assert newest == [str(number) for number in range(count) if number % 2][-3:]

    shell.store(work)


def test_watch_until_all_are_there(site: Shell) -> None:
    for name in ("server-1", "server-2"):
        site.set_status(name, ACTIVE)
    answer = site("watch", "--until", "active", "--timeout", "5")
    assert answer.code == 0
    assert "server-1 is active for 2h, at check_drift, waiting for the next look: attested" in answer.out


def test_watch_sees_what_happens_meanwhile(site: Shell) -> None:
    def meanwhile() -> None:
        time.sleep(0.4)
        site.store(lambda store: store.add_event("server-1", "step", "the image is written"))
        site.set_status("server-1", ACTIVE)

    other = threading.Thread(target=meanwhile)
    other.start()
    answer = site("watch", "server-1", "--until", "active", "--timeout", "20", "-o", "json")
    other.join()
    assert answer.code == 0
    lines = [json.loads(line) for line in answer.out.splitlines()]
    assert lines[0]["status"]["state"] == "enrolled"
    assert [line["event"]["message"] for line in lines[1:]] == ["the image is written"]


def test_watch_that_runs_out_of_time_names_where_each_one_hangs(site: Shell) -> None:
    site.set_status("server-2", ACTIVE)
    answer = site("watch", "--until", "active", "--timeout", "0.1")
    assert answer.code == 1
    assert "freehold: after 0.1 s not yet active: server-1 is enrolled for 0s: declared\n" in answer.err
    assert "server-2" not in answer.err
    assert "`freehold describe server server-1`" in answer.err


@pytest.mark.slow
def test_an_interrupted_watch_ends_with_130(site: Shell) -> None:
    command = [sys.executable, "-m", "freehold.interfaces.cli.main", "watch", "--state", str(site.state)]
    listening = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job hands down "ignored"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        signal.signal(signal.SIGINT, listening)
        assert process.stdout is not None
        assert "server-1 is enrolled" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err.strip()) == (130, "interrupted")


def test_a_reader_that_has_seen_enough_gets_no_traceback(site: Shell) -> None:
    words = [sys.executable, "-m", "freehold.interfaces.cli.main", "events", "--state", str(site.state)]
    command = f"{shlex.join(words)} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_the_plain_table_marks_a_paused_server(site: Shell) -> None:
    site("pause", "server-2")
    lines = site("get", "servers").out.splitlines()
    assert ["(paused)" in line for line in lines] == [False, False, True]
