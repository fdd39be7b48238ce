"""One way to write a JSON document and a base64 string, so that a changed byte is a changed meaning or an error.

Keys sorted, no white space, UTF-8 unescaped, no NaN: RFC 8785 but for the spelling of exotic floats.
"""

import base64
import binascii
import json
from typing import Any


class NotCanonicalError(ValueError):
    """The bytes decode, if at all, to something that would be written otherwise."""


def dumps(value: Any) -> bytes:
    """`value` (dicts with string keys, lists, scalars) as canonical JSON. Raises ValueError for NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def loads(data: bytes) -> Any:
    """Decodes JSON of any spelling; a key that occurs twice in one object is refused, not overwritten."""
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise NotCanonicalError(f"not JSON: {error}") from error


def loads_strictly(data: bytes) -> Any:
    """Decodes JSON only if `dumps` would write exactly these bytes."""
    value = loads(data)
    try:
        same = dumps(value) == data
    except ValueError as error:  # NaN, or a lone surrogate that UTF-8 cannot hold
        raise NotCanonicalError(f"not canonical JSON: {error}") from error
    if not same:
        raise NotCanonicalError("not canonical JSON: keys unsorted, white space, or another spelling of the same value")
    return value


def b64encode(data: bytes) -> str:
    """Standard base64 with padding (RFC 4648, 4)."""
    return base64.b64encode(data).decode("ascii")


def b64decode(text: str) -> bytes:
    """Decodes standard base64; refuses white space, missing padding and non-zero trailing bits (RFC 4648, 3.5)."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise NotCanonicalError(f"not base64: {error}") from error
    if b64encode(data) != text:
        raise NotCanonicalError("not canonical base64")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise NotCanonicalError("a key occurs twice in one JSON object")
    return found
