"""The policy that a boot is held against, and the reference values that a machine's first boot leaves."""

import pytest
from site_support import booted, recorded

from freehold.model.errors import FreeholdError
from freehold.model.status import Facts
from freehold.orchestration.measurements import learned_reference, policy_for, reference_digests
from freehold.root_of_trust.attestation.appraise import appraise
from freehold.root_of_trust.attestation.uefi import CERT_X509, SignatureEntry

AUTHORITY = SignatureEntry(type=CERT_X509, owner=recorded.OWNER, data=recorded.certificate("db"))


def judged(mode: str, facts: Facts) -> tuple[str, ...]:
    policy = policy_for(booted("agent"), facts, recorded.keys(), AUTHORITY, ek_identity=recorded.EK_IDENTITY)
    return appraise(recorded.evidence(recorded.log_bytes(mode)), policy, recorded.NOW).reasons


def test_before_enrolment_setup_mode_is_expected_and_after_it_our_keys() -> None:
    enrolled = Facts(secure_boot_enrolled=True)
    assert judged("setup-mode", Facts()) == ()
    assert judged("secure-boot", enrolled) == ()
    assert any("Secure Boot is off, against policy" in reason for reason in judged("setup-mode", enrolled))
    assert any("PCR 7" in reason for reason in judged("secure-boot", Facts()))


def test_the_bound_key_outranks_the_one_that_was_just_verified() -> None:
    reasons = judged("setup-mode", Facts(ek_sha256="cd" * 32))
    assert any("not this server's cdcdcdcd" in reason for reason in reasons)


def test_what_the_first_boot_measured_is_what_the_next_one_must_measure() -> None:
    learned = learned_reference(recorded.evidence(recorded.log_bytes("setup-mode")))
    assert judged("setup-mode", Facts(reference_values=learned)) == ()
    other = learned | {"0": ("00" * 32,)}
    assert any(reason.startswith("PCR 0:") for reason in judged("setup-mode", Facts(reference_values=other)))


def test_a_missing_reference_value_is_an_error_and_never_means_that_anything_goes() -> None:
    with pytest.raises(FreeholdError, match="the reference values lack PCR 2") as refused:
        judged("setup-mode", Facts(reference_values={"0": ("00" * 32,)}))
    assert "take them anew" in str(refused.value)
    assert reference_digests({"0": ("aa", "bb")}, 0) == ("aa", "bb")
