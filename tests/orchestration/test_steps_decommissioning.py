"""Decommissioning: every medium that was ever in the server is accounted for, or two people signed that it is not."""

import msgspec
import pytest
from site_support import SERVER, Place

from freehold.evidence import Ed25519Signer
from freehold.model.documents import load_documents
from freehold.model.errors import FreeholdError
from freehold.root_of_trust.operators import approve

HERE, GONE = ({"name": f"nvme{n}n1", "serial": f"N{n}", "size_bytes": 1 << 30} for n in (0, 1))
WAIVER = """
apiVersion: freehold/v1
kind: Waiver
metadata: {name: burnt-disk}
spec: {server: server-1, finding: missing-medium, expires: "2099-01-01", reason: burnt and shredded}
"""


async def listed(place: Place, *disks: dict[str, object]) -> None:
    await place.establish(inband_inventory={"disks": [HERE, GONE]})
    await place.answer("list_media", {"disks": list(disks)})


async def test_a_disk_that_has_left_stops_the_decommissioning(place: Place) -> None:
    await listed(place, HERE)
    with pytest.raises(FreeholdError, match="disks N1 were in this server and are not there now") as stopped:
        await place.step("list_media")
    assert "put them back, or declare a Waiver of missing-medium for server-1" in str(stopped.value)


async def test_a_signed_waiver_lets_it_go_and_the_certificate_will_say_so(place: Place) -> None:
    people = {name: Ed25519Signer.generate() for name in ("ann", "bob")}
    await place.store.approvals.found({name: key.public_key for name, key in people.items()}, 1.0)
    await place.store.apply(load_documents(WAIVER, "waiver.yaml"))
    await listed(place, HERE)
    with pytest.raises(FreeholdError, match="are not there now"):  # declared is not signed
        await place.step("list_media")
    (asked,) = await place.store.approvals.list()
    assert (asked.request.subject, asked.request.details["reason"]) == (f"server/{SERVER}", "burnt and shredded")
    for key in people.values():
        await place.store.approvals.sign(asked.request.id, approve(asked.request, key).to_bytes())
    result = await place.step("list_media")
    assert result.facts["missing_media"] == ("N1",)
    assert [medium.serial for medium in result.facts["media"]] == ["N0"]
    ((name, claim),) = result.statements
    assert (name, claim["approved_by"], claim["media"]) == ("waiver", ("ann", "bob"), ["N1"])


async def test_a_waiver_that_is_declared_anew_with_other_words_must_be_signed_anew(place: Place) -> None:
    people = {name: Ed25519Signer.generate() for name in ("ann", "bob")}
    await place.store.approvals.found({name: key.public_key for name, key in people.items()}, 1.0)
    await place.store.apply(load_documents(WAIVER, "waiver.yaml"))
    (asked,) = await place.store.approvals.list()
    for key in people.values():
        await place.store.approvals.sign(asked.request.id, approve(asked.request, key).to_bytes())
    assert len((await place.view()).waivers) == 1
    await place.store.apply(load_documents(WAIVER.replace("burnt and shredded", "lost"), "waiver.yaml"))
    assert (await place.view()).waivers == ()


async def test_a_disk_without_a_serial_number_cannot_be_certified(place: Place) -> None:
    await listed(place, HERE, GONE, msgspec.convert(HERE | {"serial": "", "name": "sdz"}, dict))
    with pytest.raises(FreeholdError, match="disks sdz have no serial number"):
        await place.step("list_media")
