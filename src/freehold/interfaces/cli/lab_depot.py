"""The firmware ceremony of a lab: its vendor's package, checked, carried in, signed by two of its three operators."""

from collections.abc import Mapping
from pathlib import Path

from freehold.evidence import Ed25519Signer
from freehold.root_of_trust import pki
from freehold.root_of_trust.depot import Depot, Description, Kind, Target, VendorSignature, vendor
from freehold.root_of_trust.depot.metadata import Days
from freehold.root_of_trust.depot.staging import sign_staged
from freehold.root_of_trust.keys import make_depot_key
from freehold.root_of_trust.operators import THRESHOLD
from freehold.root_of_trust.vault import Vault

COMPONENT = "bios"


def carry_in(
    directory: Path, vault: Vault, people: Mapping[str, Ed25519Signer], package: Path, maker: str, model: str
) -> Target:
    """Found a depot in `directory` and bring the package of `freehold lab up` into it, as people would with
    `freehold depot init`, `import`, `sign` (twice) and `publish`. The version stands in the package's name."""
    depot, online, now = Depot(directory), make_depot_key(vault), pki.utc_now()
    depot.found({name: signer.public_key for name, signer in people.items()}, online.public_key, Days(), now)
    looked_at_by, *_ = signing = sorted(people)[:THRESHOLD]
    version = package.stem.rpartition("-")[2]
    signature = package.with_name(package.name + ".p7s").read_bytes()
    trust = package.with_name("vendor.pem").read_bytes()
    with package.open("rb", buffering=0) as source, depot.receiving(source) as received:
        seen = vendor.verify(received.file, received.sha256, package.name, signature, trust)
        about = Description(
            kind=Kind.FIRMWARE,
            vendor=maker,
            component=COMPONENT,
            version=version,
            models=(model,),
            vendor_signature=VendorSignature(
                scheme=seen.scheme, fingerprint=seen.fingerprint, verified_by=looked_at_by, at=now.isoformat()
            ),
        )
        target = depot.add(received, package.name, about, now)
    for name in signing:
        sign_staged(depot.staging, depot.staged(), people[name])
    depot.publish([online], now)
    return target
