import msgspec
import pytest

from freehold.model.resources import DEFAULT_REACTIONS, DriftKind, Reaction
from freehold.operations.drift import Observation, diff, finding, sentence

BASE = Observation(
    secure_boot=True,
    boot_order=("Boot0001", "Boot0000"),
    accounts={"freehold": "Administrator"},
    bios={"NumLock": "On"},
    firmware={"BIOS": "2.6.1"},
    ipmi=False,
    secure_boot_keys={"db": ("aa",)},
)


def test_nothing_changed_is_no_drift():
    assert diff(BASE, BASE) == ()


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"secure_boot": False}, DriftKind.SECURE_BOOT, "Secure Boot is off, declared on"),
        (
            {"boot_order": ("Boot0000", "Boot0001")},
            DriftKind.BOOT_ORDER,
            "Boot0000 Boot0001, declared Boot0001 Boot0000",
        ),
        ({"accounts": {"freehold": "Administrator", "eve": "Operator"}}, DriftKind.BMC_ACCOUNT, "eve is Operator"),
        ({"accounts": {"freehold": "ReadOnly"}}, DriftKind.BMC_ACCOUNT, "freehold is ReadOnly, declared Administrator"),
        ({"accounts": {}}, DriftKind.BMC_ACCOUNT, "freehold is absent"),
        ({"bios": {"NumLock": "Off"}}, DriftKind.BIOS_ATTRIBUTE, "NumLock is Off, declared On"),
        ({"bios": {}}, DriftKind.BIOS_ATTRIBUTE, "NumLock is absent"),
        ({"firmware": {"BIOS": "2.6.2"}}, DriftKind.FIRMWARE_VERSION, "BIOS is 2.6.2, declared 2.6.1"),
        ({"ipmi": True}, DriftKind.IPMI, "IPMI over LAN is on"),
        ({"services": ("Telnet",)}, DriftKind.BMC_SERVICE, "Telnet is open, declared closed"),
        ({"secure_boot_keys": {"db": ("aa", "bb")}}, DriftKind.SECURE_BOOT_KEYS, "db is aa bb, declared aa"),
    ],
)
def test_each_kind_of_drift_is_named(change, kind, words):
    (drift,) = diff(BASE, msgspec.structs.replace(BASE, **change))
    assert drift.kind == kind
    assert words in sentence(drift)


def test_what_could_never_be_closed_is_no_drift_and_closing_it_is_none_either():
    left = msgspec.structs.replace(BASE, services=("SSDP",))
    assert diff(left, left) == ()
    assert diff(left, BASE) == ()


def test_every_kind_has_a_reaction_and_a_finding_says_what_to_do():
    assert set(DEFAULT_REACTIONS) == set(DriftKind)
    (drift,) = diff(BASE, msgspec.structs.replace(BASE, ipmi=True))
    assert "freehold release s1" in finding("s1", drift, Reaction.QUARANTINE).remedy
    assert all(finding("s1", drift, reaction).remedy for reaction in Reaction)
