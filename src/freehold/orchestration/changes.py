"""What an `apply` changes: two documents compared, field by field, without showing a password. Pure."""

from typing import Any, Literal

import msgspec

from freehold.model.resources import Resource


class FieldChange(msgspec.Struct, frozen=True):
    """One difference: `path` in the document, and the value before and after (None: none). Passwords are masked."""

    path: str
    old: Any
    new: Any


class Change(msgspec.Struct, frozen=True):
    kind: str
    name: str
    action: Literal["created", "updated", "unchanged"]
    fields: tuple[FieldChange, ...] = ()


def change_of(old: Resource | None, new: Resource) -> Change:
    if old is None:
        return Change(new.kind, new.name, "created")
    if old.same_as(new):
        return Change(new.kind, new.name, "unchanged")
    before, after = _flat(old.to_document(reveal=True)), _flat(new.to_document(reveal=True))
    paths = [path for path in {**before, **after} if before.get(path) != after.get(path)]
    shown = [(path, "********" if path.endswith(".password") else None) for path in paths]
    fields = tuple(FieldChange(path, mask or before.get(path), mask or after.get(path)) for path, mask in shown)
    return Change(new.kind, new.name, "updated", fields)


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        parts = [_flat(inner, f"{path}.{name}" if path else name) for name, inner in value.items()]
    elif isinstance(value, list) and value:
        parts = [_flat(inner, f"{path}[{index}]") for index, inner in enumerate(value)]
    else:
        return {path: value}
    return {name: inner for part in parts for name, inner in part.items()}
