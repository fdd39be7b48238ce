"""What a request body may hold, declared as data: the properties of a PATCH or POST, the parameters of an action.

A declaration maps names to kinds: `str`, `int`, `bool`, `OneOf(...)`, `Range(...)`, `ListOf(str)`, `Anything()` or a
nested mapping.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from freehold_lab.bmc.messages import RedfishError


@dataclass(frozen=True)
class OneOf:
    values: tuple[str, ...]


@dataclass(frozen=True)
class Range:
    low: int
    high: int


@dataclass(frozen=True)
class ListOf:
    kind: type


@dataclass(frozen=True)
class Anything:
    """An object that the handler checks itself."""


Kind = type | OneOf | Range | ListOf | Anything | Mapping[str, Any]
Fields = Mapping[str, Kind]
NO_FIELDS: Fields = {}


def check_properties(
    body: Mapping[str, Any], fields: Fields, required: tuple[str, ...] = (), shown: Mapping[str, Any] | None = None
) -> None:
    """Raise the RedfishError of the first property that does not fit. `shown` is the resource's present representation:
    a property that it has and that is not in `fields` is read-only, not unknown."""
    for name in required:
        if name not in body:
            raise RedfishError("PropertyMissing", name, pointer=name)
    _check_object(body, fields, shown or {}, "")


def _check_object(body: Mapping[str, Any], fields: Fields, shown: Mapping[str, Any], prefix: str) -> None:
    for name, value in body.items():
        pointer = prefix + name
        if name.startswith("@odata."):
            continue  # DSP0266, 7.7: clients may send back what they read
        if name not in fields:
            raise RedfishError("PropertyNotWritable" if name in shown else "PropertyUnknown", name, pointer=pointer)
        kind = fields[name]
        if isinstance(kind, Mapping):
            if not isinstance(value, dict):
                raise RedfishError("PropertyValueTypeError", value, name, pointer=pointer)
            inner = shown.get(name)
            _check_object(value, kind, inner if isinstance(inner, dict) else {}, pointer + "/")
        elif fault := _fault(value, kind):
            raise RedfishError("PropertyValue" + fault, value, name, pointer=pointer)


def check_parameters(body: Mapping[str, Any], action: str, fields: Fields, required: tuple[str, ...]) -> None:
    """As `check_properties`, with the messages for an action's parameters."""
    for name in required:
        if name not in body:
            raise RedfishError("ActionParameterMissing", action, name)
    for name, value in body.items():
        if name not in fields:
            raise RedfishError("ActionParameterUnknown", action, name)
        kind = fields[name]
        if isinstance(kind, Mapping):
            if not isinstance(value, dict):
                raise RedfishError("ActionParameterValueTypeError", value, name)
        elif fault := _fault(value, kind):
            key = "ActionParameterValue" + fault
            raise (
                RedfishError("ActionParameterValueError", name, action)
                if fault == "OutOfRange"
                else RedfishError(key, value, name)
            )


def _fault(value: object, kind: Kind) -> str:
    """The name of what is wrong with `value`, or ""."""
    if isinstance(kind, OneOf):
        if not isinstance(value, str):
            return "TypeError"
        return "" if value in kind.values else "NotInList"
    if isinstance(kind, Range):
        if type(value) is not int:
            return "TypeError"
        return "" if kind.low <= value <= kind.high else "OutOfRange"
    if isinstance(kind, ListOf):
        good = isinstance(value, list) and all(type(item) is kind.kind for item in value)
        return "" if good else "TypeError"
    if isinstance(kind, Anything):
        return "" if isinstance(value, dict) else "TypeError"
    return "" if type(value) is kind else "TypeError"
