"""OS images and the agent out of the depot: what two operators signed, and nothing else, is assigned and booted.

The depot is a TUF repository, the image a disk with a signed UKI on the real stub, the agent's side the agent's code.
"""

import asyncio
import dataclasses
import sys
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from site_support import SERVER, Place, documents

from freehold.agent.orders import Context, execute
from freehold.evidence import Predicate
from freehold.model.errors import FreeholdError
from freehold.model.findings import Severity
from freehold.model.resources import AssignmentSpec, DepotImage, ImageSpec, Resource, SiteSpec
from freehold.model.status import ImageFact, ServerState, Tenancy
from freehold.orchestration.controller import depot_seen, recorder
from freehold.orchestration.controller import serve as run_site
from freehold.orchestration.measurements import BootedImage
from freehold.orchestration.opening import open_log
from freehold.orchestration.os_images import kept_images, look_at_images, require_agent
from freehold.orchestration.step import StepResult
from freehold.provisioning.boot_server import create_boot_app
from freehold.provisioning.images import disk, uki
from freehold.root_of_trust.depot import (
    BelowSecurityFloor,
    DepotClient,
    Kind,
    MetadataExpired,
    PackageForAnotherSite,
    Target,
    TargetChanged,
    TargetNotFound,
    TrustedStateLost,
)
from freehold.root_of_trust.keys import make_depot_key
from freehold.root_of_trust.secure_boot_signing import Signer, sign_image

sys.path.append(str(Path(__file__).parents[1] / "root_of_trust"))
import attest_support as recorded
from depot_rig import NOW, Rig

pytestmark = pytest.mark.host
UUID = "11111111-2222-5333-8444-555555555555"
DISK = {"name": "nvme0n1", "serial": "N0", "size_bytes": 64 << 20}
GIVEN = Tenancy(name="web-1", revision="a" * 64, spec=AssignmentSpec(server=SERVER, image="web", hostname="web-1"))
OSREL = b"ID=freehold\n"


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    """Of whom does not matter here: what is compared is the certificate that a signature bears."""
    return rsa.generate_private_key(65537, 2048)


def signed(key: rsa.RSAPrivateKey, cmdline: str, certificate: str = "db") -> bytes:
    """A UKI on the real stub, as the site whose db the recorded machine carries signs it."""
    unsigned = uki.assemble(uki.read_stub(), cmdline, OSREL)
    return sign_image(unsigned, [Signer(x509.load_der_x509_certificate(recorded.certificate(certificate)), key)])


def raw_image(folder: Path, loader: bytes) -> Path:
    root, out = folder / "root", folder / f"os-{hash(loader)}.raw"
    root.write_bytes(bytes(1 << 20) + b"the root file system" * 60000)
    disk.assemble(out, root, UUID, UUID, {disk.LOADER_PATH: loader})
    return out


@pytest.fixture(scope="module")
def os_raw(key: rsa.RSAPrivateKey, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return raw_image(tmp_path_factory.mktemp("image"), signed(key, "root=PARTUUID=x")).read_bytes()


def depot_of(owned: Place, tmp_path: Path) -> Rig:
    """The depot that this site keeps itself."""
    rig = Rig(tmp_path / "depots")
    rig.depot, rig.online = owned.site.depot, make_depot_key(owned.site.vault)
    rig.found()
    return rig


@pytest.fixture
def rig(place: Place, tmp_path: Path) -> Rig:
    return depot_of(place, tmp_path)


def release(rig: Rig, data: bytes, version: str = "12.8", **more: Any) -> Target:
    """Two operators sign an image and what it measures, as `freehold depot import` finds it out."""
    fields: dict[str, Any] = {"kind": Kind.OS_IMAGE, "component": "debian", "models": (), "site": "lab"}
    fields |= {"name": f"debian-{version}.raw", "data": data} | more
    loader = data if fields["kind"] is Kind.AGENT else disk.loader_of(BytesIO(data))
    predicted = {index: (value,) for index, value in BootedImage.of("x", loader).predicted.items()}
    return rig.release(version, **({"measurements": predicted} | fields))


async def wants(place: Place, version: str = "12.8", images: str = "depot") -> None:
    """server-1 was given the image `web`, which is one of the depot."""
    spec = ImageSpec(version=version, depot=DepotImage(vendor="ACME", component="debian"))
    await place.store.apply([*documents(), Resource(kind="Image", name="web", spec=spec)])
    place.site.spec = msgspec.structs.replace(place.site.spec, images=images)
    await place.establish(inband_inventory={"disks": [DISK]}, tenancy=GIVEN)


@pytest.fixture
def machine(place: Place, tmp_path: Path) -> Path:
    """The root of the ramdisk, with a disk full of old data, and the site's image key."""
    root = tmp_path / "machine"
    for name, text in {
        "sys/block/nvme0n1/device/serial": "N0\n",
        "sys/block/nvme0n1/size": str(DISK["size_bytes"] // 512),
        "proc/self/mounts": "proc /proc proc rw 0 0\n",
        "proc/swaps": "Filename Type Size Used Priority\n",
        "etc/freehold/image.pub": place.site.keys.image.public_key_pem.decode(),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "dev").mkdir()
    (root / "dev/nvme0n1").write_bytes(b"old data" * (DISK["size_bytes"] // 8))
    return root


async def agent_answers(place: Place, root: Path) -> dict[str, Any]:
    """The agent carries out the order that it was given, from the boot server."""
    order = await place.store.agents.next_order(SERVER)
    assert order is not None
    runner = web.AppRunner(create_boot_app(place.site.files))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        here = f"http://127.0.0.1:{runner.addresses[0][1]}"
        args = order.args | {"image_url": order.args["image_url"].replace(place.site.boot_url, here)}
        context = Context(str(root), lambda *_: None)
        answer = await asyncio.to_thread(execute, "write_image", args, context)
    finally:
        await runner.cleanup()
    await place.store.agents.finish(
        SERVER, order.id, ok=answer["ok"], result=answer["result"] or {}, error=answer["error"]
    )
    return answer


@pytest.mark.slow
async def test_what_two_operators_signed_is_written_and_what_it_measures_vouches_for_it(
    place: Place, rig: Rig, machine: Path, os_raw: bytes
) -> None:
    target = release(rig, os_raw)
    await wants(place)
    await look_at_images(place.site, place.store)
    assert [each.kind for each in await place.store.site.findings()] == ["agent-not-in-depot"]
    assert not (await place.step("write_image")).done
    answer = await agent_answers(place, machine)
    assert answer["error"] is None
    assert (machine / "dev/nvme0n1").read_bytes()[: len(os_raw)] == os_raw
    done = await place.step("write_image")
    fact = (await place.view()).facts.image
    assert done.done
    assert fact is not None
    assert (fact.name, fact.version) == ("debian", "12.8")
    ((name, claim),) = done.statements
    assert (name, claim["origin"], claim["target"], claim["sha256"]) == ("image", "depot", target.path, target.sha256)
    assert (claim["read_back"], claim["depot"]["targets"]) == (True, rig.depot.client().seen.targets)
    booted = place.site.os_build(fact.manifest)
    assert booted is not None
    assert {index: (value,) for index, value in booted.predicted.items()} == target.about.measurements
    # after a restart, and withdrawn meanwhile: a server that runs it is still known
    rig.depot.withdraw(target.path, NOW)
    rig.publish()
    assert kept_images(place.site.directory)[fact.manifest] == booted
    (kept,) = (place.site.directory / "images" / "depot").glob("*/os.efi")
    kept.write_bytes(kept.read_bytes() + bytes(8))
    assert kept_images(place.site.directory) == {}


async def write(place: Place) -> StepResult:
    return await place.step("write_image")


def stored(rig: Rig) -> Path:
    (path,) = (rig.depot.repository.directory / "targets" / "os-image").iterdir()
    return path


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("known", [False, True], ids=["before it was looked at", "after it was looked at"])
async def test_one_changed_byte_is_refused_before_an_order_is_given(
    place: Place, rig: Rig, os_raw: bytes, known: bool
) -> None:
    release(rig, os_raw)
    await wants(place)
    if known:
        await look_at_images(place.site, place.store)
    flip(stored(rig), len(os_raw) - (3 << 20))
    with pytest.raises(TargetChanged, match="is not what the operators signed"):
        await write(place)
    assert await place.store.agents.next_order(SERVER) is None
    if not known:
        await look_at_images(place.site, place.store)
        finding, _ = await place.store.site.findings()
        assert (finding.severity, finding.kind) == (Severity.CRITICAL, "image-refused")
        assert finding.subject == "os-image/debian-12.8.raw"


async def test_one_byte_changed_on_its_way_is_refused_by_the_agent_and_the_disk_cannot_boot(
    place: Place, rig: Rig, machine: Path, os_raw: bytes
) -> None:
    release(rig, os_raw)
    await wants(place)
    assert not (await write(place)).done
    flip(stored(rig), 41 << 20)
    answer = await agent_answers(place, machine)
    assert "chunk 41 at byte" in answer["error"]["what"]
    assert (machine / "dev/nvme0n1").read_bytes()[: 1 << 20] == bytes(1 << 20)
    with pytest.raises(FreeholdError, match="the agent's write_image failed"):
        await write(place)


async def test_what_was_withdrawn_is_not_given_out_nor_believed_when_it_was_written_meanwhile(
    place: Place, rig: Rig, machine: Path, os_raw: bytes
) -> None:
    target = release(rig, os_raw)
    await wants(place)
    assert not (await write(place)).done
    assert (await agent_answers(place, machine))["ok"]
    rig.depot.withdraw(target.path, NOW)
    rig.publish()
    with pytest.raises(TargetNotFound, match=r"the depot has no os-image ACME debian 12\.8"):
        await write(place)
    assert not (await place.view()).facts.image_written


async def test_what_is_below_the_floor_is_not_given_out_any_more(place: Place, rig: Rig, os_raw: bytes) -> None:
    release(rig, os_raw)
    newer = release(rig, os_raw[:-512] + bytes([1] * 512), "12.9", security_floor="12.9")
    await wants(place)
    with pytest.raises(BelowSecurityFloor, match=r"debian 12\.8 is below the security floor 12\.9") as refused:
        await write(place)
    assert "downgrade" not in (refused.value.remedy or "")
    await wants(place, newer.about.version)
    assert not (await write(place)).done


async def test_the_image_of_another_site_is_refused_by_name_and_by_key(
    place: Place, rig: Rig, os_raw: bytes, key: rsa.RSAPrivateKey, tmp_path: Path
) -> None:
    release(rig, os_raw, site="elsewhere")
    await wants(place)
    with pytest.raises(PackageForAnotherSite, match="was made for another site than lab"):
        await write(place)
    foreign = raw_image(tmp_path, signed(key, "root=PARTUUID=y", certificate="KEK")).read_bytes()
    release(rig, foreign, name="foreign.raw")
    with pytest.raises(PackageForAnotherSite, match="no key in db of generation 1 has signed it"):
        await write(place)
    assert await place.store.agents.next_order(SERVER) is None


async def test_an_image_that_the_depot_never_had_is_refused(place: Place, rig: Rig, os_raw: bytes) -> None:
    release(rig, os_raw)
    await wants(place, "13.0")
    with pytest.raises(TargetNotFound, match=r"the depot has no os-image ACME debian 13\.0"):
        await write(place)


@pytest.mark.parametrize("measurements", [{}, {4: ("ab" * 32,)}, {4: (), 11: ("cd" * 32,)}])
@pytest.mark.slow
async def test_an_image_that_does_not_measure_what_was_signed_is_refused(
    place: Place, rig: Rig, os_raw: bytes, measurements: dict[int, tuple[str, ...]]
) -> None:
    release(rig, os_raw, measurements=measurements)
    await wants(place)
    with pytest.raises(FreeholdError, match=r"makes PCR 4 .*, and the operators signed"):
        await write(place)


async def test_a_refused_image_is_not_read_again_before_its_file_changes(
    place: Place, rig: Rig, os_raw: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings: list[Target] = []
    read = DepotClient.open_verified

    def counted(client: DepotClient, target: Target) -> BinaryIO:
        readings.append(target)
        return read(client, target)

    async def refused() -> tuple[int, bool]:
        await look_at_images(place.site, place.store)
        return len(readings), any(each.kind == "image-refused" for each in await place.store.site.findings())

    monkeypatch.setattr(DepotClient, "open_verified", counted)
    release(rig, os_raw)
    flip(stored(rig), 5 << 20)
    assert [await refused(), await refused(), await refused()] == [(1, True)] * 3
    flip(stored(rig), 6 << 20)
    assert [await refused(), await refused()] == [(2, True)] * 2
    flip(stored(rig), 5 << 20)
    flip(stored(rig), 6 << 20)
    assert [await refused(), await refused()] == [(3, False)] * 2


async def test_a_disk_without_a_file_to_start_cannot_be_attested(place: Place, rig: Rig, os_raw: bytes) -> None:
    blank = {"name": "blank.raw", "data": bytes(48 << 20)}
    rig.release("12.8", kind=Kind.OS_IMAGE, component="debian", models=(), site="lab", **blank)
    await wants(place)
    with pytest.raises(FreeholdError, match=r"has no EFI/BOOT/BOOTX64\.EFI in an ESP"):
        await write(place)


async def test_a_site_of_the_depot_gives_out_nothing_that_it_built_itself(place: Place, rig: Rig) -> None:
    await wants(place)
    await place.establish(tenancy=msgspec.structs.replace(GIVEN, spec=AssignmentSpec(
        server=SERVER, image="debian", hostname="web-1")))  # fmt: skip
    with pytest.raises(FreeholdError, match="image debian is none of the depot, and this site takes nothing else"):
        await write(place)


async def test_a_site_that_gives_out_what_it_built_says_so(place: Place, rig: Rig, os_raw: bytes) -> None:
    await look_at_images(place.site, place.store)
    (finding,) = await place.store.site.findings()
    assert (finding.severity, finding.kind) == (Severity.INFO, "images-built")
    assert finding.evidence == "spec.images of the Site is built; the depot lists none for this site"
    release(rig, os_raw)  # whoever signs for images means them to be taken
    await look_at_images(place.site, place.store)
    (finding,) = await place.store.site.findings()
    assert (finding.severity, finding.kind) == (Severity.WARNING, "images-built")
    assert "declare spec.images: depot" in finding.remedy
    await place.establish(inband_inventory={"disks": [DISK | {"size_bytes": 2 << 30}]}, tenancy=msgspec.structs.replace(
        GIVEN, spec=AssignmentSpec(server=SERVER, image="debian", hostname="web-1")))  # fmt: skip
    await place.answer("write_image", {"manifest_sha256": "ab" * 32})
    assert (await write(place)).statements[0][1]["origin"] == "built"


async def test_the_log_remembers_the_depot_that_an_image_came_from(
    place: Place, rig: Rig, machine: Path, os_raw: bytes, tmp_path: Path
) -> None:
    release(rig, os_raw)
    await wants(place)
    await write(place)
    await agent_answers(place, machine)
    ((name, claim),) = (await write(place)).statements
    with open_log(tmp_path / "log", "lab", place.site.keys) as log:
        await recorder(log)(name, SERVER, claim)
        assert name == Predicate.IMAGE
        place.site.depot_seen = depot_seen(log)
    (rig.depot.directory / "trusted").rename(tmp_path / "lost")
    with pytest.raises(TrustedStateLost):
        await place.step("write_image")


# ---- the agent


@pytest.fixture
def agent(place: Place, key: rsa.RSAPrivateKey) -> bytes:
    """The UKI that the controller built; it boots it."""
    built = signed(key, "quiet")
    place.site.agent_image = BootedImage.of("agent", built)
    return built


def as_agent(rig: Rig, data: bytes, version: str = "1.0", **more: Any) -> Target:
    return release(rig, data, version, **({"kind": Kind.AGENT, "component": "agent", "name": f"a{version}.efi"} | more))


def only_the_depot(place: Place) -> None:
    place.site.spec = msgspec.structs.replace(place.site.spec, images="depot")


@pytest.mark.parametrize("by", ["db", "KEK", None], ids=["signed alike", "signed by another key", "unsigned"])
async def test_the_agent_that_two_operators_signed_starts_whoever_signed_it_for_the_firmware(
    place: Place, rig: Rig, agent: bytes, key: rsa.RSAPrivateKey, by: str | None
) -> None:
    unsigned = uki.assemble(uki.read_stub(), "quiet", OSREL)
    as_agent(rig, signed(key, "quiet", by) if by else unsigned + bytes(-len(unsigned) % 8))
    only_the_depot(place)
    await require_agent(place.site, read=True)


@pytest.mark.parametrize("images", ["built", "depot"])
async def test_a_controller_with_another_agent_than_the_depot_lists_does_not_start(
    place: Place, rig: Rig, agent: bytes, key: rsa.RSAPrivateKey, images: str, tmp_path: Path
) -> None:
    as_agent(rig, signed(key, "quiet init=/bin/sh"))
    place.site.spec = msgspec.structs.replace(place.site.spec, images=images)
    with open_log(tmp_path / "log", "lab", place.site.keys) as log:
        with pytest.raises(FreeholdError, match=r"the depot lists another agent .*: version 1\.0") as refused:
            await run_site(place.site, place.store, log)
    assert f"PCR 11 {place.site.agent_image.pcr11.hex()}" in str(refused.value)
    assert "agent.efi --kind agent" in str(refused.value)


async def test_only_a_site_that_takes_nothing_else_needs_an_agent_in_the_depot(
    place: Place, agent: bytes, tmp_path: Path
) -> None:
    await require_agent(place.site, read=True)
    only_the_depot(place)
    with pytest.raises(FreeholdError, match="the depot lists no agent for this site"):
        await require_agent(place.site, read=True)


async def test_the_agent_of_another_site_says_nothing_about_ours(place: Place, rig: Rig, agent: bytes) -> None:
    as_agent(rig, agent, site="elsewhere")
    await require_agent(place.site)
    only_the_depot(place)
    with pytest.raises(FreeholdError, match="the depot lists no agent for this site"):
        await require_agent(place.site)


async def test_an_agent_that_is_withdrawn_while_the_controller_runs_boots_nowhere(
    owned: Place, tmp_path: Path, key: rsa.RSAPrivateKey
) -> None:
    rig = depot_of(owned, tmp_path)
    built = signed(key, "quiet")
    owned.site.agent_image = BootedImage.of("agent", built)
    target = as_agent(rig, built)
    only_the_depot(owned)
    assert (await owned.step("boot_agent")).done
    rig.depot.withdraw(target.path, NOW)
    rig.publish()
    with pytest.raises(FreeholdError, match="the depot lists no agent for this site"):
        await owned.step("boot_agent")
    await look_at_images(owned.site, owned.store)
    (finding,) = await owned.store.site.findings()
    assert (finding.severity, finding.kind) == (Severity.CRITICAL, "agent-not-in-depot")


async def test_an_agent_below_the_floor_or_with_changed_bytes_does_not_start(
    place: Place, rig: Rig, agent: bytes, key: rsa.RSAPrivateKey
) -> None:
    as_agent(rig, agent)
    (path,) = (rig.depot.repository.directory / "targets" / "agent").iterdir()
    flip(path, 4096)
    with pytest.raises(TargetChanged):
        await require_agent(place.site, read=True)
    flip(path, 4096)
    await require_agent(place.site, read=True)
    as_agent(rig, signed(key, "quiet newer"), "2.0", security_floor="2.0")
    with pytest.raises(BelowSecurityFloor):
        await require_agent(place.site)


async def test_a_depot_that_cannot_be_read_stops_only_a_site_that_takes_nothing_else(
    place: Place, rig: Rig, agent: bytes
) -> None:
    as_agent(rig, agent)
    (rig.depot.repository.directory / "metadata/timestamp.json").write_text("{}")
    await require_agent(place.site)
    only_the_depot(place)
    with pytest.raises(FreeholdError):
        await require_agent(place.site)


async def test_the_os_that_is_booted_is_the_one_that_was_written(owned: Place) -> None:
    await owned.establish(image=ImageFact(name="debian", version="12", manifest="cd" * 32))
    session = await owned.speak("os")
    with pytest.raises(FreeholdError, match="does not keep the build of debian"):
        await owned.step("boot_os", agent=session)
    other = dataclasses.replace(owned.site.images["debian"].booted, sha256="ef" * 32)
    owned.site.os_builds["cd" * 32] = other
    ((_, claim),) = (await owned.step("boot_os", agent=session)).statements
    assert claim["uki_sha256"] == "ef" * 32


def test_a_site_takes_what_it_builds_unless_it_says_otherwise() -> None:
    (spec,) = [each.spec for each in documents() if each.kind == "Site"]
    assert isinstance(spec, SiteSpec)
    assert spec.images == "built"


async def test_an_expired_list_boots_nobody_but_who_is_to_be_erased(
    owned: Place, tmp_path: Path, key: rsa.RSAPrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = depot_of(owned, tmp_path)
    built = signed(key, "quiet")
    owned.site.agent_image = BootedImage.of("agent", built)
    as_agent(rig, built)
    only_the_depot(owned)

    def expired(*_: object, **__: object) -> None:
        raise MetadataExpired("timestamp is expired")

    with monkeypatch.context() as patch:
        patch.setattr(type(owned.site.depot), "client", expired)
        await owned.establish(ServerState.DECOMMISSIONING)
        with pytest.raises(MetadataExpired):  # nobody has seen it listed
            await owned.step("boot_agent")
    await require_agent(owned.site)
    monkeypatch.setattr(type(owned.site.depot), "client", expired)
    assert (await owned.step("boot_agent")).done
    await owned.establish(ServerState.PROVISIONING)
    with pytest.raises(MetadataExpired):
        await owned.step("boot_agent")
