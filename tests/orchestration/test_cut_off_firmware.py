"""Firmware is sent to a BMC, by upload and by download, for the BIOS and for the BMC itself, and is cut off at every
point by a kill of the controller, by a reboot of the BMC or by a vault that is sealed: the declared version is there in
the end, nothing was sent while the BMC was at work, and the log says what was sent."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from cut_off import (
    SERVER,
    Course,
    Cut,
    Life,
    any_time,
    controller,
    course_at,
    cut_off_everywhere,
    go_on,
    kept,
    prepare,
    wired,
)
from depot_support import published
from test_cut_off_credentials import certified

from freehold.model.resources import Firmware
from freehold.model.status import Facts, FirmwareFact, ServerState
from freehold.orchestration.steps import firmware
from freehold.out_of_band.server import power
from freehold.out_of_band.update import firmware_version
from freehold_lab import firmware_package
from freehold_lab.bmc.memory import example_info

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("wired")]
__all__ = ["wired"]
BIOS, BMC = "2.0.0", "4.13.00"
SIMPLE_UPDATE = "/Actions/UpdateService.SimpleUpdate"
PACKAGES = {
    "bios": (BIOS, b"HALDEN-BIOS 2.0.0\n" + bytes(1 << 12)),
    "bmc": (BMC, firmware_package.pack(BMC, b"x" * 1000, firmware_package.BMC_MAGIC)),
}


async def wanting(directory: Path, *, component: str) -> None:
    """A site whose server-1 is prepared but for this firmware, which the depot has."""
    version, package = PACKAGES[component]
    info = example_info()
    facts = {
        "firmware": FirmwareFact(vendor=info.manufacturer, model=info.model, version=info.bios_version),
        "bmc_version": "4.12.03",
        "learned_reference": {"0": ()},
        "reference_values": {"0": ()},
        **dict.fromkeys(("ipmi_off", "services_closed", "posture_recorded", "agent_released"), True),
    }
    declare = partial(prepare, firmware=Firmware(**{component: version}))
    declared = await kept(f"declared-{component}", declare)
    await go_on(directory, origin=declared, done=certified, state=ServerState.PREPARING, **facts)
    async with course_at(directory) as course, controller(course) as life:
        published(life.site, info.manufacturer, package, version, (info.model,), component=component)


def uploads(course: Course) -> None:
    """The BMC takes firmware as a multipart HTTP push."""


def downloads(course: Course) -> None:
    """It fetches it (SimpleUpdate), from nobody but our own HTTPS."""
    course.hardware.faults.uploads_refused = True


def there(component: str, facts: Facts) -> bool:
    if component == "bmc":
        return facts.bmc_version == BMC
    return facts.firmware is not None and facts.firmware.version == BIOS


async def installed(component: str, life: Life) -> None:
    """It is there, and the last word of the log says which bytes were sent. They were sent once, and once more only if
    the BMC or the controller went away while they were on their way."""
    version, package = PACKAGES[component]
    course = life.course
    async with life.site.bmc(await life.view(), any_time) as client:
        if component == "bios":
            await power(client, "reset")
        assert await firmware_version(client, "BIOS" if component == "bios" else "BMC") == version
    claims = life.claims("firmware")
    assert {claim["sha256"] for claim in claims} == {hashlib.sha256(package).hexdigest()}
    assert {(claim["component"], claim["to"], claim["server"]) for claim in claims} == {(component, version, SERVER)}
    assert len(course.sent) in ((1, 2) if course.sent_at_the_cut else (1,))
    assert len(claims) in (1, 2)
    if course.cut_was(Cut.SEAL):
        assert any("OpenBao is sealed" in reason for reason in course.said), course.said
        assert (len(course.sent), len(claims)) == (1, 1)


@pytest.mark.parametrize("component", ["bios", "bmc"])
@pytest.mark.parametrize(
    ("cut", "way"),
    [(cut, way) for cut in Cut for way in (uploads, downloads) if (cut, way) != (Cut.SEAL, downloads)],
)  # either way, the vault gives the BMC's password and no more
async def test_firmware_that_is_cut_off_anywhere_gets_there_and_is_on_record(
    cut: Cut, component: str, way: Callable[[Course], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firmware, "BACK_WITHIN", 2.5 * firmware.LOOK_AGAIN)
    origin = await kept(f"wanting-{component}", partial(wanting, component=component))
    done, check = partial(there, component), partial(installed, component)
    points = await cut_off_everywhere(cut, origin, tmp_path, done, check, way)
    send = f"POST /redfish/v1/UpdateService{'/update-multipart' if way is uploads else SIMPLE_UPDATE}"
    assert {
        Cut.KILL: f"after {send}",
        Cut.REBOOT: f"after {send}",
        Cut.FLAP: "before GET /redfish/v1/TaskService/TaskMonitors/1",
        Cut.SEAL: "before vault get bmc/server-1/pending",
    }[cut] in points
