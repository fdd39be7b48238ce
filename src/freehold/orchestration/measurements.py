"""What our own images will measure when they boot, and the policy that a boot of them is held against. Pure."""

import hashlib
from dataclasses import dataclass

from freehold.model.errors import FreeholdError
from freehold.model.status import Facts
from freehold.root_of_trust.attestation import predict
from freehold.root_of_trust.attestation.appraise import BANK, Evidence, Policy
from freehold.root_of_trust.attestation.predict import ExpectedEvent, SecureBootKeys
from freehold.root_of_trust.attestation.reference import PCRS
from freehold.root_of_trust.attestation.uefi import SignatureEntry


@dataclass(frozen=True)
class BootedImage:
    """The measurements of one signed UKI."""

    name: str
    sha256: str
    pcr4: dict[bool, tuple[ExpectedEvent, ...]]  # by whether Secure Boot is on
    pcr11: bytes

    @classmethod
    def of(cls, name: str, uki: bytes) -> "BootedImage":
        return cls(
            name=name,
            sha256=hashlib.sha256(uki).hexdigest(),
            pcr4={on: predict.pcr4_events(uki, secure_boot=on) for on in (False, True)},
            pcr11=predict.pcr_value(predict.pcr11_events(uki)),
        )


def policy_for(
    image: BootedImage, facts: Facts, keys: SecureBootKeys, authority: SignatureEntry, *, ek_identity: str
) -> Policy:
    """The policy for a boot of `image`: before enrolment the machine is in setup mode, after it our keys decide.

    `ek_identity` is the server's own once it is bound; until then it is the one whose certificate was just verified.
    """
    enrolled = facts.secure_boot_enrolled
    reference = facts.reference_values
    return Policy(
        id=f"{image.name}@{image.sha256[:16]}/{'secure-boot' if enrolled else 'setup-mode'}",
        ek_identity=facts.ek_sha256 or ek_identity,
        pcr4=image.pcr4[enrolled],
        pcr7=predict.pcr7_events(
            keys if enrolled else SecureBootKeys(), secure_boot=enrolled, authorities=(authority,) if enrolled else ()
        ),
        pcr11=(image.pcr11,),
        # Firmware code and option ROMs are held against reference values, since nobody can predict them.
        reference={pcr: reference_digests(reference, pcr) if reference else None for pcr in PCRS},
    )


def learned_reference(evidence: Evidence) -> dict[str, tuple[str, ...]]:
    """The digests of PCR 0 and 2 as this boot measured them: `{"0": ("hex", …), "2": …}`."""
    return {str(pcr): tuple(event.digests[BANK].hex() for event in evidence.log.of_pcr(pcr)) for pcr in PCRS}


def reference_digests(reference: dict[str, tuple[str, ...]], pcr: int) -> tuple[bytes, ...]:
    """The approved digests of a PCR, in order. A missing entry is an error: it must not turn into 'record only'."""
    digests = reference.get(str(pcr))
    if digests is None:
        raise FreeholdError(
            f"the reference values lack PCR {pcr}", remedy="take them anew: `freehold release` and rediscover"
        )
    return tuple(bytes.fromhex(digest) for digest in digests)
