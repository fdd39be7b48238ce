"""Steps of `provisioning`: the image, its first-boot configuration, its boot entry. Each is an order to the agent."""

import base64
import re
from typing import Any

from freehold.model.errors import FreeholdError
from freehold.model.status import ImageFact, Tenancy
from freehold.orchestration.os_images import assigned
from freehold.orchestration.site import Site
from freehold.orchestration.step import StepContext, StepResult
from freehold.provisioning.first_boot import nocloud
from freehold.provisioning.images.disk import ESP_LABEL, LOADER_PATH, SEED_LABEL, make_seed

BOOT_LABEL = "Freehold OS"


def root_disk(ctx: StepContext) -> dict[str, Any]:
    """The disk that bears the OS: the declared one, else the smallest NVMe namespace. Never guessed beyond that."""
    disks = [disk for disk in (ctx.facts.inband_inventory or {}).get("disks", []) if disk.get("serial")]
    wanted = ctx.server.spec.root_disk.serial
    found = [
        disk for disk in disks if (disk["serial"] == wanted if wanted else str(disk.get("name", "")).startswith("nvme"))
    ]
    if not found:
        have = ", ".join(f"{disk['serial']} ({disk['name']})" for disk in disks) or "none"
        raise FreeholdError(
            f"there is no disk with serial {wanted}" if wanted else "there is no NVMe disk",
            server=ctx.name,
            expected=f"one of: {have}",
            remedy="declare spec.rootDisk.serial",
        )
    return min(found, key=lambda disk: (disk["size_bytes"], disk["serial"]))


def tenancy(ctx: StepContext) -> Tenancy:
    """What the server was given when it left the pool; a change of the Assignment since then does not reach it."""
    if ctx.facts.tenancy is None:
        raise FreeholdError(
            "nothing was assigned to it", server=ctx.name, remedy="decommission it, then assign it anew"
        )
    return ctx.facts.tenancy


async def write_image(site: Site, ctx: StepContext) -> StepResult:
    """Stream the assigned image onto the root disk; the agent verifies every chunk, and reads all of it back. One of
    the depot is verified now, before the order and before its result counts: what was withdrawn meanwhile does not."""
    image, disk = await assigned(site, ctx, tenancy(ctx).spec.image), root_disk(ctx)
    if int(disk["size_bytes"]) < image.size:
        raise FreeholdError(
            f"disk {disk['serial']} has {disk['size_bytes']} bytes, image {image.name} needs {image.size}",
            server=ctx.name,
            remedy="declare a larger disk as spec.rootDisk.serial, or assign a smaller image",
        )
    args = {
        "device_serial": disk["serial"],
        "image_url": f"{site.boot_url}/images/{image.served or image.path.name}",
        "manifest_envelope": image.manifest_envelope,
    }
    order = await site.ordered(ctx, "write_image", args)
    if order is None:
        return StepResult(done=False)
    if order.result.get("manifest_sha256") != image.manifest_sha256:
        raise FreeholdError(
            f"the agent wrote another manifest ({order.result.get('manifest_sha256')})", server=ctx.name
        )
    claim = {**order.result, **image.origin, "read_back": order.result.get("chunks_verified") == image.chunks}
    fact = ImageFact(name=image.name, version=image.version, manifest=image.manifest_sha256, agent_ca=image.agent_ca)
    return StepResult(facts={"image_written": True, "image": fact}, statements=(("image", claim),))


async def write_seed(site: Site, ctx: StepContext) -> StepResult:
    """NoCloud: host name, users, keys, network. No secret of ours is in it. Without a TPM, the agent puts a ticket for
    the OS beside it, which it makes itself and tells nobody but by its SHA-256."""
    given = tenancy(ctx)
    instance = f"{ctx.name}-{given.revision[:12]}"
    documents = nocloud(instance, given.spec.hostname, given.spec.users, ctx.server.spec.nics, site.networks)
    args: dict[str, Any] = {
        "device_serial": root_disk(ctx)["serial"],
        "partition_label": SEED_LABEL,
        "data": base64.b64encode(make_seed(documents)).decode(),
    }
    if ctx.facts.tpm_waived:
        args["ticket"] = True
    done = await site.ordered(ctx, "write_seed", args)
    if done is None:
        return StepResult(done=False)
    ticket = done.result.get("ticket_sha256") if ctx.facts.tpm_waived else None
    if ctx.facts.tpm_waived and not re.fullmatch("[0-9a-f]{64}", str(ticket)):
        raise FreeholdError("the agent made no ticket for the OS", server=ctx.name, remedy="update the agent's image")
    return StepResult(facts={"seed_written": True, "os_ticket": ticket})


async def set_boot_entry(site: Site, ctx: StepContext) -> StepResult:
    args = {
        "device_serial": root_disk(ctx)["serial"],
        "label": BOOT_LABEL,
        "partition_label": ESP_LABEL,
        "loader": LOADER_PATH,
    }
    done = await site.ordered(ctx, "set_boot_entry", args)
    return StepResult(facts={"boot_entry_set": True}) if done else StepResult(done=False)
