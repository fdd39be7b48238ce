"""Kills a keeper at every file operation in turn, as kill -9 would: nothing happens after it, and a write is halved."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from freehold.evidence import durable


class Crash(BaseException):
    """The process is dead."""


class MortalOs:
    """The `os` module for one process that dies at change number `dies_at` (from 0) and stays dead."""

    CHANGES = frozenset({"mkdir", "open", "write", "fsync", "replace", "unlink", "rmdir", "ftruncate"})

    def __init__(self, dies_at: int) -> None:
        self.left = dies_at

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return self._counted(name, real) if name in self.CHANGES else real

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if self.left == 0 and name == "write":
                real(args[0], args[1][: len(args[1]) // 2])
            if self.left <= 0:
                self.left = -1
                raise Crash
            self.left -= 1
            return real(*args)

        return call


def run_until_crash(monkeypatch: pytest.MonkeyPatch, dies_at: int, work: Callable[[], object]) -> bool:
    """Whether `work` died before its end."""
    with monkeypatch.context() as patch:
        patch.setattr(durable, "os", MortalOs(dies_at))
        try:
            work()
        except Crash:
            return True
    return False


def crashes(
    where: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[], object], check: Callable[[], object]
) -> int:
    """Runs `work` on what is in `where`, dying at each change in turn; how many there were."""
    saved = where.with_name("saved")
    shutil.copytree(where, saved)
    for step in range(1000):
        shutil.rmtree(where)
        shutil.copytree(saved, where)
        if not run_until_crash(monkeypatch, step, work):
            return step
        check()
    raise AssertionError("it never ends")
