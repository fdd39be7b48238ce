"""LogServices of the system and of the manager."""

from collections.abc import Iterable

from freehold_lab.bmc.core import OK, ROOT, Action, Call, JsonObject, Resource, collection, link
from freehold_lab.bmc.state import LogRecord

# LogService URI -> (key of the log in the BMC's state, its title)
LOGS = {
    f"{ROOT}/Systems/1/LogServices/EventLog": ("System", "System Event Log"),
    f"{ROOT}/Managers/1/LogServices/AuditLog": ("Manager", "Manager Audit Log"),
}


def _records(call: Call) -> list[LogRecord]:
    log, _ = LOGS[call.uri.partition("/Entries")[0]]
    return call.bmc.store.data.logs.get(log, [])


async def _service(call: Call) -> JsonObject:
    _, title = LOGS[call.uri]
    return {
        "Name": title,
        "Status": OK,
        "ServiceEnabled": True,
        "MaxNumberOfRecords": 1000,
        "OverWritePolicy": "WrapsWhenFull",
        "LogEntryType": "Event",
        "DateTime": call.bmc.now(),
        "DateTimeLocalOffset": "+00:00",
        "Entries": link(f"{call.uri}/Entries"),
    }


async def _clear(call: Call) -> None:
    log, title = LOGS[call.uri]
    call.bmc.store.data.logs[log] = []
    call.bmc.record("LogCleared", title, call.user, origin=call.uri)


async def _entries(call: Call) -> JsonObject:
    members = [_show(record, f"{call.uri}/{record.id}") for record in _records(call)]
    return {"Name": "Log Entry Collection", "Members": members, "Members@odata.count": len(members)}


async def _entry(call: Call) -> JsonObject:
    for record in _records(call):
        if str(record.id) == call["entry"]:
            return _show(record, call.uri)
    raise call.missing()


def _show(record: LogRecord, uri: str) -> JsonObject:
    return {
        "@odata.id": uri,
        "@odata.type": "#LogEntry.v1_21_0.LogEntry",
        "Id": str(record.id),
        "Name": "Log Entry",
        "EntryType": "Event",
        "Created": record.created,
        "Severity": record.severity,
        "Message": record.message,
        "MessageId": record.message_id,
        "MessageArgs": record.arguments,
        **({"Links": {"OriginOfCondition": link(record.origin)}} if record.origin else {}),
    }


def _log(uri: str) -> tuple[Resource, ...]:
    parent, _, name = uri.rpartition("/")

    async def members(_: Call) -> Iterable[str]:
        return [name]

    return (
        collection(parent, "LogService", "Log Service Collection", members),
        Resource(
            uri,
            "LogService.v1_9_0.LogService",
            _service,
            actions=(Action("LogService.ClearLog", _clear),),
            privilege="ConfigureManager",
        ),
        Resource(f"{uri}/Entries", "LogEntryCollection.LogEntryCollection", _entries),
        Resource(f"{uri}/Entries/{{entry}}", "LogEntry.v1_21_0.LogEntry", _entry),
    )


RESOURCES = tuple(resource for uri in LOGS for resource in _log(uri))
