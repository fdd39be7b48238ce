"""Secure Boot on real firmware: what the enrolment image writes, what a rotation admits, what dbx refuses; and each
time PCR 7 is what was predicted. No root."""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from freehold.provisioning.images import agent_ramdisk, cpio, uki
from freehold.provisioning.images.artifacts import Cache, default_root
from freehold.provisioning.images.debian import Apt
from freehold.provisioning.images.enrolment import enrolment_image
from freehold.provisioning.images.kernel import Flavour, kernel
from freehold.root_of_trust.attestation.pe import authenticode
from freehold.root_of_trust.attestation.predict import pcr7_events, pcr_value
from freehold.root_of_trust.secure_boot_generations import KeySet
from freehold.root_of_trust.secure_boot_signing import sign_image
from freehold_lab import firmware_vars, layout
from freehold_lab.hardware import BootOverride, BootTarget, SecureBootDatabaseName
from freehold_lab.layout import LabPlan
from freehold_lab.machine import Machine
from freehold_lab.tpm import TpmVendor

sys.path.append(str(Path(__file__).parents[1] / "root_of_trust"))
from secure_boot_support import der, signer

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

OWNER = UUID(firmware_vars.OWNER)  # what the lab's BMC writes, so that even the digests are the predicted ones
CD = BootOverride(BootTarget.CD, "Once")
REVOKED = b"\x11" * 32
PROBE = """#!/bin/sh
mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
while read module; do insmod "/$module" 2>/dev/null; done </etc/modules
echo "PCR 7 is $(cat /sys/class/tpm/tpm0/pcr-sha256/7)"
poweroff -f
"""


def keys(*db: str, dbx: tuple[bytes, ...] = (), generation: int = 1) -> KeySet:
    return KeySet(generation=generation, owner=OWNER, pk=der("PK"), kek=der("KEK"), db=tuple(map(der, db)), dbx=dbx)


def predicted(wanted: KeySet, *signers: str) -> str:
    authority = wanted.authority([der(name) for name in signers])
    assert authority is not None
    return pcr_value(pcr7_events(wanted.variables(), secure_boot=True, authorities=(authority,))).hex()


def signed(image: bytes, *names: str) -> bytes:
    return sign_image(image, [signer(name) for name in names])


@pytest.fixture(scope="module")
def agent() -> bytes:
    """An agent's UKI, unsigned and without a site."""
    cache = Cache(default_root())
    linux = kernel(cache, Apt.of_host())
    initrd = agent_ramdisk.initrd(cache, linux).read_bytes()
    return uki.assemble(linux.image.read_bytes(), agent_ramdisk.CMDLINE[Flavour.CLOUD], b"ID=freehold\n", initrd)


@pytest.fixture(scope="module")
def probe(agent: bytes) -> bytes:
    """A UKI that says what PCR 7 is, and turns the machine off."""
    sections = uki.sections_of(agent)
    init = cpio.archive([cpio.file("init", PROBE.encode(), 0o755)])
    cmdline = sections[".cmdline"].rstrip(b"\0").decode()
    return uki.assemble(sections[".linux"], cmdline, sections[".osrel"], cpio.padded(sections[".initrd"]) + init)


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    vendor = TpmVendor(tmp_path / "tpm-vendor")
    vendor.establish()
    machine = Machine(layout.hardware_info(LabPlan("test", tmp_path), 1), tmp_path / "server-1", vendor)
    await machine.open()
    yield machine
    await machine.close()


async def boot(machine: Machine, image: bytes, says_so: str, *, turns_off: bool = True) -> str:
    """Start the image from a CD; what the console said, once it has said `says_so`."""
    await machine.power_off(force=True)
    before = len(machine.console.log.read_text()) if machine.console.log.exists() else 0
    iso = machine.directory / "boot.iso"
    iso.unlink(missing_ok=True)
    await machine.insert_media(uki.make_iso(image, iso))
    await machine.set_boot_override(CD)
    await machine.power_on()
    for _ in range(600):
        said = machine.console.log.read_text()[before:]
        if says_so in said and (not turns_off or await machine.power_state() == "Off"):
            return said
        await asyncio.sleep(0.2)
    raise AssertionError(f"the console never said {says_so!r}: {said}")


async def enrol(machine: Machine, wanted: KeySet) -> None:
    """As the BMC's Redfish service does it."""
    await machine.power_off(force=True)
    await machine.reset_secure_boot_keys("DeleteAllKeys")
    content: Sequence[tuple[SecureBootDatabaseName, Sequence[bytes], Sequence[bytes]]] = (
        ("dbx", (), wanted.dbx), ("db", wanted.db, ()), ("KEK", (wanted.kek,), ()), ("PK", (wanted.pk,), ()),
    )  # fmt: skip
    for name, certificates, digests in content:
        await machine.set_secure_boot_database(name, list(certificates), [digest.hex() for digest in digests])
    await machine.set_secure_boot_enabled(True)


async def test_the_enrolment_image_enrols_and_pcr_7_is_what_was_predicted(
    machine: Machine, agent: bytes, probe: bytes
) -> None:
    wanted = keys("db", dbx=(REVOKED,))
    now = datetime.now(UTC)
    image = enrolment_image(agent, wanted, signer("PK"), signer("KEK"), now)
    said = await boot(machine, signed(image, "db"), "Secure Boot keys are enrolled: power off")
    assert [f"{name} is written" in said for name in ("dbx", "db", "KEK", "PK")] == [True] * 4
    assert await machine.secure_boot_certificates("PK") == [wanted.pk]
    assert await machine.secure_boot_certificates("KEK") == [wanted.kek]
    assert await machine.secure_boot_certificates("db") == list(wanted.db)
    assert await machine.secure_boot_signatures("dbx") == [REVOKED.hex()]

    said = await boot(machine, signed(probe, "db"), "PCR 7 is")
    assert f"PCR 7 is {predicted(wanted, 'db').upper()}" in said
    assert await machine.secure_boot_enabled()

    # It starts where it has been, and changes nothing; where other keys are it is refused, or does nothing and says so.
    said = await boot(machine, signed(image, "db"), "Secure Boot keys are enrolled: power off")
    assert said.count("is as it should be") == 4
    other = enrolment_image(agent, keys("db", "db-new"), signer("PK"), signer("KEK"), now + timedelta(minutes=1))
    said = await boot(machine, signed(other, "db"), "FAILED", turns_off=False)
    assert "does not take db" in said
    said = await boot(machine, signed(image, "foreign"), "Access Denied", turns_off=False)
    assert "enrolment image started" not in said


async def test_a_rotation_of_db_admits_old_and_new_and_pcr_7_names_the_right_one(
    machine: Machine, probe: bytes
) -> None:
    both = ("db", "db-new")
    for enrolled, signers in (
        (("db",), ("db",)),  # before
        (("db",), both),  # the controller was restarted, this server not re-enrolled yet
        (both, ("db",)),  # the other way round
        (both, both),
        (("db-new",), both),  # finished
        (("db-new",), ("db-new",)),
    ):
        wanted = keys(*enrolled, dbx=(REVOKED, b"\x22" * 32))
        await enrol(machine, wanted)
        said = await boot(machine, signed(probe, *signers), "PCR 7 is")
        assert f"PCR 7 is {predicted(wanted, *signers).upper()}" in said, (enrolled, signers)
    said = await boot(machine, signed(probe, "db"), "Access Denied", turns_off=False)
    assert "PCR 7 is" not in said


async def test_what_is_revoked_is_refused_whoever_signed_it_and_nothing_else_is(machine: Machine, probe: bytes) -> None:
    bad, good = signed(probe, "db", "db-new"), signed(probe + bytes(4096), "db", "db-new")
    await enrol(machine, keys("db", "db-new"))
    await boot(machine, bad, "PCR 7 is")
    wanted = keys("db", "db-new", dbx=(authenticode(bad),), generation=2)
    await enrol(machine, wanted)
    said = await boot(machine, bad, "Access Denied", turns_off=False)
    assert "PCR 7 is" not in said
    said = await boot(machine, good, "PCR 7 is")
    assert f"PCR 7 is {predicted(wanted, 'db', 'db-new').upper()}" in said
