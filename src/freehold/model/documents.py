"""YAML documents into typed resources. An error names file, line, path and, for a misspelt field, the closest name.

resources = load_documents(Path("servers.yaml").read_text(), "servers.yaml")
validate_set(resources)
"""

import difflib
import re
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import inspect

from freehold.model.resources import API_VERSION, KINDS, Resource, Source
from freehold.model.validation import validate_set
from freehold.model.yaml_text import Document, DocumentError, read_documents

__all__ = ["DocumentError", "load_documents", "resource_from", "validate_set"]

_TOP = ("apiVersion", "kind", "metadata", "spec")


def load_documents(text: str, filename: str) -> list[Resource]:
    """The resources of a multi-document YAML text, in order. Raises `DocumentError`."""
    return [_resource(document, filename) for document in read_documents(text, filename)]


def resource_from(document: dict[str, Any], *, origin: str) -> Resource:
    """A resource from plain data, as `Resource.to_document(reveal=True)` makes it. Raises `DocumentError`."""
    return _resource(Document(document, 1, {}), origin)


def _resource(document: Document, filename: str) -> Resource:
    source = Source(filename, document.line, document.lines)
    data = document.data

    def refuse(path: str, what: str) -> DocumentError:
        return DocumentError([f"{source.at(path)}: " + (f"{path}: " if path else "") + what])

    if not isinstance(data, dict):
        raise refuse("", "a document must be a mapping with " + ", ".join(_TOP))
    for name in data:
        if name not in _TOP:
            raise refuse(name, f"unknown field{_closest(name, _TOP)}")
    if data.get("apiVersion") != API_VERSION:
        raise refuse("apiVersion", f"must be {API_VERSION}, found {data.get('apiVersion')!r}")
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise refuse("kind", f"unknown kind {kind!r}{_closest(str(kind), KINDS)}")
    metadata = data.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise refuse("metadata", "metadata.name is missing or not text")
    for name in metadata:
        if name not in ("name", "labels"):
            raise refuse(f"metadata.{name}", f"unknown field{_closest(name, ('name', 'labels'))}")
    labels = metadata.get("labels") or {}
    if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
        raise refuse("metadata.labels", "must be a mapping of text to text (write numbers in quotes)")
    if not isinstance(data.get("spec"), dict):
        raise refuse("spec", "is missing or not a mapping")
    try:
        spec = msgspec.convert(data["spec"], KINDS[kind])
    except msgspec.ValidationError as error:
        path, what = _in_words(str(error), KINDS[kind])
        raise refuse(path, what) from error
    return Resource(kind=kind, name=metadata["name"], spec=spec, labels=labels, source=source)


def _in_words(message: str, spec: type) -> tuple[str, str]:
    """(path, sentence) of msgspec's `Object contains unknown field `x` - at `$.nics[0]``."""
    what, _, tail = message.partition(" - at `")
    path = ("spec" + tail.rstrip("`").removeprefix("$")).removesuffix("[...]")
    if match := re.match(r"Object contains unknown field `(.*)`", what):
        return f"{path}.{match[1]}", f"unknown field{_closest(match[1], _fields_at(spec, path))}"
    if match := re.match(r"Object missing required field `(.*)`", what):
        return f"{path}.{match[1]}", "is missing"
    if match := re.match(r"Expected `(.*)`, got `(.*)`", what):
        wanted = " or ".join(_WORDS.get(word, word) for word in match[1].split(" | "))
        hint = "; write it in quotes" if "str" in match[1] and match[2] in ("int", "float", "bool") else ""
        return path, f"must be {wanted}, found {_WORDS.get(match[2], match[2])}{hint}"
    if match := re.match(r"Invalid enum value (.*)", what):
        return path, f"{match[1]} is not allowed here{_one_of(spec, path)}"
    return path, what[:1].lower() + what[1:]


_WORDS = {
    "str": "text", "int": "a whole number", "float": "a number", "bool": "true or false", "null": "nothing",
    "object": "a mapping", "array": "a list",
}  # fmt: skip


def _closest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    folded = {each.lower(): each for each in names}
    found = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.6)
    return f"; did you mean {folded[found[0]]!r}?" if found else f"; known: {', '.join(names)}" if names else ""


def _type_at(spec: type, path: str) -> inspect.Type | None:
    found: inspect.Type | None = inspect.type_info(spec)
    for name in re.findall(r"\.([^.\[]+)|(\[)", path.removeprefix("spec")):
        found = _struct_or_list(found)
        if name[1] and isinstance(found, inspect.VarTupleType):
            found = found.item_type
        elif isinstance(found, inspect.StructType):
            found = next((field.type for field in found.fields if field.encode_name == name[0]), None)
        elif isinstance(found, inspect.DictType):
            found = found.value_type
    return found


def _struct_or_list(found: inspect.Type | None) -> inspect.Type | None:
    if isinstance(found, inspect.UnionType):
        return next((each for each in found.types if not isinstance(each, inspect.NoneType)), None)
    return found


def _fields_at(spec: type, path: str) -> list[str]:
    found = _struct_or_list(_type_at(spec, path))
    return [field.encode_name for field in found.fields] if isinstance(found, inspect.StructType) else []


def _one_of(spec: type, path: str) -> str:
    found = _struct_or_list(_type_at(spec, path))
    if isinstance(found, inspect.DictType):
        found = found.key_type
    if isinstance(found, inspect.LiteralType):
        return f"; one of {', '.join(map(str, found.values))}"
    if isinstance(found, inspect.EnumType):
        return f"; one of {', '.join(str(each.value) for each in found.cls)}"
    return ""
