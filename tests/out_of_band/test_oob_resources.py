"""What real BMCs get wrong must not hide the rest; quirks are data."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.model.findings import Finding
from freehold.out_of_band import resources as r
from freehold.out_of_band.quirks import QUIRKS, Behaviour, behaviour_of

_SHAPES = [
    value
    for value in vars(r).values()
    if isinstance(value, type) and issubclass(value, msgspec.Struct) and value.__module__ == r.__name__
]
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def test_wrong_types_become_absent_with_a_finding_each() -> None:
    findings: list[Finding] = []
    raw = {
        "@odata.id": "/redfish/v1/Systems/1",
        "SerialNumber": 12345,
        "UUID": None,
        "Model": "X",
        "Boot": "none",
        "TrustedModules": [None, {"InterfaceType": "TPM2_0", "FirmwareVersion": 7}, "x"],
        "Processors": {"@odata.id": None},
    }
    system = r.read(r.System, raw, findings)
    assert (system.serial_number, system.uuid, system.model, system.boot) == (None, None, "X", r.Boot())
    assert system.trusted_modules == (r.TrustedModule(interface_type="TPM2_0"),)
    assert [finding.subject for finding in findings] == [
        "/redfish/v1/Systems/1#SerialNumber",
        "/redfish/v1/Systems/1#Boot",
        "/redfish/v1/Systems/1#TrustedModules#FirmwareVersion",
        "/redfish/v1/Systems/1#TrustedModules",
    ]
    assert "a int ('12345')" in findings[0].detail
    assert findings[0].evidence == f"{findings[0].subject}: a int ('12345')"


def test_a_whole_float_is_an_integer() -> None:
    assert r.read(r.Memory, {"CapacityMiB": 16384.0}, []).capacity_mib == 16384


def test_what_is_no_object_is_read_as_empty_with_a_finding() -> None:
    findings: list[Finding] = []
    assert r.read(r.Drive, ["x"], findings) == r.Drive()
    assert len(findings) == 1


@settings(deadline=None, max_examples=60)
@given(shape=st.sampled_from(_SHAPES), data=st.data())
def test_no_value_of_any_field_crashes_the_reader(shape: type[msgspec.Struct], data: st.DataObject) -> None:
    names = [field.encode_name for field in msgspec.structs.fields(shape)]
    raw: dict[str, Any] = {name: data.draw(_JSON) for name in names}
    assert isinstance(r.read(shape, raw, []), shape)


def test_quirks_are_looked_up_by_prefix_and_the_closer_row_wins() -> None:
    assert behaviour_of("Supermicro", "SYS-1029", None).cd_target == "UsbCd"
    assert behaviour_of("supermicro ", "ARS-111GL-NHR", None).cd_target == "Cd"
    assert behaviour_of("Lenovo", "ThinkEdge SE450", "1").boot_in_settings
    assert behaviour_of("HPE", "ProLiant", None) == behaviour_of(None, None, None) == Behaviour()


@pytest.mark.parametrize("quirk", QUIRKS, ids=lambda quirk: quirk.name)
def test_every_quirk_changes_something_and_has_evidence(quirk: Any) -> None:
    assert quirk.evidence.startswith("https://")
    assert set(quirk.changes) <= {field.name for field in msgspec.structs.fields(Behaviour)}
    msgspec.convert(quirk.changes, Behaviour)
