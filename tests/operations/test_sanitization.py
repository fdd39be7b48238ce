import pytest

from freehold.operations.sanitization import DataRemains, judge, require_clean

DISK = {"model": "QEMU NVMe Ctrl", "size_bytes": 2 << 30}
ERASED = {"technique": "nvme-format-user", "command": "nvme format", "raw_status": "0", "started": "a", "finished": "b"}
PLANTED = {"count": 8}
CLEAN = {"clean": True, "samples": 64, "nonzero_samples": 0, "canary_hits": 0}


def test_a_clean_medium():
    medium = judge("N0", DISK, PLANTED, ERASED, CLEAN, "5eed")
    assert medium.clean
    assert medium.category == "Clear"
    assert medium.reasons == ()
    require_clean("s1", [medium])


@pytest.mark.parametrize(
    ("planted", "erased", "verified", "words"),
    [
        (PLANTED, ERASED, CLEAN | {"canary_hits": 3}, "3 planted canaries are still readable"),
        (PLANTED, ERASED, CLEAN | {"nonzero_samples": 2}, "2 samples are not uniform"),
        (PLANTED, ERASED, CLEAN | {"samples": 4}, "only 4 samples"),
        (PLANTED, ERASED, {}, "an unknown number of planted canaries"),
        (PLANTED, ERASED, CLEAN | {"clean": "yes"}, "does not call the medium clean"),
        (PLANTED, {}, CLEAN, "unknown technique"),
        ({"count": 0}, ERASED, CLEAN, "no canary was planted"),
        ({"count": True}, ERASED, CLEAN, "no canary was planted"),
    ],
)
def test_anything_less_is_not_clean(planted, erased, verified, words):
    medium = judge("N0", DISK, planted, erased, verified, "5eed")
    assert not medium.clean
    with pytest.raises(DataRemains, match="server s1") as refusal:
        require_clean("s1", [medium])
    assert words in str(refusal.value)
    assert "serial N0" in str(refusal.value)


def test_no_medium_at_all_is_refused():
    with pytest.raises(DataRemains, match="no medium was sanitized"):
        require_clean("s1", [])
