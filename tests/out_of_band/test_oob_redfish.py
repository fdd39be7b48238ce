"""The client against a scripted BMC: one log-in attempt, ETags, tasks, paging, errors in words."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from oob_support import no_sleep

from freehold.out_of_band import messages
from freehold.out_of_band.errors import (
    AccountLocked,
    BmcAnswerUnreadable,
    BmcError,
    BmcUnreachable,
    NotSupported,
    PasswordChangeRequired,
    WrongCredential,
)
from freehold.out_of_band.redfish import MAX_MEMBERS, Credential, RedfishClient, links_in
from freehold.out_of_band.transport import Answer, Call

SESSIONS = "/redfish/v1/S"
ROOT_BODY = {"Links": {"Sessions": {"@odata.id": SESSIONS}}, "Systems": {"@odata.id": "/redfish/v1/Systems"}}
LOGGED_IN = Answer(status=201, headers={"x-auth-token": "t", "location": "https://bmc/redfish/v1/S/1"})


@dataclass
class Script:
    """Answers (or errors) by (method, path), the last one for ever; logs every call."""

    answers: Mapping[tuple[str, str], list[Any]]
    calls: list[Call] = field(default_factory=list)
    closed: bool = False

    async def request(self, call: Call) -> Answer:
        self.calls.append(call)
        left = self.answers.get((call.method, call.path), [Answer(status=404)])
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Answer)
        return answer

    async def close(self) -> None:
        self.closed = True

    def seen(self, method: str) -> list[str]:
        return [call.path for call in self.calls if call.method == method]


def script(answers: Mapping[tuple[str, str], list[Any]], root: dict[str, Any] = ROOT_BODY) -> Script:
    default = {("GET", "/redfish/v1/"): [_ok(root)], ("POST", SESSIONS): [LOGGED_IN]}
    return Script({**default, **answers})


def client(bmc: Script) -> RedfishClient:
    return RedfishClient(bmc, Credential("root", "pw"), server="s1", sleep=no_sleep)


def _ok(body: dict[str, Any], **headers: str) -> Answer:
    return Answer(status=200, headers=headers, body=body)


def _said(message_id: str, message: str, **more: Any) -> dict[str, Any]:
    info = {"MessageId": message_id, "Message": message, **more}
    return {"error": {"code": "x", "message": "general", "@Message.ExtendedInfo": [info]}}


async def test_a_session_is_opened_used_and_closed() -> None:
    bmc = script({("GET", "/redfish/v1/Systems"): [_ok({"Id": "x"})]})
    async with client(bmc) as bmc_client:
        assert await bmc_client.get("/redfish/v1/Systems") == {"Id": "x"}
    assert bmc.calls[0].headers == {}
    assert bmc.calls[2].headers == {"X-Auth-Token": "t"}
    assert bmc.seen("DELETE") == ["/redfish/v1/S/1"]
    assert bmc.closed


async def test_basic_is_used_only_where_there_are_no_sessions() -> None:
    systems = {"Systems": {"@odata.id": "/redfish/v1/Systems"}}
    bmc = script({("GET", "/redfish/v1/Systems"): [_ok({})]}, root=systems)
    async with client(bmc):
        assert bmc.calls[-1].headers == {"Authorization": "Basic cm9vdDpwdw=="}
    assert bmc.seen("POST") == []


async def test_a_wrong_credential_is_tried_once_and_never_again() -> None:
    bmc = script({("POST", SESSIONS): [Answer(status=401)]})
    bmc_client = client(bmc)
    with pytest.raises(WrongCredential, match="server s1: the BMC refused user name or password; tried once"):
        await bmc_client.__aenter__()
    for _ in range(2):
        with pytest.raises(WrongCredential):
            await bmc_client.get("/redfish/v1/Systems")
        with pytest.raises(WrongCredential):
            await bmc_client.login()
    assert bmc.seen("POST") == [SESSIONS]
    assert bmc.closed


async def test_a_wrong_credential_is_tried_once_with_basic_too() -> None:
    bmc = script({("GET", "/redfish/v1/Systems"): [Answer(status=401)]}, root={})
    with pytest.raises(WrongCredential):
        await client(bmc).__aenter__()
    assert bmc.seen("GET") == ["/redfish/v1/", "/redfish/v1/Systems"]


async def test_a_locked_account_is_said_as_such() -> None:
    bmc = script({("POST", SESSIONS): [Answer(status=401, body=_said("Oem.1.0.AccountLocked", "root is locked"))]})
    with pytest.raises(AccountLocked, match="root is locked"):
        await client(bmc).__aenter__()


async def test_password_change_required_is_known_after_login_and_named_in_errors() -> None:
    message = {"MessageId": "Base.1.18.PasswordChangeRequired", "MessageArgs": ["/redfish/v1/A/1"]}
    info = {"@Message.ExtendedInfo": [message]}
    logged_in = Answer(status=201, headers=LOGGED_IN.headers, body=info)
    bmc = script({("POST", SESSIONS): [logged_in], ("GET", "/redfish/v1/Systems"): [Answer(status=403, body=info)]})
    async with client(bmc) as bmc_client:
        assert bmc_client.password_change_account == "/redfish/v1/A/1"
        with pytest.raises(PasswordChangeRequired) as caught:
            await bmc_client.get("/redfish/v1/Systems")
    assert caught.value.account == "/redfish/v1/A/1"


async def test_a_forgotten_session_is_opened_anew_once() -> None:
    bmc = script({("POST", "/redfish/v1/x"): [Answer(status=401), Answer(status=204)]})
    async with client(bmc) as bmc_client:
        assert (await bmc_client.post("/redfish/v1/x", {})).status == 204
    assert bmc.seen("POST") == [SESSIONS, "/redfish/v1/x", SESSIONS, "/redfish/v1/x"]


async def test_a_bmc_that_goes_away_while_we_log_in_again_has_refused_nothing() -> None:
    gone = BmcUnreachable("it starts anew")
    answers = {("POST", SESSIONS): [LOGGED_IN, gone, LOGGED_IN], ("GET", "/x"): [Answer(status=401), _ok({"Id": "x"})]}
    bmc = script(answers)
    async with client(bmc) as bmc_client:
        with pytest.raises(BmcUnreachable):
            await bmc_client.get("/x")
        assert await bmc_client.get("/x") == {"Id": "x"}
    assert [call.headers for call in bmc.calls if call.path == "/x"] == [{"X-Auth-Token": "t"}] * 2


async def test_a_bmc_that_forgets_session_after_session_has_refused_no_password() -> None:
    bmc = script({("GET", "/x"): [Answer(status=401), Answer(status=401), _ok({"Id": "x"})]})
    async with client(bmc) as bmc_client:
        with pytest.raises(BmcUnreachable, match="forgot the session that it had just opened"):
            await bmc_client.get("/x")
        assert await bmc_client.get("/x") == {"Id": "x"}
    assert len(bmc.seen("POST")) == 3


async def test_patch_sends_the_etag_and_reads_again_once_on_412() -> None:
    path = "/redfish/v1/x"
    bmc = script(
        {
            ("GET", path): [_ok({}, etag='"1"'), _ok({"@odata.etag": 'W/"2"'})],
            ("PATCH", path): [Answer(status=412), Answer(status=204)],
        }
    )
    async with client(bmc) as bmc_client:
        await bmc_client.patch(path, {"a": 1})
    patches = [call.headers["If-Match"] for call in bmc.calls if call.method == "PATCH"]
    assert patches == ['"1"', '"2"']


async def test_patch_gives_up_after_a_second_412() -> None:
    path = "/redfish/v1/x"
    bmc = script({("GET", path): [_ok({})], ("PATCH", path): [Answer(status=412, body=_said("B", "changed"))]})
    async with client(bmc) as bmc_client:
        with pytest.raises(BmcError, match="PATCH /redfish/v1/x: HTTP 412: changed"):
            await bmc_client.patch(path, {})
    assert len(bmc.seen("PATCH")) == 2


@pytest.mark.parametrize("as_list", [True, False], ids=["list", "idrac-object"])
def test_the_bmcs_own_words_are_in_the_error(as_list: bool) -> None:
    body = _said("Base.1.18.PropertyValueNotInList", "The value 'X' is not in the list.")
    if not as_list:
        body["error"]["@Message.ExtendedInfo"] = body["error"]["@Message.ExtendedInfo"][0]
    with pytest.raises(BmcError, match="HTTP 400: The value 'X' is not in the list") as caught:
        messages.raise_for(Answer(status=400, body=body), "PATCH", "/x", server="s1")
    assert caught.value.message_ids == ("Base.1.18.PropertyValueNotInList",)


@pytest.mark.parametrize("status", [404, 405, 501])
def test_what_a_bmc_does_not_have_is_not_supported(status: int) -> None:
    with pytest.raises(NotSupported):
        messages.raise_for(Answer(status=status), "GET", "/x", server=None)


@pytest.mark.parametrize("body", [{}, {"error": None}, {"error": {"@Message.ExtendedInfo": [1, None]}}, None])
def test_a_refusal_without_words_is_still_an_error(body: dict[str, Any] | None) -> None:
    with pytest.raises(BmcError, match="gives no reason"):
        messages.raise_for(Answer(status=500, body=body), "GET", "/x", server=None)


async def test_a_task_is_followed_to_its_end() -> None:
    monitor = Answer(status=202, headers={"location": "https://elsewhere/redfish/v1/M/1"})
    running = Answer(status=202, body={"TaskState": "Running"})
    bmc = script({("GET", "/redfish/v1/M/1"): [running, running, _ok({"TaskState": "Completed", "Id": "1"})]})
    async with client(bmc) as bmc_client:
        assert (await bmc_client.wait_task(monitor))["Id"] == "1"
        assert await bmc_client.wait_task(Answer(status=204)) == {}


async def test_a_failed_or_endless_task_is_an_error() -> None:
    task = Answer(status=202, body={"@odata.id": "/redfish/v1/T/1"})
    failed = {"TaskState": "Exception", "Messages": [{"Message": "bad image"}]}
    bmc = script({("GET", "/redfish/v1/T/1"): [_ok({"TaskState": "Running"}), _ok(failed)]})
    async with client(bmc) as bmc_client:
        with pytest.raises(BmcError, match="ended as Exception: bad image"):
            await bmc_client.wait_task(task)
    bmc = script({("GET", "/redfish/v1/T/1"): [_ok({"TaskState": "Running"})]})
    async with client(bmc) as bmc_client:
        with pytest.raises(BmcError, match="still Running after 6 s"):
            await bmc_client.wait_task(task, timeout=6)


async def test_slow_answers_do_not_prolong_the_wait_for_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 40))
    monkeypatch.setattr("freehold.out_of_band.redfish.time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    bmc = script({("GET", "/redfish/v1/T/1"): [_ok({"TaskState": "Running"})]})
    async with client(bmc) as bmc_client:
        with pytest.raises(BmcError, match="still Running after 60 s"):
            await bmc_client.wait_task(Answer(status=202, body={"@odata.id": "/redfish/v1/T/1"}), timeout=60)
    assert len([call for call in bmc.calls if call.path == "/redfish/v1/T/1"]) == 3


@pytest.mark.parametrize("pages", [True, False])
async def test_a_collection_without_an_end_is_an_error(pages: bool) -> None:
    class Endless(Script):
        async def request(self, call: Call) -> Answer:
            if not call.path.startswith("/redfish/v1/C"):
                return await super().request(call)
            number = int(call.path.partition("p=")[2] or 0)
            if pages:
                return _ok({"Members": [], "Members@odata.nextLink": f"/redfish/v1/C?p={number + 1}"})
            return _ok({"Members": [{"@odata.id": f"/redfish/v1/C/{each}", "Id": each} for each in range(20_001)]})

    async with client(Endless(script({}).answers)) as bmc_client:
        with pytest.raises(BmcAnswerUnreadable, match="the collection /redfish/v1/C does not end"):
            await bmc_client.members("/redfish/v1/C")


async def test_of_a_collection_that_lists_too_many_none_is_asked_for() -> None:
    many = [{"@odata.id": f"/redfish/v1/C/{number}"} for number in range(MAX_MEMBERS + 1)]
    bmc = script({("GET", "/redfish/v1/C"): [_ok({"Members": many})]})
    async with client(bmc) as bmc_client:
        with pytest.raises(BmcAnswerUnreadable, match="does not end"):
            await bmc_client.members("/redfish/v1/C")
    assert bmc.seen("GET") == ["/redfish/v1/", "/redfish/v1/C"]
    bmc = script({("GET", "/redfish/v1/C"): [_ok({"Members": 7})]})
    async with client(bmc) as bmc_client:
        with pytest.raises(BmcAnswerUnreadable, match="its Members are no list"):
            await bmc_client.members("/redfish/v1/C")


def test_recursive_structures_links_are_found_however_deep_they_nest() -> None:
    deep: Any = {"@odata.id": "/redfish/v1/deep"}
    for _ in range(5000):
        deep = {"a": [deep]}
    assert links_in(deep) == ["/redfish/v1/deep"]


async def test_collections_are_read_over_all_pages_and_loops_end() -> None:
    one, two = {"@odata.id": "/redfish/v1/C/1"}, {"@odata.id": "/redfish/v1/C/2", "Id": "expanded"}
    gone = {"@odata.id": "/redfish/v1/C/gone"}
    bmc = script(
        {
            ("GET", "/redfish/v1/C"): [_ok({"Members": [one, gone], "Members@odata.nextLink": "/redfish/v1/C?p=2"})],
            ("GET", "/redfish/v1/C?p=2"): [_ok({"Members": [two], "Members@odata.nextLink": "/redfish/v1/C"})],
            ("GET", "/redfish/v1/C/1"): [_ok({**one, "Id": "read"})],
        }
    )
    missing: list[str] = []
    async with client(bmc) as bmc_client:
        members = await bmc_client.members("/redfish/v1/C", missing=missing)
    assert [member["Id"] for member in members] == ["read", "expanded"]
    assert missing == ["/redfish/v1/C/gone"]


async def test_delete_of_what_is_gone_is_success_and_of_what_stays_is_not() -> None:
    bmc = script({("DELETE", "/redfish/v1/x"): [Answer(status=405)], ("GET", "/redfish/v1/x"): [_ok({})]})
    async with client(bmc) as bmc_client:
        await bmc_client.delete("/redfish/v1/gone")
        with pytest.raises(NotSupported):
            await bmc_client.delete("/redfish/v1/x")


async def test_an_action_goes_to_its_own_target() -> None:
    bmc = script({("POST", "/odd/place"): [Answer(status=204)]})
    async with client(bmc) as bmc_client:
        await bmc_client.action({"Actions": {"#A.Do": {"target": "/odd/place"}}}, "A.Do", {})
        with pytest.raises(NotSupported, match=r"has no action A\.Other"):
            await bmc_client.action({"@odata.id": "/x", "Actions": {"#A.Do": {}}}, "A.Other", {})


async def test_crawl_survives_what_cannot_be_read_and_is_bounded() -> None:
    links = [{"@odata.id": f"/redfish/v1/{n}"} for n in ("a", "b", "c#/x", "a/")]
    bmc = script(
        {
            ("GET", "/redfish/v1/"): [_ok({**ROOT_BODY, "More": links})],
            ("GET", "/redfish/v1/a"): [_ok({"up": {"@odata.id": "/redfish/v1/"}})],
            ("GET", "/redfish/v1/b"): [Answer(status=500, body=_said("x", "out of memory"))],
        }
    )
    async with client(bmc) as bmc_client:
        crawl = await bmc_client.crawl()
        assert set(crawl.resources) == {"/redfish/v1/", "/redfish/v1/a"}
        assert "out of memory" in crawl.unreadable["/redfish/v1/b"]
        assert "/redfish/v1/c" in crawl.unreadable
        assert len((await bmc_client.crawl(limit=2)).resources) <= 2


def test_links_leave_out_other_hosts() -> None:
    assert links_in({"@odata.id": "https://evil/redfish/v1", "x": [{"@odata.id": "/redfish/v1/y#z"}]}) == [
        "/redfish/v1/y"
    ]


async def test_a_session_without_a_token_is_refused() -> None:
    bmc = script({("POST", SESSIONS): [Answer(status=201)]})
    with pytest.raises(BmcAnswerUnreadable, match="no X-Auth-Token"):
        await client(bmc).__aenter__()


def test_a_credential_does_not_print_its_password() -> None:
    assert "pw" not in repr(Credential("root", "pw")) + str(Credential("root", "pw"))
