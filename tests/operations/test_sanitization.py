import pytest

from freehold.operations.sanitization import DataRemains, allowed, judge, require_clean

DISK = {"model": "QEMU NVMe Ctrl", "size_bytes": 2 << 30}
ASKED = {"seed": "5eed", "samples": 64}
ERASED = {
    "technique": "nvme-format-user-data-erase",
    "command": "nvme format",
    "status": 0,
    "output": "Success",
    "started": 0.0,
    "ended": 1.5,
    "disk_bytes": 2 << 30,
}
PLANTED = {"canaries": [{}] * 8}
CLEAN = {
    "clean": True,
    "device_serial": "N0",
    "disk_bytes": 2 << 30,
    "seed": "5eed",
    "samples": 64,
    "non_uniform_samples": 0,
    "edges_uniform": True,
    "canaries": 8,
    "canary_hits": 0,
}


def test_a_clean_medium():
    medium = judge("N0", DISK, PLANTED, ERASED, CLEAN, ASKED)
    assert medium.clean
    assert medium.category == "Clear"
    assert medium.reasons == ()
    assert medium.started == "1970-01-01T00:00:00+00:00"
    require_clean("s1", [medium])


@pytest.mark.parametrize(
    ("planted", "erased", "verified", "words"),
    [
        (PLANTED, ERASED, CLEAN | {"canary_hits": 3}, "3 planted canaries are still readable"),
        (PLANTED, ERASED, CLEAN | {"non_uniform_samples": 2}, "2 samples are not uniform"),
        (PLANTED, ERASED, CLEAN | {"samples": 4}, "only 4 samples"),
        (PLANTED, ERASED, {}, "an unknown number of planted canaries"),
        (PLANTED, ERASED, CLEAN | {"clean": "yes"}, "does not call this medium clean"),
        (PLANTED, {}, CLEAN, "unknown technique"),
        ({"canaries": []}, ERASED, CLEAN, "0 canaries were planted and 8 looked for"),
        ({"canaries": []}, ERASED, CLEAN | {"canaries": 0}, "the verification could not fail"),
        (PLANTED, ERASED, CLEAN | {"seed": "0"}, "did not read the samples that were asked for"),
        (PLANTED, ERASED, CLEAN | {"samples": 63}, "did not read the samples that were asked for"),
        (PLANTED, ERASED, CLEAN | {"disk_bytes": 1 << 30}, "part of it may be hidden"),
        (PLANTED, ERASED | {"disk_bytes": 3 << 30}, CLEAN, "part of it may be hidden"),
        (PLANTED, ERASED | {"status": 1}, CLEAN, "ended with status 1"),
        (PLANTED, ERASED, CLEAN | {"edges_uniform": False}, "not uniform"),
        (PLANTED, ERASED, CLEAN | {"device_serial": "N1"}, "does not call this medium clean"),
    ],
)
def test_anything_less_is_not_clean(planted, erased, verified, words):
    medium = judge("N0", DISK, planted, erased, verified, ASKED)
    assert not medium.clean
    with pytest.raises(DataRemains, match="server s1") as refusal:
        require_clean("s1", [medium])
    assert words in str(refusal.value)
    assert "serial N0" in str(refusal.value)


def test_no_medium_at_all_is_refused():
    with pytest.raises(DataRemains, match="no medium was sanitized"):
        require_clean("s1", [])


def test_only_techniques_that_reading_back_can_verify_are_asked_for_strongest_first():
    assert allowed(["purge", "clear"])[0] == "nvme-sanitize-block-erase"
    assert allowed(["purge"]) == ["nvme-sanitize-block-erase"]
    assert not [name for name in allowed(["purge", "clear"]) if "crypto" in name]
