"""Messages of the service: the part of DMTF's Base registry that it uses, and the vendor's own event registry.

`RedfishError` carries one message to the client (DSP0266, 8.6 "Error responses").
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BASE = "Base.1.21"
EVENT = "HaldenEvent.1.0"


@dataclass(frozen=True)
class Message:
    """`text` has placeholders %1, %2, …; `status` is the HTTP status of an error answer that carries it."""

    text: str
    severity: str = "Critical"
    status: int = 400
    resolution: str = "Correct the request and send it again."


BASE_MESSAGES: Mapping[str, Message] = {
    "Success": Message("The request completed successfully.", "OK", 200, "None."),
    "GeneralError": Message("A general error has occurred: %1", status=500, resolution="See the log of the service."),
    "NoValidSession": Message("There is no valid session established with the service.", status=401),
    "ResourceAtUriUnauthorized": Message("Access to the resource at %1 was refused: %2.", status=401),
    "InsufficientPrivilege": Message("The account has insufficient privileges for this request.", status=403),
    "PasswordChangeRequired": Message(
        "The password of this account must be changed before access is granted: PATCH %1.", status=403
    ),
    "ResourceMissingAtURI": Message("The resource at the URI %1 was not found.", status=404),
    "OperationNotAllowed": Message("The HTTP method is not allowed on this resource.", status=405),
    "ActionNotSupported": Message("The action %1 is not supported by the resource.", status=404),
    "PreconditionFailed": Message(
        "The ETag supplied did not match the current ETag of the resource.",
        status=412,
        resolution="Read the resource again and repeat the change with its ETag.",
    ),
    "MalformedJSON": Message("The request body is malformed JSON."),
    "UnrecognizedRequestBody": Message("The service could not recognise the request body."),
    "QueryNotSupported": Message("Querying is not supported by the service.", status=501),
    "PropertyUnknown": Message("The property %1 is not in the list of valid properties for the resource.", "Warning"),
    "PropertyNotWritable": Message("The property %1 is read-only.", "Warning"),
    "PropertyMissing": Message("The property %1 is required and must be in the request.", "Warning"),
    "PropertyValueTypeError": Message("The value '%1' of the property %2 has a type that it cannot accept.", "Warning"),
    "PropertyValueNotInList": Message("The value '%1' of the property %2 is not an acceptable value.", "Warning"),
    "PropertyValueOutOfRange": Message("The value '%1' of the property %2 is out of range.", "Warning"),
    "PropertyValueFormatError": Message("The value '%1' of the property %2 has a wrong format.", "Warning"),
    "PropertyValueConflict": Message("The property %1 conflicts with the value of %2.", "Warning"),
    "PropertyValueError": Message("The value of the property %1 is not acceptable.", "Warning"),
    "ActionParameterUnknown": Message("The action %1 was submitted with the unknown parameter %2.", "Warning"),
    "ActionParameterMissing": Message("The action %1 requires the parameter %2.", "Warning"),
    "ActionParameterValueTypeError": Message("The value '%1' of the parameter %2 has a wrong type.", "Warning"),
    "ActionParameterValueNotInList": Message("The value '%1' of the parameter %2 is not acceptable.", "Warning"),
    "ActionParameterValueError": Message("The value of the parameter %1 of the action %2 is invalid.", "Warning"),
    "PasswordLength": Message("The password must have between %1 and %2 characters.", "Warning"),
    "ResourceAlreadyExists": Message("A resource of type %1 with %2 '%3' exists already."),
    "CreateLimitReachedForResource": Message("The limit of resources in this collection is reached.", status=409),
    "ResourceCannotBeDeleted": Message("The resource cannot be deleted.", status=403),
    "ResourceInUse": Message("The resource is in use: %1.", "Warning", 409),
    "ResourceInStandby": Message("The request needs the system to be powered on.", status=409),
    "CouldNotEstablishConnection": Message("The service could not get %1: %2", status=400),
    "ServiceTemporarilyUnavailable": Message(
        "The service is temporarily unavailable. Retry in %1 seconds.", status=503, resolution="Wait and retry."
    ),
}

EVENT_MESSAGES: Mapping[str, Message] = {
    "AccountAdded": Message("The account %1 was added with the role %2.", "OK"),
    "AccountChanged": Message("The account %1 was changed.", "OK"),
    "AccountRemoved": Message("The account %1 was removed.", "OK"),
    "AccountLocked": Message("The account %1 is locked out after %2 failed logins.", "Warning"),
    "LoginFailed": Message("Login failed for the user %1.", "Warning"),
    "LoginSucceeded": Message("The user %1 logged in.", "OK"),
    "AccountPolicyChanged": Message("The account policy was changed: %1.", "OK"),
    "PowerRequested": Message("The reset %1 was requested by %2.", "OK"),
    "PowerFailed": Message("The reset %1 failed: %2", "Critical"),
    "BootOverrideChanged": Message("The boot source override was set to %1 (%2).", "OK"),
    "BootOrderChanged": Message("The boot order was set to %1.", "OK"),
    "BiosChanged": Message("BIOS attributes are changed at the next reset: %1.", "OK"),
    "SecureBootChanged": Message("Secure Boot was changed: %1.", "Warning"),
    "MediaInserted": Message("The virtual medium %1 was inserted.", "OK"),
    "MediaEjected": Message("The virtual medium was ejected.", "OK"),
    "DriveErased": Message("The drive %1 reported that its secure erase is complete.", "OK"),
    "FirmwareInstalled": Message("BIOS %1 was installed; it is active after the next reset.", "OK"),
    "TaskFailed": Message("The task %1 failed: %2", "Critical"),
    "NetworkProtocolChanged": Message("Network protocols were changed: %1.", "OK"),
    "CertificateReplaced": Message("The HTTPS certificate was replaced; its SHA-256 is %1.", "OK"),
    "ManagerReset": Message("The manager restarts (%1), asked by %2.", "Warning"),
    "LogCleared": Message("The log %1 was cleared by %2.", "OK"),
    "TestEvent": Message("Test event.", "OK"),
}

REGISTRIES: Mapping[str, Mapping[str, Message]] = {BASE: BASE_MESSAGES, EVENT: EVENT_MESSAGES}


def fill(text: str, arguments: tuple[str, ...]) -> str:
    """`text` with %1, %2, … replaced."""
    for number, argument in enumerate(arguments, start=1):
        text = text.replace(f"%{number}", argument)
    return text


def message_body(registry: str, key: str, arguments: tuple[str, ...]) -> dict[str, Any]:
    """A Message object (Message.v1_2_1) for use in @Message.ExtendedInfo."""
    message = REGISTRIES[registry][key]
    return {
        "@odata.type": "#Message.v1_2_1.Message",
        "MessageId": f"{registry}.{key}",
        "Message": fill(message.text, arguments),
        "MessageArgs": list(arguments),
        "MessageSeverity": message.severity,
        "Resolution": message.resolution,
    }


class RedfishError(Exception):
    """An error answer. `key` is a message of the Base registry; `pointer` the JSON pointer of the property at fault."""

    def __init__(self, key: str, *arguments: object, pointer: str = "", status: int = 0) -> None:
        self.key = key
        self.arguments = tuple(str(argument) for argument in arguments)
        self.pointer = pointer
        self.status = status or BASE_MESSAGES[key].status
        super().__init__(fill(BASE_MESSAGES[key].text, self.arguments))

    def body(self) -> dict[str, Any]:
        """The error answer's body (DSP0266, 8.6.1)."""
        info = message_body(BASE, self.key, self.arguments)
        if self.pointer:
            info["RelatedProperties"] = [f"#/{self.pointer}"]
        return {
            "error": {"code": info["MessageId"], "message": info["Message"], "@Message.ExtendedInfo": [info]},
        }
