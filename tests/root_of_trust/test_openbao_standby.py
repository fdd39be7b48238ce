"""An OpenBao node that is not the active one: it answers reads, and sends writes on to another node with a redirect.

So does a lone node in the moment after its start. Once the vault took the redirect for a write that was done, and
destroyed the version before, which was the only one.
"""

import json
import ssl
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from openbao_support import Authority

from freehold.root_of_trust.kek.transit import TransitKek
from freehold.root_of_trust.openbao import OpenBao, OpenBaoUnreachable
from freehold.root_of_trust.vault.openbao import OpenBaoVault

PATH = "bmc/r1/current"
SECRET = b"the only password there is"
LIVE = {"created_time": "2026-05-01T00:00:00Z", "deletion_time": "", "destroyed": False}
DATA, METADATA = f"/v1/freehold/data/{PATH}", f"/v1/freehold/metadata/{PATH}"


class Node:
    """`answers`: status and JSON of a request, by (method, path); `asked`: what it was asked. What is not in there is
    sent on."""

    def __init__(self, authority: Authority) -> None:
        stored = {"data": {"secret": b64encode(SECRET).decode()}, "metadata": {"version": 3}}
        self.asked: list[tuple[str, str]] = []
        self.answers: dict[tuple[str, str], tuple[int, Any]] = {
            ("POST", "/v1/auth/approle/login"): (200, {"auth": {"client_token": "token"}}),
            ("GET", DATA): (200, {"data": stored}),
            ("GET", METADATA): (200, {"data": {"current_version": 3, "versions": {"3": LIVE}}}),
            ("HEAD", "/v1/sys/health"): (429, None),
        }
        node = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = self.path.partition("?")[0]
                node.asked.append((self.command, path))
                status, said = node.answers.get((self.command, path), (307, None))
                body = b"" if said is None else json.dumps(said).encode()
                self.send_response(status)
                if status == 307:
                    self.send_header("Location", f"https://127.0.0.1:1{path}")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = do_HEAD = do_LIST = answer  # noqa: N815 - the library's names

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*authority.server("standby"))
        self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        address = f"https://127.0.0.1:{self._server.server_port}"
        self.bao = OpenBao(address, str(authority.file), "role", lambda: "secret-id")
        self.vault = OpenBaoVault(self.bao, "freehold")

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(Authority(tmp_path / "ca"))
    yield made
    made.close()


def test_a_write_that_is_sent_on_is_not_done_and_nothing_is_destroyed(node: Node) -> None:
    with pytest.raises(OpenBaoUnreachable, match=rf"is not the active node, so it cannot write {PATH}") as raised:
        node.vault.put(PATH, b"another")
    assert "do this again" in (raised.value.remedy or "")
    assert ("POST", DATA) in node.asked
    assert not [path for _, path in node.asked if "/destroy/" in path]
    assert node.vault.get(PATH) == SECRET


CALLS: list[Callable[[Node], object]] = [
    lambda node: node.vault.get("bmc/r2/current"),
    lambda node: node.vault.paths(),
    lambda node: node.vault.destroy("bmc"),
    lambda node: node.vault.audit(),
    lambda node: TransitKek.open(node.bao, "transit", "freehold"),
]


@pytest.mark.parametrize("call", CALLS)
def test_no_call_takes_being_sent_on_for_an_answer(node: Node, call: Callable[[Node], object]) -> None:
    with pytest.raises(OpenBaoUnreachable, match="is not the active node"):
        call(node)


def test_a_log_in_that_is_sent_on_is_no_session(node: Node) -> None:
    del node.answers["POST", "/v1/auth/approle/login"]
    with pytest.raises(OpenBaoUnreachable, match="is not the active node, so it cannot log in"):
        node.vault.get(PATH)


def test_the_only_version_is_never_destroyed_whatever_a_write_was_answered(node: Node) -> None:
    for answer in (None, {}, {"data": {"version": 3}}):
        node.answers["POST", DATA] = 200 if answer is not None else 204, answer
        with pytest.raises(OpenBaoUnreachable, match=f"does not say that it has stored version 4 of {PATH}"):
            node.vault.put(PATH, b"another")
    node.answers["POST", DATA] = 200, {"data": {"version": 4}}  # and then nobody knows of it
    node.vault.put(PATH, b"another")
    assert not [path for _, path in node.asked if "/destroy/" in path]


def test_a_standby_nodes_word_that_nothing_is_there_is_not_enough_to_destroy_nothing(node: Node) -> None:
    """What is to be shredded would be left, and called gone."""
    node.answers["LIST", "/v1/freehold/metadata/bmc"] = 404, {"errors": []}
    node.answers["GET", "/v1/freehold/metadata/bmc"] = 404, {"errors": []}
    for call in (lambda: node.vault.destroy("bmc"), lambda: node.vault.paths("bmc")):
        with pytest.raises(OpenBaoUnreachable, match="is a standby node, so its word that nothing is in bmc does not"):
            call()
    node.answers["HEAD", "/v1/sys/health"] = 200, None
    assert node.vault.paths("bmc") == []
    assert node.vault.destroy("bmc") == []
