"""Intents: recorded with a name and a reason, refused where they make no sense, confirmed where data is lost."""

import io
import sys
import threading
import time
from pathlib import Path

import pytest
from cli_support import Shell

from freehold.interfaces.cli.intents import login_name
from freehold.model.status import Facts, ImageFact, Intent, ServerState, ServerStatus

ACTIVE = ServerStatus(
    state=ServerState.ACTIVE,
    state_since=time.time() - 60,
    reason="attested",
    facts=Facts(image=ImageFact(name="debian-12", version="3fa2", manifest="ab" * 32)),
)


def intents(site: Shell, name: str = "server-1") -> tuple[Intent, ...]:
    view = site.store(lambda store: store.ledger.view(name))
    assert view is not None
    return view.intents


def answer_with(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_an_intent_bears_who_and_why(site: Shell) -> None:
    site.set_status("server-1", ACTIVE)
    answer = site("decommission", "server-1", "--yes", "--reason", "end of project")
    assert answer.code == 0
    assert answer.out == "server-1: asked to decommission (active now); follow it with `freehold watch server-1`\n"
    (found,) = intents(site)
    assert (found.kind, found.reason, found.by) == ("decommission", "end of project", login_name())


def test_json(site: Shell) -> None:
    found = site("pause", "server-1", "--reason", "fan", "-o", "json").json()
    assert found == {
        "server": "server-1", "intent": "pause", "by": login_name(), "reason": "fan", "state": "enrolled"
    }  # fmt: skip
    assert site("get", "server", "server-1", "-o", "json").json()["paused"] is True
    assert site("resume", "server-1", "-o", "json").code == 0
    assert site("get", "server", "server-1", "-o", "json").json()["paused"] is False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("decommission", "server-1", "--yes"), "a server that is enrolled cannot be decommissioned"),
        (("retire", "server-1"), "a server that is enrolled cannot be decommissioned"),
        (("release", "server-1"), "a server that is enrolled is not in quarantine: there is nothing to release"),
    ],
)
def test_the_wrong_state_is_refused_before_anything_is_asked(site: Shell, words: tuple[str, ...], message: str) -> None:
    answer = site(*words)
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == f"freehold: server server-1: {message}\n"
    assert site(*words, "-o", "json").error()["server"] == "server-1"
    assert intents(site) == ()


@pytest.mark.parametrize("command", ["pause", "resume", "decommission", "release", "retire"])
def test_an_unknown_server_says_which_there_are(site: Shell, command: str) -> None:
    answer = site(command, "server-9")
    assert answer.code == 1
    assert "there is no Server named 'server-9'\n  expected: server-1, server-2" in answer.err


@pytest.mark.parametrize("said", ["n\n", "\n", ""])
def test_without_a_yes_nothing_is_destroyed(site: Shell, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    site.set_status("server-1", ACTIVE)
    answer_with(monkeypatch, said)
    answer = site("decommission", "server-1")
    assert answer.code == 1
    assert "All data on server server-1 will be destroyed: web-1, running debian-12 3fa2, active." in answer.err
    assert "nobody confirmed to decommission it; nothing was done" in answer.err
    assert intents(site) == ()


def test_with_a_yes_it_is_asked_for(site: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    site.set_status("server-1", ACTIVE)
    answer_with(monkeypatch, "y\n")
    answer = site("retire", "server-1")
    assert answer.code == 0
    assert "It will not come back to the pool." in answer.err
    assert [each.kind for each in intents(site)] == ["retire"]


def test_a_release_can_lead_to_the_eraser(site: Shell) -> None:
    site.set_status("server-1", ServerStatus(state=ServerState.QUARANTINED, quarantined_from=ServerState.ACTIVE))
    assert site("release", "server-1", "--to", "decommissioning").code == 0
    (found,) = intents(site)
    assert found.args == {"to": "decommissioning"}
    assert site("release", "server-1", "--to", "available").code == 2


def test_wait_follows_until_the_engine_has_done_it(site: Shell) -> None:
    def engine() -> None:
        time.sleep(0.4)
        site.set_status("server-1", ServerStatus(state=ServerState.RETIRED, state_since=time.time()))

    site.set_status("server-1", ACTIVE)
    other = threading.Thread(target=engine)
    other.start()
    answer = site("retire", "server-1", "--yes", "--wait", "--timeout", "20")
    other.join()
    assert answer.code == 0, answer


def test_waiting_for_a_decommission_is_not_over_before_it_began(site: Shell) -> None:
    site.set_status("server-1", ServerStatus(state=ServerState.AVAILABLE, state_since=5.0, reason="clean"))
    answer = site("decommission", "server-1", "--yes", "--wait", "--timeout", "0.1")
    assert answer.code == 1
    assert "after 0.1 s not yet available: server-1 is available" in answer.err


def test_waiting_ends_when_the_server_is_quarantined(site: Shell) -> None:
    def engine() -> None:
        time.sleep(0.4)
        site.set_status("server-1", ServerStatus(state=ServerState.QUARANTINED, reason="a disk kept its data"))

    site.set_status("server-1", ACTIVE)
    other = threading.Thread(target=engine)
    other.start()
    answer = site("decommission", "server-1", "--yes", "--wait", "--timeout", "20")
    other.join()
    assert answer.code == 1
    assert "cannot come to available: server-1 is quarantined" in answer.err
    assert "a disk kept its data" in answer.err


KEY = "5e0c" * 16


@pytest.mark.parametrize("given", [KEY, KEY.upper(), ":".join(KEY[at : at + 2] for at in range(0, 64, 2))])
def test_a_release_may_accept_a_new_key_of_the_bmc(site: Shell, given: str) -> None:
    site.set_status("server-1", ServerStatus(state=ServerState.QUARANTINED, quarantined_from=ServerState.ACTIVE))
    assert site("release", "server-1", "--accept-bmc-key", given, "--reason", "new board").code == 0
    (found,) = intents(site)
    assert (found.args, found.reason) == ({"accept_bmc_key": KEY}, "new board")
    assert site("release", "server-1", "--accept-bmc-key", "5e0c").code == 2


def test_another_key_than_the_pinned_one_takes_two_people(site: Shell, tmp_path: Path) -> None:
    pinned = Facts(bmc_identity="cd" * 32, bmc_address="10.0.0.1")
    status = ServerStatus(state=ServerState.QUARANTINED, quarantined_from=ServerState.ACTIVE, facts=pinned)
    site.set_status("server-1", status)
    for name in ("ann", "bob"):
        site("operator", "keygen", tmp_path / f"{name}.key", "--no-passphrase")
    site("operator", "found", *(f"{name}={tmp_path}/{name}.key.pub" for name in ("ann", "bob")))
    asked = site("release", "server-1", "--accept-bmc-key", KEY, "--reason", "new board", "-o", "json")
    request = asked.json()["request"]
    assert intents(site) == ()
    shown = site("approval", "show", request, "-o", "json").json()["request"]
    assert (shown["act"], shown["subject"]) == ("bmc-key", "server/server-1")
    assert shown["details"]["spki_sha256"] == KEY
    assert shown["details"]["replaces"] == "cd" * 32
    assert shown["details"]["address"]
    site("approval", "sign", request, "--key", tmp_path / "ann.key")
    refused = site("release", "server-1", "--approved", request)
    assert refused.code == 1
    assert "was approved by ann, not by two people" in refused.err
    site("approval", "sign", request, "--key", tmp_path / "bob.key")
    assert site("release", "server-1", "--approved", request, "--accept-bmc-key", KEY).code == 2
    assert site("release", "server-1", "--approved", request, "--reason", "new board").code == 0
    (found,) = intents(site)
    assert found.args == {"accept_bmc_key": KEY, "approval": request}
    view = site.store(lambda store: store.ledger.view("server-1"))
    assert view is not None
    assert view.asked[request].approved_by == ("ann", "bob")


WAITING = ServerStatus(state=ServerState.SECURING, state_since=time.time(), facts=Facts(bmc_key_seen=KEY))


def test_a_key_that_was_seen_is_shown_and_confirmed(site: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    site.set_status("server-1", WAITING)
    answer_with(monkeypatch, "n\n")
    refused = site("confirm", "server-1")
    assert refused.code == 1
    assert KEY in refused.err
    assert "nobody confirmed the key of its BMC; nothing was done" in refused.err
    assert intents(site) == ()
    answer_with(monkeypatch, "y\n")
    assert site("confirm", "server-1").code == 0
    (found,) = intents(site)
    assert (found.kind, found.args, found.by) == ("confirm", {"fingerprint": KEY}, login_name())


def test_a_key_that_is_known_beforehand_needs_no_question(site: Shell) -> None:
    assert site("confirm", "server-1", "--fingerprint", KEY).code == 0
    (found,) = intents(site)
    assert found.args == {"fingerprint": KEY}


def test_there_must_be_something_to_confirm(site: Shell) -> None:
    answer = site("confirm", "server-1")
    assert (answer.code, "no key of its BMC waits for a confirmation" in answer.err) == (1, True)
    site.set_status("server-1", ACTIVE)
    late = site("confirm", "server-1", "--fingerprint", KEY)
    assert (late.code, "first contact with the BMC of a server that is active is over" in late.err) == (1, True)
