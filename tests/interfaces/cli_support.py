"""A temporary site, and the command line as a person meets it: words in, exit code and words out."""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from freehold.interfaces.cli.main import main
from freehold.model.documents import load_documents
from freehold.model.status import AgentSession, ServerStatus
from freehold.orchestration.ledger import Completion
from freehold.orchestration.store import Store

RACK = Path(__file__).parents[1] / "model" / "rack.yaml"
T = TypeVar("T")


class Answer:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def json(self) -> Any:
        return json.loads(self.out)

    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.err)["error"]
        return found

    def __repr__(self) -> str:
        return f"exit {self.code}\n{self.out}\n{self.err}"


class Shell:
    """`shell("get", "servers")` in the site's state directory."""

    def __init__(self, state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.state, self._monkeypatch, self._capsys = state, monkeypatch, capsys

    def __call__(self, *words: object) -> Answer:
        self._monkeypatch.setenv("FREEHOLD_STATE", str(self.state))
        self._monkeypatch.setattr(sys, "argv", ["freehold", *map(str, words)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = self._capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Answer(ended.value.code, out, err)

    def store(self, work: Callable[[Store], Awaitable[T]]) -> T:
        async def run() -> T:
            store = await Store.open(self.state / "freehold.db")
            try:
                return await work(store)
            finally:
                await store.close()

        return asyncio.run(run())

    def declare(self, text: str = "") -> None:
        async def work(store: Store) -> None:
            await store.apply(load_documents(text or RACK.read_text(), "rack.yaml"))

        self.store(work)

    def set_status(self, name: str, status: ServerStatus) -> None:
        """As the engine does it: claim, then complete."""

        async def work(store: Store) -> None:
            now = time.time()
            await store.ledger.enter("test", now, 60.0)
            await store.ledger.wake([name])
            claims = {each.server: each for each in await store.ledger.claim("test", now + 1, 100)}
            assert await store.ledger.complete(claims[name], Completion(status=status, next_due=None), now)
            for other in claims.values():
                await store.ledger.let_go(other, now)
            await store.ledger.leave("test")

        self.store(work)

    def set_agent(self, name: str, session: AgentSession) -> None:
        self.store(lambda store: store.agents.put_session(name, session))
