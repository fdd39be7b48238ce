"""The directories whose users may log in to a BMC, beside its own accounts (DSP0268, AccountService)."""

import msgspec

from freehold.out_of_band.connectors import note_unread
from freehold.out_of_band.errors import BmcAnswerUnreadable, BmcError, NotSupported
from freehold.out_of_band.redfish import Json, RedfishClient, link

_BUILT_IN = ("ActiveDirectory", "LDAP", "OAuth2", "TACACSplus")


class ExternalProvider(msgspec.Struct, frozen=True):
    """One that is on. `name`: the property, or the URI, that the BMC has it under. PATCH `off` at `uri` ends it."""

    name: str
    uri: str
    addresses: tuple[str, ...] = ()

    @property
    def off(self) -> Json:
        return {"ServiceEnabled": False} if self.name == self.uri else {self.name: {"ServiceEnabled": False}}


async def external_providers(
    client: RedfishClient, service: Json, unread: dict[str, str]
) -> tuple[ExternalProvider, ...]:
    """Those of AccountService itself, and the members of AdditionalExternalAccountProviders. What cannot be read goes
    to `unread`, by URI, with why."""
    found = {name: service.get(name) for name in _BUILT_IN}
    path = link(service, "AdditionalExternalAccountProviders")
    missing: list[str] = []
    try:
        for each in await client.members(path, missing=missing) if path else []:
            found[str(each.get("@odata.id") or each.get("Name"))] = each
    except (NotSupported, BmcError, BmcAnswerUnreadable) as error:
        note_unread(unread, path or "", error)
    unread |= dict.fromkeys(missing, "listed, and not there")
    at = {name: str(service.get("@odata.id")) for name in _BUILT_IN}
    return tuple(
        ExternalProvider(name, at.get(name, name), _addresses(provider.get("ServiceAddresses")))
        for name, provider in found.items()
        if isinstance(provider, dict) and provider.get("ServiceEnabled") is True
    )


def _addresses(listed: object) -> tuple[str, ...]:
    return tuple(map(str, listed)) if isinstance(listed, list) else ()
