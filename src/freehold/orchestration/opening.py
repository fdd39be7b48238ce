"""Open a site's state directory: vault, keys, evidence log, boot artifacts. Whatever is missing is made, once."""

import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from freehold.evidence import EvidenceLog, PublicKey, dsse
from freehold.model.errors import FreeholdError
from freehold.model.resources import NetworkSpec, SiteSpec
from freehold.orchestration.measurements import BootedImage
from freehold.orchestration.site import BOOT_PORT, OsImage, agent_port
from freehold.provisioning.images import build, manifest
from freehold.provisioning.images.artifacts import Progress, digest_of, remove, silent
from freehold.root_of_trust import site_vault
from freehold.root_of_trust.attestation import predict
from freehold.root_of_trust.attestation.pe import authenticode, parse_image
from freehold.root_of_trust.keys import SiteKeys
from freehold.root_of_trust.vault import Vault

logger = logging.getLogger(__name__)


class AlreadyServed(FreeholdError):
    """Another controller has this state directory."""


@contextmanager
def serving(state: Path) -> Iterator[None]:
    """Hold the site's lock: one controller to a state directory. It goes with the process, however that ends."""
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = state / "serve.lock"
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = lock.read(20).strip() or "unknown"
            raise AlreadyServed(
                f"another controller (pid {holder}) serves {state}",
                remedy="stop it first; two controllers on one SQLite store would fight over ports and servers",
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def open_vault(state: Path) -> Vault:
    """The site's vault under whatever key it was given; made at the first opening, and then for development."""
    return site_vault.open_vault(state)


def open_keys(state: Path, vault: Vault, site: str, spec: SiteSpec, networks: dict[str, NetworkSpec]) -> SiteKeys:
    """The site's keys; what is missing is made, for the controller and the networks that are declared."""
    addresses = list(dict.fromkeys((spec.controller.provisioning, spec.controller.oob)))
    return SiteKeys.create(state, vault, site, addresses, bmc_networks=[networks[spec.networks.oob].prefix])


def origin_of(site: str) -> str:
    """Name of the site's evidence log (C2SP checkpoint origin)."""
    return f"freehold.dev/{site}/evidence"


def open_log(state: Path, site: str, keys: SiteKeys) -> EvidenceLog:
    return EvidenceLog.open_for_writing(state / "evidence", keys.evidence, origin_of(site))


def evidence_key(state: Path) -> PublicKey:
    """The public half, as an auditor has it."""
    path = state / "keys" / "evidence.pub"
    try:
        return PublicKey.from_pem(path.read_bytes())
    except FileNotFoundError:
        raise FreeholdError(
            f"{path} is not there: this site has no evidence yet", remedy="run `freehold serve` first, or give --state"
        ) from None


@dataclass(frozen=True)
class BootArtifacts:
    """The site's signed boot files, and what they will measure."""

    agent_efi: Path
    agent_iso: Path
    stage2: Path
    agent: BootedImage
    os: OsImage


def boot_artifacts(
    state: Path, site: str, spec: SiteSpec, keys: SiteKeys, base: build.BaseArtifacts, progress: Progress = silent
) -> BootArtifacts:
    """Assemble and sign what this site boots, unless just that is there already."""
    address = spec.controller.provisioning
    material = build.SiteMaterial(
        site=site,
        controller_url=f"https://{address}:{agent_port(keys.agent_ca.generation)}",
        boot_url=f"http://{address}:{BOOT_PORT}/boot",
        agent_ca_pem=keys.agent_ca.certificate_pem,
        image_public_key_pem=keys.image.public_key_pem,
        sign=keys.secure_boot.sign,
    )
    inputs = [base.version, str(base.initrd), str(base.stage2), material.site, material.controller_url]
    trusted = [material.agent_ca_pem, material.image_public_key_pem, *keys.secure_boot.newest_set().db]
    version = digest_of([*inputs, *(hashlib.sha256(each).hexdigest() for each in trusted)])[:16]
    out = state / "images" / version
    done = out / "content.json"
    if not done.exists():
        remove(out)
        made = build.assemble_site(base, material, out, progress)
        draft = done.with_suffix(".new")
        draft.write_bytes(msgspec.json.encode((made.os_name, made.os_version, made.os_content, made.stage2.name)))
        draft.replace(done)
    agent, image, stage2 = read_build(out, keys)
    return BootArtifacts(out / "agent.efi", out / "agent.iso", out / stage2, agent, image)


def read_build(out: Path, keys: SiteKeys) -> tuple[BootedImage, OsImage, str]:
    """One finished build of the site: agent, OS image, and the file name of the second stage."""
    name, os_version, content, stage2 = msgspec.json.decode(
        (out / "content.json").read_bytes(), type=tuple[str, str, manifest.Content, str]
    )
    system = (out / "os.efi").read_bytes()
    booted = BootedImage.of(name, system)
    payload = manifest.image_manifest(name, os_version, content, boot_values(system, booted)).payload()
    image = OsImage(
        name=name,
        version=os_version,
        path=out / "os.raw",
        manifest_envelope=dsse.sign(payload, manifest.PAYLOAD_TYPE, keys.image).to_dict(),
        manifest_sha256=hashlib.sha256(payload).hexdigest(),
        booted=booted,
        sha256=content.sha256,
        size=content.size,
        chunks=len(content.chunks),
        agent_ca=keys.agent_ca.generation,
    )
    return BootedImage.of("agent", (out / "agent.efi").read_bytes()), image, stage2


def known_builds(state: Path, keys: SiteKeys) -> tuple[dict[str, BootedImage], dict[str, BootedImage]]:
    """Every build of this site that is still kept: agents by their UKI's SHA-256, OS images by their manifest's.
    Servers run what they were given, also after the controller was updated."""
    agents: dict[str, BootedImage] = {}
    systems: dict[str, BootedImage] = {}
    for done in sorted((state / "images").glob("*/content.json")):
        try:
            agent, image, _ = read_build(done.parent, keys)
        except (OSError, FreeholdError, msgspec.MsgspecError) as error:
            logger.error("build %s cannot be read, so no boot of it will be trusted: %s", done.parent.name, error)
            continue
        agents[agent.sha256], systems[image.manifest_sha256] = agent, image.booted
    return agents, systems


def boot_values(uki: bytes, booted: BootedImage) -> manifest.BootValues:
    """What the manifest promises of a boot with Secure Boot on."""
    return manifest.BootValues(
        secure_boot=True,
        pcr4=(predict.pcr_value(booted.pcr4[True]).hex(),),
        pcr11=booted.pcr11.hex(),
        loader_sha256=hashlib.sha256(uki).hexdigest(),
        uki_authenticode=authenticode(uki).hex(),
        kernel_authenticode=authenticode(parse_image(uki).sections[".linux"]).hex(),
    )
