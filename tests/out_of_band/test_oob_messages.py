"""A BMC that repeats what it was sent: no secret of the conversation comes back in an error."""

import base64
import html
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oob_support import no_sleep

from freehold.out_of_band.errors import BmcError, NotSupported, OutOfBandError, WrongCredential
from freehold.out_of_band.messages import STRUCK, secrets_in, strike, text
from freehold.out_of_band.redfish import Credential, RedfishClient
from freehold.out_of_band.transport import Answer, Call

OLD, NEW = "old-<Pass>&word-1", "new pass/word-2"


def said(words: str) -> dict[str, Any]:
    return {"error": {"@Message.ExtendedInfo": [{"Message": words, "MessageId": "Base.1.18.GeneralError"}]}}


class Parrot:
    """Repeats every secret that it was ever sent, as it came, as HTML and as a URI."""

    def __init__(self, *, sessions: bool = True, login: int = 201, status: int = 400) -> None:
        self._sessions, self._login, self._status = sessions, login, status
        self.heard: list[str] = []

    async def close(self) -> None:
        return None

    def words(self) -> str:
        return " ".join(f"{each} {html.escape(each)} {quote(each, safe='')}" for each in self.heard)

    async def request(self, call: Call) -> Answer:
        self.heard += [*call.headers.values(), *(str(each) for each in (call.body or {}).values())]
        if call.path == "/redfish/v1/":
            links = {"Links": {"Sessions": {"@odata.id": "/redfish/v1/S"}}} if self._sessions else {}
            return Answer(status=200, body=links)
        if call.path == "/redfish/v1/S":
            return Answer(status=self._login, headers={"x-auth-token": "t0ken-t0ken"}, body=said(self.words()))
        if call.method == "GET" and call.path != "/redfish/v1/Systems":
            failed = {"TaskState": "Exception", "Messages": [{"Message": self.words()}]}
            return Answer(status=200, body=failed if call.path == "/task" else {})
        if call.path == "/redfish/v1/Systems" and self._status not in (401, 403):
            return Answer(status=200, body={})
        return Answer(status=self._status, body=said(self.words()))


def client(bmc: Parrot) -> RedfishClient:
    return RedfishClient(bmc, Credential("root", OLD), sleep=no_sleep)


def assert_silent(error: OutOfBandError, bmc: Parrot) -> None:
    assert bmc.heard
    shown = f"{error} {error.what} {error!r} {error.to_dict()}"
    basic = base64.b64encode(f"root:{OLD}".encode()).decode()
    for secret in (OLD, NEW, basic, "t0ken-t0ken"):
        for form in (secret, html.escape(secret), quote(secret, safe="")):
            assert form not in shown
    assert STRUCK in shown


@pytest.mark.parametrize("status", [400, 401, 403])
async def test_a_refused_log_in(status: int) -> None:
    bmc = Parrot(login=status)
    with pytest.raises(WrongCredential) as refused:
        await client(bmc).login()
    assert_silent(refused.value, bmc)


async def test_a_refused_log_in_without_sessions() -> None:
    bmc = Parrot(sessions=False, status=401)
    with pytest.raises(WrongCredential) as refused:
        await client(bmc).login()
    assert_silent(refused.value, bmc)


@pytest.mark.parametrize("status", [400, 403, 404, 500])
async def test_a_refused_new_password(status: int) -> None:
    bmc = Parrot(status=status)
    opened = client(bmc)
    bmc._status = 200
    await opened.login()
    bmc._status = status
    with pytest.raises((BmcError, NotSupported)) as refused:
        await opened.patch("/redfish/v1/A/1", {"Password": NEW})
    assert_silent(refused.value, bmc)
    with pytest.raises((BmcError, NotSupported)) as refused:  # nor later, when something else is refused
        await opened.post("/redfish/v1/X", {"Name": "x"})
    assert_silent(refused.value, bmc)


async def test_a_task_that_failed() -> None:
    bmc = Parrot(status=200)
    opened = client(bmc)
    await opened.login()
    await opened.post("/redfish/v1/A", {"UserName": "x", "Password": NEW})
    with pytest.raises(BmcError) as failed:
        await opened.wait_task(Answer(status=202, headers={"location": "/task"}))
    assert_silent(failed.value, bmc)


def test_what_is_named_like_a_secret_is_one() -> None:
    body = {"UserName": "root", "Password": "a", "Oem": [{"NewPassword": "b", "AuthToken": "c"}], "Enabled": True}
    assert secrets_in(body) == {"a", "b", "c"}
    assert secrets_in(None) == set()


@given(st.text(max_size=40), st.sets(st.text(alphabet="xyz", min_size=1, max_size=9), max_size=3))
def test_nothing_of_a_secret_is_left(words: str, secrets: set[str]) -> None:
    assert strike(words, ()) == words
    assert all(secret not in strike(f"<{secret}>", secrets).replace(STRUCK, "") for secret in secrets)


def test_a_short_secret_is_struck_out_where_it_stands_alone() -> None:
    assert strike("user ADMIN, password 'ADMIN': ADMINISTRATOR only", {"ADMIN"}) == (
        f"user {STRUCK}, password '{STRUCK}': ADMINISTRATOR only"
    )


def test_words_without_a_secret_stay_as_they_are() -> None:
    assert text(said("The value 'x' is not in the list."), {"", "factory"}) == "The value 'x' is not in the list."
