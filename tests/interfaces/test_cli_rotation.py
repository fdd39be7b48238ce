"""`freehold rotate`: one intent for each server that can be rotated now, and a clear no for the others."""

import time

from cli_support import Shell

from freehold.model.status import ServerState, ServerStatus


def asked(site: Shell, name: str) -> list[str]:
    view = site.store(lambda store: store.ledger.view(name))
    assert view is not None
    return [f"{intent.kind} {intent.reason}" for intent in view.intents]


def test_one_server_is_asked(site: Shell) -> None:
    site.set_status("server-1", ServerStatus(state=ServerState.ACTIVE, state_since=time.time()))
    assert site("rotate", "server-1", "--reason", "ann left").out == "server-1: asked to rotate\n"
    assert asked(site, "server-1") == ["rotate ann left"]


def test_all_leaves_out_those_that_cannot(site: Shell) -> None:
    site.set_status("server-1", ServerStatus(state=ServerState.AVAILABLE, state_since=time.time()))
    assert site("rotate", "--all", "-o", "json").json()["servers"] == ["server-1"]
    assert asked(site, "server-2") == []


def test_a_server_that_is_not_ours_yet_is_refused(site: Shell) -> None:
    refused = site("rotate", "server-1")
    assert refused.code == 1
    assert "the BMC credential of a server that is enrolled is not rotated" in refused.err


def test_either_names_or_all(site: Shell) -> None:
    assert site("rotate").code == 2
    assert site("rotate", "server-1", "--all").code == 2


def test_waiting_ends_with_the_time_and_says_where_it_hangs(site: Shell) -> None:
    site.set_status("server-1", ServerStatus(state=ServerState.ACTIVE, state_since=time.time()))
    late = site("rotate", "server-1", "--wait", "--timeout", "0.1")
    assert late.code == 1
    assert "after 0.1 s not yet a new BMC password: server-1 is active" in late.err
