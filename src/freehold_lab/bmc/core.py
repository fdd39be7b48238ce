"""The tree of resources: declaration, lookup, and what every resource does the same way (DSP0266, clauses 7 and 8)."""

import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

from freehold_lab.bmc.fields import NO_FIELDS, Fields, OneOf, check_parameters, check_properties
from freehold_lab.bmc.messages import RedfishError

if TYPE_CHECKING:
    from freehold_lab.bmc.context import Bmc
    from freehold_lab.bmc.state import Account

JsonObject = dict[str, Any]
ROOT = "/redfish/v1"
VOLATILE = ("DateTime", "@odata.etag")  # not part of an ETag: they change without the resource being changed


@dataclass(frozen=True)
class Call:
    """One request at one resource. `params` are the variable parts of the path; `body` is the decoded JSON object."""

    bmc: "Bmc"
    uri: str
    params: Mapping[str, str]
    account: "Account | None" = None
    body: JsonObject = field(default_factory=dict)
    http: web.Request | None = None

    def __getitem__(self, name: str) -> str:
        return self.params[name]

    @property
    def user(self) -> str:
        return self.account.user_name if self.account else "nobody"

    def missing(self) -> RedfishError:
        return RedfishError("ResourceMissingAtURI", self.uri)


@dataclass(frozen=True)
class Reply:
    """An answer other than the usual one. `show` is a URI whose representation becomes the body."""

    status: int = 204
    body: JsonObject | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    show: str = ""


def created(uri: str, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(201, headers={"Location": uri, **(headers or {})}, show=uri)


Build = Callable[[Call], Awaitable[JsonObject]]
Write = Callable[[Call], Awaitable[Reply | None]]


@dataclass(frozen=True)
class Action:
    """`name` as in the schema: "ComputerSystem.Reset"."""

    name: str
    do: Write
    fields: Fields = field(default_factory=dict)
    required: tuple[str, ...] = ()
    privilege: str = ""


@dataclass(frozen=True)
class Resource:
    """One row of the tree. `type` is a schema type without '#'; `build` returns the representation without
    @odata.id, @odata.type, @odata.etag, Id (unless it is special) and Actions: `Tree.represent` adds them."""

    path: str
    type: str
    build: Build
    fields: Fields = field(default_factory=dict)  # what PATCH accepts
    patch: Write | None = None
    create: Write | None = None  # POST to a collection
    create_fields: Fields = field(default_factory=dict)
    create_required: tuple[str, ...] = ()
    delete: Write | None = None
    actions: tuple[Action, ...] = ()
    privilege: str = "ConfigureComponents"  # for every change (DSP0266, 13.4)
    self_privilege: bool = False  # the handler lets accounts change their own
    public: tuple[str, ...] = ()  # methods that need no authentication

    @property
    def methods(self) -> tuple[str, ...]:
        offered = {"PATCH": self.patch, "POST": self.create, "DELETE": self.delete}
        return ("GET", "HEAD", *(method for method, handler in offered.items() if handler))


def collection(
    path: str, of: str, name: str, members: Callable[[Call], Awaitable[Iterable[str]]], **rest: Any
) -> Resource:
    """A collection of resources of schema `of` ("ManagerAccount"); `members` gives the last segments of their URIs."""

    async def build(call: Call) -> JsonObject:
        links = [{"@odata.id": f"{call.uri}/{member}"} for member in await members(call)]
        return {"Name": name, "Members": links, "Members@odata.count": len(links)}

    return Resource(path, f"{of}Collection.{of}Collection", build, **rest)


def link(uri: str) -> JsonObject:
    return {"@odata.id": uri}


OK: JsonObject = {"State": "Enabled", "Health": "OK"}


@dataclass(frozen=True)
class Found:
    """What a path leads to: a resource, and maybe one of its actions."""

    resource: Resource
    uri: str
    params: Mapping[str, str]
    action: Action | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        return ("POST",) if self.action else self.resource.methods


class Tree:
    """All resources of the service."""

    def __init__(self, resources: Iterable[Resource]) -> None:
        self._rows = [(_pattern(resource.path), resource) for resource in resources]

    def find(self, path: str) -> Found:
        """Raises ResourceMissingAtURI or ActionNotSupported."""
        uri = path.rstrip("/") or "/"
        target, _, action_name = uri.partition("/Actions/")
        for pattern, resource in self._rows:
            if match := pattern.fullmatch(target):
                if not action_name:
                    return Found(resource, uri, match.groupdict())
                for action in resource.actions:
                    if action.name == action_name:
                        return Found(resource, target, match.groupdict(), action)
                raise RedfishError("ActionNotSupported", action_name)
        raise RedfishError("ResourceMissingAtURI", path)

    def types(self) -> set[str]:
        """The schema types in use, as "Namespace.version.Type"."""
        return {resource.type for _, resource in self._rows}

    async def represent(self, found: Found, bmc: "Bmc", account: "Account | None" = None) -> JsonObject:
        """The whole representation of a resource."""
        call = Call(bmc, found.uri, found.params, account)
        resource = found.resource
        shown: JsonObject = {"@odata.id": found.uri, "@odata.type": f"#{resource.type}"}
        if "Collection." not in resource.type:
            shown["Id"] = found.uri.rsplit("/", 1)[-1]
        shown |= await resource.build(call)
        if resource.actions:
            shown["Actions"] = {f"#{action.name}": _offer(found.uri, action) for action in resource.actions}
        return shown | {"@odata.etag": etag(shown)}


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile("".join(f"(?P<{part[1:-1]}>[^/]+)" if part[:1] == "{" else re.escape(part)
                              for part in re.split(r"(\{\w+\})", path)))  # fmt: skip


def _offer(uri: str, action: Action) -> JsonObject:
    allowed = {
        f"{name}@Redfish.AllowableValues": list(kind.values)
        for name, kind in action.fields.items()
        if isinstance(kind, OneOf)
    }
    return {"target": f"{uri}/Actions/{action.name}", **allowed}


def etag(shown: Mapping[str, Any]) -> str:
    """A strong ETag (RFC 9110, 8.8.3): the same for the same representation, over restarts too."""
    stable = {name: value for name, value in shown.items() if name not in VOLATILE}
    return '"' + hashlib.sha256(json.dumps(stable, sort_keys=True).encode()).hexdigest()[:24] + '"'


async def perform(tree: Tree, found: Found, method: str, call: Call, if_match: str) -> Reply:
    """Do what `method` asks of `found`, after the checks that are the same for all resources.

    Raises OperationNotAllowed, PreconditionFailed, or what the body's check and the handler raise.
    """
    resource = found.resource
    if method not in found.methods:
        raise RedfishError("OperationNotAllowed")
    if found.action:
        await resource.build(call)  # raises if there is no such resource
        check_parameters(call.body, found.action.name, found.action.fields, found.action.required)
        return await found.action.do(call) or Reply()
    shown = await tree.represent(found, call.bmc, call.account)
    if method in ("GET", "HEAD"):
        return Reply(200, shown, {"ETag": shown["@odata.etag"]})
    if if_match and if_match != "*" and shown["@odata.etag"] not in [tag.strip() for tag in if_match.split(",")]:
        raise RedfishError("PreconditionFailed")
    if method == "PATCH" and resource.patch:
        if not call.body:
            raise RedfishError("UnrecognizedRequestBody")
        check_properties(call.body, resource.fields, shown=shown)
        return await resource.patch(call) or Reply(200, show=found.uri)
    if method == "POST" and resource.create:
        check_properties(call.body, resource.create_fields, resource.create_required)
        return await resource.create(call) or Reply()
    if method == "DELETE" and resource.delete:
        return await resource.delete(call) or Reply()
    raise RedfishError("OperationNotAllowed")


__all__ = [
    "NO_FIELDS", "OK", "ROOT", "Action", "Call", "Found", "JsonObject", "Reply", "Resource", "Tree",
    "collection", "created", "etag", "link", "perform",
]  # fmt: skip
