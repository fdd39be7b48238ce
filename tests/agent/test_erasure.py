import json

import pytest

from freehold.agent import sanitize as module
from freehold.agent.canaries import plant_canary, verify_sanitized
from freehold.agent.errors import AgentError

MIB = 1 << 20


def quiet(*_):
    return None


def verify(machine, canaries, seed="s2"):
    return verify_sanitized("N0", seed, 32, 4096, canaries, root=machine.root)


def test_overwrite_is_found_clean(machine):
    disk = machine.disk("N0", 8 * MIB, fill=b"secret of the last tenant")
    planted = plant_canary("N0", "s1", 12, root=machine.root)["canaries"]
    done = module.sanitize("N0", ["overwrite"], quiet, root=machine.root, run=lambda _: (1, b""))
    assert done["technique"] == "overwrite"
    assert disk.read_bytes().count(0) == 8 * MIB
    verdict = verify(machine, planted)
    assert verdict["clean"]
    assert (verdict["canary_hits"], verdict["nonzero_samples"], verdict["canaries"]) == (0, 0, len(planted))


def test_drive_that_reports_success_and_keeps_the_data_is_caught(machine):
    """Measured in QEMU: ATA security erase and SCSI format return success with the data still there."""
    machine.disk("N0", 8 * MIB)
    planted = plant_canary("N0", "s1", 12, root=machine.root)["canaries"]
    identify = json.dumps({"sanicap": 3, "oacs": 2, "fna": 4}).encode()
    log = (65535).to_bytes(2, "little") + (1).to_bytes(2, "little") + bytes(508)

    def lying_drive(command):
        return 0, {"id-ctrl": identify, "get-log": log}.get(command[1], b"")

    done = module.sanitize("N0", list(module.TECHNIQUES), quiet, root=machine.root, run=lying_drive)
    assert done["technique"] == "nvme-sanitize-crypto-erase"
    assert "--sanact=4" in done["command"]
    verdict = verify(machine, planted)
    assert not verdict["clean"]
    assert verdict["canary_hits"] == len(planted)


def test_one_surviving_canary_in_an_otherwise_blank_disk_is_enough(machine):
    disk = machine.disk("N0", 64 * MIB)
    planted = plant_canary("N0", "s1", 5, root=machine.root)["canaries"]
    inner = next(c for c in planted if MIB < c["offset"] < 63 * MIB)
    with disk.open("r+b") as file:
        for canary in planted:
            if canary != inner:
                file.seek(canary["offset"])
                file.write(bytes(4096))
    verdict = verify(machine, planted)
    assert (verdict["clean"], verdict["canary_hits"]) == (False, 1)
    assert inner["offset"] in verdict["dirty_offsets"]


@pytest.mark.parametrize("where", [0, 8 * MIB - 1, 5 * MIB + 1])
@pytest.mark.slow
def test_data_anywhere_that_is_read_is_found(machine, where):
    disk = machine.disk("N0", 8 * MIB)
    with disk.open("r+b") as file:
        file.seek(where)
        file.write(b"x")
    assert verify_sanitized("N0", "s", 4096, 65536, [], root=machine.root)["clean"] is False


def test_erased_flash_of_ff_is_clean_but_other_fill_is_not(machine):
    machine.disk("N0", 4 * MIB, fill=b"\xff")
    assert verify(machine, [])["clean"]
    machine.disk("N0", 4 * MIB, fill=b"A")
    assert not verify(machine, [])["clean"]


def test_failed_technique_falls_to_the_next_and_is_recorded(machine):
    machine.disk("N0", 4 * MIB, fill=b"x")
    identify = json.dumps({"sanicap": 0, "oacs": 2, "fna": 0}).encode()

    def drive(command):
        return (0, identify) if command[1] == "id-ctrl" else (1, b"NVMe status: INVALID_FORMAT")

    done = module.sanitize("N0", ["overwrite", "nvme-format-user-data-erase"], quiet, root=machine.root, run=drive)
    assert done["technique"] == "overwrite"
    assert [one["technique"] for one in done["attempts"]] == ["nvme-format-user-data-erase"]
    assert done["attempts"][0]["output"] == "NVMe status: INVALID_FORMAT"
    assert done["started"] <= done["ended"]


def test_nothing_allowed_is_an_error_and_touches_nothing(machine):
    disk = machine.disk("N0", MIB, fill=b"x")
    with pytest.raises(AgentError, match="was not sanitized"):
        module.sanitize("N0", ["nvme-sanitize-crypto-erase"], quiet, root=machine.root, run=lambda _: (1, b""))
    with pytest.raises(AgentError, match="unknown sanitization technique"):
        module.sanitize("N0", ["magic"], quiet, root=machine.root)
    assert disk.read_bytes() == b"x" * MIB


@pytest.mark.parametrize(
    ("identify", "offers"),
    [
        ({"sanicap": 3, "oacs": 2, "fna": 4}, list(module.TECHNIQUES[:4])),
        ({"sanicap": 0, "oacs": 2, "fna": 0}, ["nvme-format-user-data-erase"]),
        ({"sanicap": 2, "oacs": 0, "fna": 4}, ["nvme-sanitize-block-erase"]),
        ({}, []),
    ],
)
def test_offers_follow_identify_controller(identify, offers):
    assert module.nvme_techniques(identify) == offers


@pytest.mark.parametrize(("state", "status"), [(1, 0), (4, 0), (3, 1), (0, 1)])
def test_sanitize_status_log_decides(state, status):
    log = b"\xff\xff" + state.to_bytes(2, "little") + bytes(508)
    _, got, output = module._nvme_sanitize("/dev/nvme0", 2, lambda c: (0, log if c[1] == "get-log" else b""), quiet)
    assert got == status
    assert "SSTAT" in output


def test_same_seed_gives_the_same_canaries(machine):
    machine.disk("N0", 8 * MIB)
    first = plant_canary("N0", "s1", 6, root=machine.root)
    assert plant_canary("N0", "s1", 6, root=machine.root) == first
    assert plant_canary("N0", "s2", 6, root=machine.root) != first


@pytest.mark.parametrize("canary", [{"offset": -1, "length": 4096}, {"offset": 8 * MIB, "length": 1}, {"offset": 0}])
def test_canary_outside_the_disk_is_an_error(machine, canary):
    machine.disk("N0", 8 * MIB)
    with pytest.raises(AgentError, match="does not lie on this disk"):
        verify(machine, [canary | {"sha256": "0" * 64}])
