"""How a BMC's SNMP agent stands. Communities are passwords: only those that everybody knows are kept."""

import msgspec

from freehold.out_of_band.connectors import at
from freehold.out_of_band.redfish import Json

DEFAULT_COMMUNITIES = ("public", "private")


class Snmp(msgspec.Struct, frozen=True, kw_only=True):
    """`v1`, `v2c`: None where the BMC does not say. `defaults`: factory communities that are set. `hidden`: communities
    are set that the BMC does not show."""

    enabled: bool
    v1: bool | None = None
    v2c: bool | None = None
    defaults: tuple[str, ...] = ()
    hidden: bool = False

    @property
    def by_community(self) -> bool:
        """Speaks v1 or v2c, as far as we know."""
        return self.enabled and not (self.v1 is False and self.v2c is False)


def snmp_in(network: Json, *, hpe_snmp: Json, dell_attributes: Json) -> Snmp | None:
    """From `ManagerNetworkProtocol.SNMP`, HPE's SnmpService and Dell's attributes (empty on other BMCs). Pure.

    None if the BMC shows no SNMP."""
    protocol = network.get("SNMP")
    if not isinstance(protocol, dict):
        return None
    v1, v2c = _flag(protocol.get("EnableSNMPv1")), _flag(protocol.get("EnableSNMPv2c"))
    listed = protocol.get("CommunityStrings")
    rows = [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []
    communities = [row.get("CommunityString") for row in rows]
    if hpe_snmp:  # iLO has v1 and v3, no v2c
        v1 = _flag(hpe_snmp.get("SNMPv1RequestsEnabled", hpe_snmp.get("SNMPv1Enabled")))
        v2c = False if v1 is False else v2c
        read = hpe_snmp.get("ReadCommunities")
        communities += [each for each in read if each] if isinstance(read, list) else []
    attributes = at(dell_attributes, "Attributes")
    if isinstance(attributes, dict) and "SNMP.1.SNMPProtocol" in attributes:
        v1 = v2c = attributes["SNMP.1.SNMPProtocol"] != "SNMPv3"  # "All" or "SNMPv3"
        communities += [attributes[name] for name in ("SNMP.1.AgentCommunity",) if name in attributes]
    return Snmp(
        enabled=protocol.get("ProtocolEnabled") is True,
        v1=v1,
        v2c=v2c,
        defaults=tuple(name for name in DEFAULT_COMMUNITIES if name in communities),
        hidden=None in communities,
    )


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None
