"""EventService: subscriptions that get events by POST, and a server-sent event stream."""

import asyncio
import json
import ssl
from collections.abc import Iterable
from pathlib import Path

import aiohttp
from aiohttp import web

from freehold_lab.bmc.core import OK, ROOT, Action, Call, JsonObject, Reply, Resource, collection, created, link
from freehold_lab.bmc.fields import ListOf, OneOf
from freehold_lab.bmc.messages import RedfishError
from freehold_lab.bmc.state import LogRecord, Subscription

SERVICE = f"{ROOT}/EventService"
SSE_PATH = f"{SERVICE}/SSE"
RETRIES = 3
RETRY_SECONDS = 1.0
SUBSCRIPTION_LIMIT = 8


class EventHub:
    """Sends events. Deliveries run in the background and give up after `RETRIES` tries, as real BMCs do."""

    def __init__(self, trusted_ca: Path | None) -> None:
        self._trusted_ca = trusted_ca
        self._streams: set[asyncio.Queue[JsonObject]] = set()
        self._deliveries: set[asyncio.Task[None]] = set()

    def publish(self, entry: LogRecord, subscriptions: list[Subscription]) -> None:
        for queue in self._streams:
            queue.put_nowait(event_body(entry, ""))
        for subscription in subscriptions:
            if _wants(subscription, entry):
                work = asyncio.get_running_loop().create_task(self._deliver(subscription, entry))
                self._deliveries.add(work)
                work.add_done_callback(self._deliveries.discard)

    async def _deliver(self, subscription: Subscription, entry: LogRecord) -> None:
        body = event_body(entry, subscription.context)
        timeout = aiohttp.ClientTimeout(total=10)
        async with aiohttp.ClientSession(timeout=timeout, headers=subscription.headers) as session:
            for _ in range(RETRIES):
                try:
                    async with session.post(subscription.destination, json=body, ssl=trust(self._trusted_ca)) as answer:
                        if answer.status < 400:
                            return
                except (aiohttp.ClientError, TimeoutError):
                    pass  # the next try may reach it; an event that cannot be delivered is dropped
                await asyncio.sleep(RETRY_SECONDS)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events (DSP0266, 12.5.3): one Event object each, until the client goes away."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        queue: asyncio.Queue[JsonObject] = asyncio.Queue()
        self._streams.add(queue)
        try:
            await response.write(b": open\n\n")
            while True:
                event = await queue.get()
                await response.write(f"id: {event['Id']}\ndata: {json.dumps(event)}\n\n".encode())
        except ConnectionResetError:
            return response
        finally:
            self._streams.discard(queue)

    async def stop(self) -> None:
        for work in list(self._deliveries):
            work.cancel()
        await asyncio.gather(*self._deliveries, return_exceptions=True)


def trust(trusted_ca: Path | None, *more: str) -> ssl.SSLContext:
    """Verifies servers against `trusted_ca`, or the host's CAs, and the certificates (PEM) that were given besides."""
    context = ssl.create_default_context(cafile=trusted_ca)
    for pem in more:
        context.load_verify_locations(cadata=pem)
    return context


def _wants(subscription: Subscription, entry: LogRecord) -> bool:
    prefixes = subscription.registry_prefixes
    return not prefixes or entry.message_id.split(".")[0] in prefixes


def event_body(entry: LogRecord, context: str) -> JsonObject:
    record: JsonObject = {
        "MemberId": "0",
        "EventId": str(entry.id),
        "EventType": "Alert",
        "EventTimestamp": entry.created,
        "MessageSeverity": entry.severity,
        "MessageId": entry.message_id,
        "Message": entry.message,
        "MessageArgs": entry.arguments,
    }
    if entry.origin:
        record["OriginOfCondition"] = link(entry.origin)
    body: JsonObject = {"@odata.type": "#Event.v1_7_0.Event", "Id": str(entry.id), "Name": "Event", "Events": [record]}
    return body | ({"Context": context} if context else {})


async def _service(_: Call) -> JsonObject:
    return {
        "Name": "Event Service",
        "Status": OK,
        "ServiceEnabled": True,
        "DeliveryRetryAttempts": RETRIES,
        "DeliveryRetryIntervalSeconds": int(RETRY_SECONDS),
        "EventFormatTypes": ["Event"],
        "RegistryPrefixes": ["HaldenEvent"],
        "ServerSentEventUri": SSE_PATH,
        "Subscriptions": link(f"{SERVICE}/Subscriptions"),
    }


def _find(call: Call) -> Subscription:
    subscription = call.bmc.store.data.subscriptions.get(call["subscription"])
    if subscription is None:
        raise call.missing()
    return subscription


async def _members(call: Call) -> Iterable[str]:
    return list(call.bmc.store.data.subscriptions)


async def _subscription(call: Call) -> JsonObject:
    subscription = _find(call)
    return {
        "Name": "Event Subscription",
        "Status": OK,
        "Destination": subscription.destination,
        "Context": subscription.context,
        "Protocol": "Redfish",
        "SubscriptionType": "RedfishEvent",
        "EventFormatType": "Event",
        "DeliveryRetryPolicy": "TerminateAfterRetries",
        "RegistryPrefixes": subscription.registry_prefixes,
        "HttpHeaders": [],
        "VerifyCertificate": True,
    }


async def _create(call: Call) -> Reply:
    store, body = call.bmc.store, call.body
    if not body["Destination"].startswith(("http://", "https://")):
        raise RedfishError("PropertyValueFormatError", body["Destination"], "Destination", pointer="Destination")
    if len(store.data.subscriptions) >= SUBSCRIPTION_LIMIT:
        raise RedfishError("CreateLimitReachedForResource")
    headers = {name: str(value) for item in body.get("HttpHeaders", []) for name, value in item.items()}
    subscription = Subscription(
        str(store.new_id()), body["Destination"], body.get("Context", ""), body.get("RegistryPrefixes", []), [], headers
    )
    store.data.subscriptions[subscription.id] = subscription
    store.save()
    return created(f"{SERVICE}/Subscriptions/{subscription.id}")


async def _patch(call: Call) -> None:
    _find(call).context = call.body["Context"]
    call.bmc.store.save()


async def _delete(call: Call) -> None:
    del call.bmc.store.data.subscriptions[_find(call).id]
    call.bmc.store.save()


async def _test(call: Call) -> None:
    call.bmc.record("TestEvent", origin=SERVICE)


RESOURCES = (
    Resource(
        SERVICE,
        "EventService.v1_12_0.EventService",
        _service,
        actions=(Action("EventService.SubmitTestEvent", _test, {"MessageId": str, "MessageArgs": ListOf(str)}),),
        privilege="ConfigureManager",
    ),
    collection(
        f"{SERVICE}/Subscriptions",
        "EventDestination",
        "Event Subscriptions",
        _members,
        create=_create,
        create_fields={
            "Destination": str,
            "Context": str,
            "Protocol": OneOf(("Redfish",)),
            "EventFormatType": OneOf(("Event",)),
            "RegistryPrefixes": ListOf(str),
            "HttpHeaders": ListOf(dict),
        },
        create_required=("Destination", "Protocol"),
        privilege="ConfigureManager",
    ),
    Resource(
        f"{SERVICE}/Subscriptions/{{subscription}}",
        "EventDestination.v1_16_0.EventDestination",
        _subscription,
        fields={"Context": str},
        patch=_patch,
        delete=_delete,
        privilege="ConfigureManager",
    ),
)
