import copy
from typing import Any

import pytest

from freehold.operations.inventory import compare

OUT: dict[str, Any] = {
    "uuid": "7C0A51E4-38F2-4B2A-9D11-5E2F00C3A101",
    "serial": "HX2B4001",
    "cpus": [{"cores": 2}, {"cores": 2}],
    "memory_mib": 2048,
    "nics": [{"mac": "52:54:00:1E:00:01"}],
    "drives": [{"serial": "N0 "}],
    "tpm": {"interface": "TPM2_0"},
}
IN: dict[str, Any] = {
    "system": {"uuid": "7c0a51e4-38f2-4b2a-9d11-5e2f00c3a101", "serial": "HX2B4001"},
    "cpus": [{"cores": 4}],
    "memory": {"total_bytes": 1950 << 20},
    "nics": [{"mac": "52:54:00:1e:00:01"}],
    "disks": [{"serial": "N0"}],
    "tpm": {"version": "2.0"},
}


def test_the_same_server_told_twice_has_no_contradiction():
    assert compare(OUT, IN) == ()


@pytest.mark.parametrize(
    ("side", "change", "words"),
    [
        (IN, {"system": {"uuid": "other", "serial": "HX2B4001"}}, "by the BMC, other by SMBIOS"),
        (IN, {"system": {"uuid": OUT["uuid"], "serial": "X"}}, "serial is hx2b4001 by the BMC, x by SMBIOS"),
        (IN, {"cpus": [{"cores": 2}]}, "4 CPU cores by the BMC, 2 seen"),
        (IN, {"memory": {"total_bytes": 1024 << 20}}, "2048 MiB of memory by the BMC, 1024 MiB seen"),
        (IN, {"memory": {"total_bytes": 4096 << 20}}, "2048 MiB of memory by the BMC, 4096 MiB seen"),
        (
            IN,
            {"disks": [{"serial": "N0"}, {"serial": "S1"}]},
            "disk S1 is in the machine, but the BMC does not know it",
        ),
        (IN, {"disks": []}, "disk N0 is told by the BMC, but not in the machine"),
        (IN, {"nics": []}, "NIC 52:54:00:1e:00:01 is told by the BMC, but not in the machine"),
        (IN, {"nics": [*IN["nics"], {"mac": "02:00:00:00:00:01"}]}, "NIC 02:00:00:00:00:01 is in the machine"),
        (IN, {"tpm": None}, "the BMC tells of a TPM, the machine has none"),
    ],
)
def test_each_contradiction_is_told_in_words(side: dict[str, Any], change: dict[str, Any], words: str):
    (said,) = compare(OUT, copy.deepcopy(side) | change)
    assert words in said


@pytest.mark.parametrize("silent", ["uuid", "serial", "cpus", "memory_mib", "nics", "drives", "tpm"])
def test_what_a_bmc_does_not_tell_contradicts_nothing(silent: str):
    assert compare({name: value for name, value in OUT.items() if name != silent}, IN) == ()


def test_a_bmc_that_tells_nothing_is_not_contradicted_and_an_empty_machine_is():
    assert compare({}, IN) == ()
    assert len(compare(OUT, {})) == 3  # the NIC, the disk and the TPM
