"""What our own images will measure when they boot, and the policy that a boot of them is held against. Pure."""

import hashlib
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from freehold.model.errors import FreeholdError
from freehold.model.status import Facts, FirmwareFact
from freehold.root_of_trust.attestation import predict
from freehold.root_of_trust.attestation.appraise import BANK, Evidence, Policy, TpmState, Verdict
from freehold.root_of_trust.attestation.errors import AttestationError
from freehold.root_of_trust.attestation.pe import authenticode
from freehold.root_of_trust.attestation.predict import ExpectedEvent, SecureBootKeys
from freehold.root_of_trust.attestation.reference import PCRS, ReferenceValues
from freehold.root_of_trust.secure_boot_generations import KeySet
from freehold.root_of_trust.secure_boot_signing import signers_of

REVOKED = "revoked-image"
"""Kind of the finding that the site's newest Secure Boot keys would not start what a server runs."""


@dataclass(frozen=True)
class BootedImage:
    """The measurements of one signed UKI."""

    name: str
    sha256: str
    pcr4: dict[bool, tuple[ExpectedEvent, ...]]  # by whether Secure Boot is on
    pcr11: bytes
    authenticode: bytes
    signers: tuple[bytes, ...]  # certificates (DER) of its signatures, in their order

    @classmethod
    def of(cls, name: str, uki: bytes) -> "BootedImage":
        return cls(
            name=name,
            sha256=hashlib.sha256(uki).hexdigest(),
            pcr4={on: predict.pcr4_events(uki, secure_boot=on) for on in (False, True)},
            pcr11=predict.pcr_value(predict.pcr11_events(uki)),
            authenticode=authenticode(uki),
            signers=signers_of(uki),
        )

    @property
    def predicted(self) -> dict[int, str]:
        """PCR 4 under Secure Boot and PCR 11, in hex: what the depot's metadata signs of it. PCR 4 holds the
        Authenticode digest, which covers all but the signatures: whoever signed it, the same image has the same."""
        return {4: predict.pcr_value(self.pcr4[True]).hex(), 11: self.pcr11.hex()}

    def refused_by(self, keys: KeySet) -> str | None:
        """Why firmware with these keys does not start it (UEFI 2.10, 32.5.3.3); None: it does."""
        if self.authenticode in keys.dbx:
            return f"its digest {self.authenticode.hex()} is in dbx of generation {keys.generation}"
        if keys.authority(self.signers) is None:
            return f"no key in db of generation {keys.generation} has signed it"
        return None


def policy_for(
    image: BootedImage,
    facts: Facts,
    keys: KeySet,
    *,
    ek_identity: str,
    last_seen: TpmState | None = None,
) -> Policy:
    """The policy for a boot of `image`: before enrolment the machine is in setup mode, after it our keys decide: `keys`
    are of the generation that the server carries. Raises `AttestationError` if they could not have started the image.

    `ek_identity` is the server's own once it is bound; until then it is the one whose certificate was just verified.
    `last_seen` is of that TPM's last quote.
    """
    enrolled = facts.secure_boot_enrolled
    reference = facts.reference_values
    if enrolled and (why := image.refused_by(keys)) is not None:
        raise AttestationError(
            f"{image.name} cannot have been started under the server's Secure Boot keys: {why}",
            remedy="decommission the server and assign it anew",
        )
    authority = keys.authority(image.signers)
    mode = f"secure-boot-{keys.generation}" if enrolled else "setup-mode"
    return Policy(
        id=f"{image.name}@{image.sha256[:16]}/{mode}",
        ek_identity=facts.ek_sha256 or ek_identity,
        pcr4=image.pcr4[enrolled],
        pcr7=predict.pcr7_events(
            keys.variables() if enrolled else SecureBootKeys(),
            secure_boot=enrolled,
            authorities=(authority,) if enrolled and authority is not None else (),
        ),
        pcr11=(image.pcr11,),
        # Firmware code and option ROMs are held against reference values, since nobody can predict them.
        reference=(held_against(reference, facts.firmware),) if reference else None,
        last_seen=last_seen,
    )


def attestation_result(verdict: Verdict, proven: Evidence, valid_for: float) -> dict[str, Any]:
    """What is signed of an appraisal: of which quote it is, what it came to, and until when (seconds) it holds."""
    tpm = proven.tpm
    return {
        "trusted": verdict.trusted,
        "reasons": list(verdict.reasons),
        "findings": [finding.detail for finding in verdict.findings],
        "revoked_image": any(finding.kind == REVOKED for finding in verdict.findings),
        "policy": verdict.policy_id,
        "nonce": proven.nonce.hex(),
        "ak_name": proven.ak_name.hex(),
        "expires": (proven.quoted_at + timedelta(seconds=valid_for)).isoformat(timespec="seconds"),
        "pcrs": {str(pcr): {"value": one.value.hex(), "status": one.status.value} for pcr, one in verdict.pcrs.items()},
        "tpm": {
            "reset_count": tpm.clock.reset_count,
            "restart_count": tpm.clock.restart_count,
            "clock_ms": tpm.clock.clock,
            "firmware_version": f"{tpm.firmware_version:#018x}",
            "banks": [bank for bank, active in tpm.banks.items() if active],
        },
    }


def held_against(reference: dict[str, tuple[str, ...]], board: FirmwareFact | None) -> ReferenceValues:
    """A server's reference values under the name of its board."""
    vendor, model, version = (board.vendor, board.model, board.version) if board else ("", "", "")
    digests = {str(pcr): reference_digests(reference, pcr) for pcr in PCRS}
    return ReferenceValues(vendor=vendor, model=model, version=version, digests=digests)


def learned_reference(evidence: Evidence) -> dict[str, tuple[str, ...]]:
    """The digests of PCR 0 and 2 as this boot measured them: `{"0": ("hex", …), "2": …}`."""
    return {str(pcr): tuple(event.digests[BANK].hex() for event in evidence.log.of_pcr(pcr)) for pcr in PCRS}


def reference_digests(reference: dict[str, tuple[str, ...]], pcr: int) -> tuple[str, ...]:
    """The approved digests of a PCR, in order. A missing entry is an error: it must not turn into 'record only'."""
    digests = reference.get(str(pcr))
    if digests is None:
        raise FreeholdError(
            f"the reference values lack PCR {pcr}", remedy="take them anew: `freehold release` and rediscover"
        )
    return digests
