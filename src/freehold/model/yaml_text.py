"""YAML text into plain data with line numbers: a small, strict subset of YAML 1.2.

Anchors, aliases, tags and duplicate keys are refused: they serve bombs and surprises. Scalars follow the core schema of
YAML 1.2 (section 10.3), not 1.1, so `52:54:00:12:34:56` stays a string and `no` is not false.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from freehold.model.errors import FreeholdError

MAX_BYTES = 32 * 1024 * 1024
MAX_DEPTH = 24

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class DocumentError(FreeholdError):
    """A declared document is wrong. `problems` holds one line each: `file:line: path: what`."""

    def __init__(self, problems: list[str], *, remedy: str | None = None) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problems), remedy=remedy)


class Document:
    """One YAML document: its data, its first line, and the line of every path in it."""

    def __init__(self, data: Any, line: int, lines: dict[str, int]) -> None:
        self.data, self.line, self.lines = data, line, lines


def read_documents(text: str, filename: str) -> Iterator[Document]:
    """Yield the documents of a YAML stream; empty documents are left out. Raises `DocumentError`."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        limit = f"{MAX_BYTES // 1024 // 1024} MiB"
        raise DocumentError([f"{filename}: larger than {limit}"], remedy="Split the file.")
    events = _Events(text, filename)
    while (event := next(events, None)) is not None:
        if isinstance(event, yaml.DocumentStartEvent):
            lines: dict[str, int] = {}
            first = next(events)
            data = _build(events, first, "", lines, 0)
            if data is not None:
                yield Document(data, _line(first), lines)


class _Events:
    """Parser events, with syntax errors in our words."""

    def __init__(self, text: str, filename: str) -> None:
        self.filename = filename
        self._text = text
        self._events = self._parse()

    def _parse(self) -> Iterator[Any]:
        try:
            yield from yaml.parse(self._text, Loader=_LOADER)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            place = f"{self.filename}:{mark.line + 1}" if mark else self.filename
            problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
            raise DocumentError([f"{place}: not valid YAML: {problem}"]) from error

    def __iter__(self) -> "_Events":
        return self

    def __next__(self) -> Any:
        return next(self._events)

    def refuse(self, event: Any, path: str, what: str) -> DocumentError:
        where = f"{self.filename}:{_line(event)}: "
        return DocumentError([where + (f"{path}: " if path else "") + what])


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _build(events: _Events, event: Any, path: str, lines: dict[str, int], depth: int) -> Any:
    lines.setdefault(path, _line(event))
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
        raise events.refuse(event, path, "anchors and aliases (& and *) are not allowed; write the value out")
    if event.tag not in (None, "!"):
        raise events.refuse(event, path, f"the tag {event.tag!r} is not allowed")
    if depth > MAX_DEPTH:
        raise events.refuse(event, "", f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(event.value) if event.implicit[0] and event.tag is None else event.value
    if isinstance(event, yaml.SequenceStartEvent):
        items: list[Any] = []
        while not isinstance(item := next(events), yaml.SequenceEndEvent):
            items.append(_build(events, item, f"{path}[{len(items)}]", lines, depth + 1))
        return items
    mapping: dict[str, Any] = {}
    while not isinstance(key := next(events), yaml.MappingEndEvent):
        if not isinstance(key, yaml.ScalarEvent) or key.anchor:
            raise events.refuse(key, path, "a key must be a plain word")
        inner = f"{path}.{key.value}" if path else key.value
        if key.value in mapping:
            raise events.refuse(key, inner, f"the key {key.value!r} is there twice (first in line {lines[inner]})")
        lines[inner] = _line(key)
        mapping[key.value] = _build(events, next(events), inner, lines, depth + 1)
    return mapping


def _scalar(text: str) -> Any:
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text) and len(text) < 20:
        return int(text)
    if _HEX.fullmatch(text) and len(text) < 20:
        return int(text, 16)
    if _FLOAT.fullmatch(text) and not _INT.fullmatch(text):
        return float(text)
    return text
