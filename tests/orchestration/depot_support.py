"""A depot with firmware in it that two of three operators signed."""

from io import BytesIO

from freehold.evidence import Ed25519Signer
from freehold.orchestration.site import Site
from freehold.root_of_trust.depot import Description, Kind
from freehold.root_of_trust.depot.metadata import Days
from freehold.root_of_trust.depot.staging import sign_staged
from freehold.root_of_trust.keys import make_depot_key
from freehold.root_of_trust.pki import utc_now

PEOPLE = {name: Ed25519Signer.generate() for name in ("alice", "bob", "carol")}


def published(
    site: Site,
    vendor: str,
    data: bytes,
    version: str,
    models: tuple[str, ...],
    floor: str | None = None,
    component: str = "bios",
    measurements: dict[int, tuple[str, ...]] | None = None,
) -> None:
    depot, online, now = site.depot, make_depot_key(site.vault), utc_now()
    if not depot.publishes:
        depot.found({name: key.public_key for name, key in PEOPLE.items()}, online.public_key, Days(), now)
    about = Description(
        kind=Kind.FIRMWARE, vendor=vendor, component=component, version=version, models=models,
        unsigned_because="a test", security_floor=floor, measurements=measurements or {},
    )  # fmt: skip
    with depot.receiving(BytesIO(data)) as received:
        depot.add(received, f"{component}-{version}.bin", about, now)
    for name in ("alice", "carol"):
        sign_staged(depot.staging, depot.staged(), PEOPLE[name])
    depot.publish([online], now)
