"""What servers are given and started into, held against the depot: OS images and the agent that two operators signed.

An image of the depot is verified when the controller starts (or the depot lists it), and again when it is written: the
metadata as of that moment, the bytes on disk, and the bytes that are sent. The last is the agent's part: the manifest
that the site signs was made in one reading of bytes with the signed digest, and the agent writes no chunk that it does
not name. What a boot of it must measure is what the operators signed, and follows from the image itself, too.
"""

import asyncio
import contextlib
import dataclasses
import hashlib
import logging
from pathlib import Path
from typing import Any

import msgspec

from freehold.evidence import dsse, durable
from freehold.model.errors import FreeholdError
from freehold.model.findings import Finding, Severity, refusal_of
from freehold.model.resources import DepotImage, ImageSpec
from freehold.orchestration.depot_watch import renew
from freehold.orchestration.measurements import BootedImage
from freehold.orchestration.opening import boot_values
from freehold.orchestration.site import OsImage, Site
from freehold.orchestration.step import StepContext
from freehold.orchestration.store import NotFoundError, Store
from freehold.provisioning.images import disk, manifest
from freehold.root_of_trust import pki
from freehold.root_of_trust.depot import (
    DepotClient,
    DepotError,
    DepotMissing,
    Kind,
    PackageForAnotherSite,
    Target,
    Wanted,
)
from freehold.root_of_trust.secure_boot_generations import KeySet

logger = logging.getLogger(__name__)

INTERVAL = 60.0
"""Seconds between two looks at what the depot lists."""

SOURCE = "images"
BUILT, REFUSED, AGENT = "images-built", "image-refused", "agent-not-in-depot"


# ---- OS images


async def assigned(site: Site, ctx: StepContext, name: str) -> OsImage:
    """The image that is declared by this name, as it may be written to this server now. Raises what it is refused for:
    not declared, not built, not in the depot (any more), below its floor, changed, another site's, or built where only
    the depot counts."""
    declared = await _declared(site, name)
    if declared is None or declared.depot is None:
        if site.spec.images == "depot":
            raise FreeholdError(
                f"image {name} is none of the depot, and this site takes nothing else (spec.images of the Site)",
                server=ctx.name,
                expected="an Image with spec.depot, which two operators signed",
                remedy="import it with `freehold depot import --kind os-image`, and declare it: docs/carry-in.md",
            )
        return site.image(name)
    keys = await site.keys_of(ctx.facts) if ctx.facts.secure_boot_enrolled else await site.newest_keys()
    wanted = _wanted(declared.depot, declared.version, await site_name(site))
    under_way = ctx.key in ctx.server.orders
    async with site.reading_images:
        return await asyncio.to_thread(_out_of_depot, site, wanted, keys, read=not under_way)


async def site_name(site: Site) -> str:
    """As its document calls it: what targets of the depot are made for."""
    assert site.store is not None
    names = [each.resource.name for each in await site.store.list_resources("Site")]
    if len(names) != 1:
        raise FreeholdError(f"the store holds {len(names)} Sites", remedy="declare exactly one")
    return names[0]


async def _declared(site: Site, name: str) -> ImageSpec | None:
    assert site.store is not None
    try:
        spec = (await site.store.get("Image", name)).resource.spec
    except NotFoundError:
        return None
    return spec if isinstance(spec, ImageSpec) else None


def _wanted(image: DepotImage, version: str, site: str) -> Wanted:
    return Wanted(Kind.OS_IMAGE, image.vendor, image.component, version, site=site)


def _out_of_depot(site: Site, wanted: Wanted, keys: KeySet, *, read: bool) -> OsImage:
    client = site.depot.client(site.depot_seen)
    target = client.find(wanted)
    image = load(site, client, target, read=read)
    if (why := image.booted.refused_by(keys)) is not None:
        raise PackageForAnotherSite(
            f"{target.path} would not start under the server's Secure Boot keys: {why}",
            expected="an image that this site's db key signed",
            remedy="import the one that was made for this site, and with the keys that it has now",
        )
    site.depot_seen = client.seen
    about = target.about
    origin: dict[str, object] = {
        "origin": "depot",
        "target": target.path,
        "sha256": target.sha256,
        "vendor_signature": msgspec.to_builtins(about.vendor_signature),
        "unsigned_because": about.unsigned_because,
        "depot": msgspec.to_builtins(client.seen),
    }
    return dataclasses.replace(image, origin=origin)


def load(site: Site, client: DepotClient, target: Target, *, read: bool = True) -> OsImage:
    """The image of a target that `client` has verified: its bytes have the signed digest (`read`: now again), its
    manifest names each of their chunks, and it measures what the operators signed. Raises `TargetChanged`, and
    `FreeholdError` for what cannot be attested."""
    known = site.depot_images.get(target.sha256)
    if known is not None and not read:
        return known
    with client.open_verified(target) as file:
        site.files.register("images", f"{target.sha256}.raw", client.path_of(target))
        if known is not None:
            return known
        content = manifest.describe_file(file)
        uki = disk.loader_of(file)
    about = target.about
    booted = BootedImage.of(about.component, uki)
    require_predicted(target, booted)
    made = manifest.image_manifest(about.component, about.version, content, boot_values(uki, booted))
    assert (made.sha256, made.size) == (target.sha256, target.length)  # one reading, by the file that checks itself
    payload = made.payload()
    _keep(site.directory, payload, uki)
    image = OsImage(
        name=made.name,
        version=made.version,
        path=client.path_of(target),
        manifest_envelope=dsse.sign(payload, manifest.PAYLOAD_TYPE, site.keys.image).to_dict(),
        manifest_sha256=hashlib.sha256(payload).hexdigest(),
        booted=booted,
        sha256=made.sha256,
        size=made.size,
        chunks=len(made.chunks),
        agent_ca=_agent_ca(site, target.sha256),
        served=f"{target.sha256}.raw",
    )
    site.depot_images[target.sha256] = image
    return image


def _agent_ca(site: Site, sha256: str) -> int:
    """The generation of the agent CA in an image: known if its bytes are those that this controller built just now. Of
    any other the first is assumed: an OS that is told of once too often is redeployed, one too few is left to a thief
    who has the old CA."""
    return next((each.agent_ca for each in site.images.values() if each.sha256 == sha256), 1)


def require_predicted(target: Target, booted: BootedImage) -> None:
    """What will be measured is what the operators signed. Raises if it is not, or if they signed no such values."""
    for index, value in booted.predicted.items():
        signed = target.about.measurements.get(index, ())
        if value not in signed:
            raise FreeholdError(
                f"{target.path} makes PCR {index} {value}, and the operators signed {', '.join(signed) or 'no value'}",
                remedy="import it again: `freehold depot import` finds out what it measures, and two operators sign it",
            )


def _keep(state: Path, payload: bytes, uki: bytes) -> None:
    """What it takes to attest servers that run it, also when the depot lists it no more: see `kept_images`."""
    folder = state / "images" / "depot" / hashlib.sha256(payload).hexdigest()
    durable.make_directory(folder)
    durable.replace(folder / "os.efi", uki)
    durable.replace(folder / "manifest.json", payload)


def kept_images(state: Path) -> dict[str, BootedImage]:
    """By SHA-256 of the manifest, which a server's facts name: all images of the depot that this controller verified
    once. The manifest names the file that firmware starts, so another file beside it vouches for nothing."""
    found: dict[str, BootedImage] = {}
    for path in sorted((state / "images" / "depot").glob("*/manifest.json")):
        try:
            payload, uki = path.read_bytes(), path.with_name("os.efi").read_bytes()
            made = manifest.parse(payload)
            if made.boot.loader_sha256 != hashlib.sha256(uki).hexdigest():
                raise FreeholdError("os.efi is not the file that its manifest names")
            found[hashlib.sha256(payload).hexdigest()] = BootedImage.of(made.name, uki)
        except (OSError, FreeholdError) as error:
            logger.error("image %s cannot be read, so no boot of it will be trusted: %s", path.parent.name, error)
    return found


# ---- the agent


async def require_agent(site: Site, *, read: bool = False) -> None:
    """The agent that this controller boots is one that the depot lists for this site and that is not below its floor;
    where it lists none, only a site that takes nothing else refuses. `read`: its package's bytes are verified too, and
    what the site may renew is renewed before. Raises `FreeholdError`."""
    await asyncio.to_thread(_require_agent, site, await site_name(site), read=read)


def _require_agent(site: Site, name: str, *, read: bool) -> None:
    if read:
        with contextlib.suppress(FreeholdError, OSError):  # what keeps it from being renewed is told by `depot_watch`
            renew(site, pki.utc_now())
    try:
        client = site.depot.client(site.depot_seen)
    except DepotMissing:
        client = None
    except DepotError as error:
        if site.spec.images == "depot":
            raise
        logger.error("the depot cannot be read, so nobody can say which agent it lists: %s", error)
        return
    listed = [] if client is None else [t for t in client.view.packages if _is_agent_of(t, name)]
    if client is None or not listed:
        if site.spec.images == "depot":
            raise _not_listed(site, "the depot lists no agent for this site")
        return
    mine = next((each for each in listed if _measures(each, site.agent_image)), None)
    if mine is None:
        versions = ", ".join(sorted(each.about.version for each in listed))
        raise _not_listed(site, f"the depot lists another agent for this site: version {versions}")
    about = mine.about
    client.find(Wanted(Kind.AGENT, about.vendor, about.component, about.version, site=name))  # its floor
    if read:
        with client.open_verified(mine) as file:
            require_predicted(mine, BootedImage.of("agent", file.read()))
    site.agent_listed = True


def _is_agent_of(target: Target, site: str) -> bool:
    return target.about.kind is Kind.AGENT and target.about.site in (None, site)


def _measures(target: Target, booted: BootedImage) -> bool:
    signed = target.about.measurements
    return all(value in signed.get(index, ()) for index, value in booted.predicted.items())


def _not_listed(site: Site, why: str) -> FreeholdError:
    agent, file = site.agent_image, site.files.find("boot", "agent.efi")
    return FreeholdError(
        f"the agent that this controller built is not what two operators signed: {why}",
        expected=f"one that makes PCR 4 {agent.predicted[4]} and PCR 11 {agent.predicted[11]}",
        remedy=f"find out why it differs; if it is what you want, `freehold depot import {file} --kind agent …`,"
        " two operators sign it, `freehold depot publish`: docs/carry-in.md",
    )


# ---- what people are told


async def watch_images(site: Site, store: Store) -> None:
    """For ever: what the depot newly lists is verified before anybody needs it."""
    while True:
        try:
            await look_at_images(site, store)
        except (FreeholdError, OSError) as error:
            logger.error("images: %s", error)
        await asyncio.sleep(INTERVAL)


async def look_at_images(site: Site, store: Store) -> None:
    """Findings of the site: what of the depot cannot be used, an agent that it does not list, and that locally built
    images count here."""
    async with site.reading_images:
        found = await asyncio.to_thread(_image_findings, site, await site_name(site))
    try:
        await require_agent(site)
    except FreeholdError as error:
        found = (*found, _finding(Severity.CRITICAL, AGENT, "agent", error))
    for each in await store.site.set_findings(SOURCE, found):
        level = logging.INFO if each.severity is Severity.INFO else logging.ERROR
        logger.log(level, "%s; %s", each.detail, each.remedy)


def _image_findings(site: Site, name: str) -> tuple[Finding, ...]:
    found: list[Finding] = []
    targets: list[Target] = []
    with contextlib.suppress(DepotError):  # `depot_watch` tells of it
        client = site.depot.client(site.depot_seen)
        targets = [
            t for t in client.view.packages if t.about.kind is not Kind.FIRMWARE and t.about.site in (None, name)
        ]
        for target in targets:
            if target.about.kind is Kind.OS_IMAGE and (error := _refusal(site, client, target)) is not None:
                found.append(_finding(Severity.CRITICAL, REFUSED, target.path, error))
    if site.spec.images == "built":
        found.append(_built(intended=bool(targets)))
    return tuple(found)


def _refusal(site: Site, client: DepotClient, target: Target) -> FreeholdError | OSError | None:
    """Why the image cannot be used. Gigabytes that were refused are not read again before their file has changed."""
    stamp = _stamp(client.path_of(target))
    before = site.refused_images.get(target.path)
    if before is not None and before[:2] == (target, stamp):
        return before[2]
    try:
        load(site, client, target, read=False)
    except FreeholdError as error:
        site.refused_images[target.path] = (target, stamp, error)
        return error
    except OSError as error:  # the disk, say: perhaps not the next time
        return error
    return None


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Differs if the file may have: whoever writes it changes at least the last. None: there is none."""
    try:
        state = path.stat()
    except OSError:
        return None
    return (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def _built(*, intended: bool) -> Finding:
    """`intended`: the depot lists images of this site, so somebody means to sign for them."""
    return Finding(
        severity=Severity.WARNING if intended else Severity.INFO,
        kind=BUILT,
        subject="images",
        detail="images that this controller built may be assigned and booted: nobody else vouches for them",
        remedy="import image and agent into the depot, let two operators sign them, and declare spec.images: depot",
        evidence=f"spec.images of the Site is built; the depot lists {'some' if intended else 'none'} for this site",
    )


def _finding(severity: Severity, kind: str, subject: str, error: FreeholdError | OSError) -> Finding:
    what: Any = error.what if isinstance(error, FreeholdError) else str(error)
    remedy = (error.remedy or "") if isinstance(error, FreeholdError) else ""
    return Finding(
        severity=severity,
        kind=kind,
        subject=subject,
        detail=what,
        remedy=remedy or "`freehold depot verify`",
        evidence=refusal_of(subject, error),
    )
