"""The policy that a boot is held against, and the reference values that a machine's first boot leaves."""

import dataclasses
import hashlib

import pytest
from site_support import booted, recorded

from freehold.model.errors import FreeholdError
from freehold.model.status import Facts
from freehold.orchestration.measurements import learned_reference, policy_for, reference_digests
from freehold.root_of_trust.attestation.appraise import appraise
from freehold.root_of_trust.attestation.errors import AttestationError
from freehold.root_of_trust.attestation.predict import ExpectedEvent, pcr7_events
from freehold.root_of_trust.secure_boot_generations import KeySet

PK, KEK, DB = (recorded.certificate(name) for name in ("PK", "KEK", "db"))
KEYS = KeySet(generation=3, owner=recorded.OWNER, pk=PK, kek=KEK, db=(DB,), dbx=(hashlib.sha256(b"").digest(),))


def judged(mode: str, facts: Facts, keys: KeySet = KEYS) -> tuple[str, ...]:
    policy = policy_for(booted("agent"), facts, keys, ek_identity=recorded.EK_IDENTITY)
    return appraise(recorded.evidence(recorded.log_bytes(mode)), policy, recorded.NOW).reasons


def test_before_enrolment_setup_mode_is_expected_and_after_it_our_keys() -> None:
    enrolled = Facts(secure_boot_enrolled=True)
    assert judged("setup-mode", Facts()) == ()
    assert judged("secure-boot", enrolled) == ()
    assert any("Secure Boot is off, against policy" in reason for reason in judged("setup-mode", enrolled))
    assert any("PCR 7" in reason for reason in judged("secure-boot", Facts()))


ENROLLED = Facts(secure_boot_enrolled=True)


def test_the_keys_of_the_server_s_own_generation_count_and_the_policy_names_it() -> None:
    policy = policy_for(booted("agent"), ENROLLED, KEYS, ek_identity=recorded.EK_IDENTITY)
    assert policy.id.endswith("/secure-boot-3")
    assert [event.digest for event in policy.pcr7] == [event.digest for event in predicted(KEYS)]
    joined = dataclasses.replace(KEYS, db=(DB, PK))
    assert any("db lacks the certificate" in reason for reason in judged("secure-boot", ENROLLED, joined))
    replaced = dataclasses.replace(KEYS, pk=DB)
    assert any("PK holds a certificate" in reason for reason in judged("secure-boot", ENROLLED, replaced))


def predicted(keys: KeySet) -> tuple[ExpectedEvent, ...]:
    authority = keys.authority((DB,))
    assert authority is not None
    return pcr7_events(keys.variables(), secure_boot=True, authorities=(authority,))


def test_what_is_revoked_must_be_in_dbx_and_more_may_be() -> None:
    assert judged("secure-boot", ENROLLED, dataclasses.replace(KEYS, dbx=())) == ()
    lacking = dataclasses.replace(KEYS, dbx=(*KEYS.dbx, bytes(32)))
    assert any(f"dbx lacks the SHA-256 hash {'00' * 32}" in each for each in judged("secure-boot", ENROLLED, lacking))


def test_an_image_that_these_keys_could_not_have_started_has_no_policy() -> None:
    image = booted("agent")
    for keys, why in (
        (dataclasses.replace(KEYS, dbx=(image.authenticode,)), "is in dbx of generation 3"),
        (dataclasses.replace(KEYS, db=(PK,)), "no key in db of generation 3 has signed it"),
    ):
        assert why in (image.refused_by(keys) or "")
        with pytest.raises(AttestationError, match=why):
            judged("secure-boot", ENROLLED, keys)
        assert judged("setup-mode", Facts(), keys) == ()
    assert image.refused_by(KEYS) is None


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
