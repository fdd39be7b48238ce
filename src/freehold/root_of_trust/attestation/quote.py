"""Verification of a quote: bytes in, verified values out, or a QuoteError. The order of checks is a contract:

1. the AK is a restricted signing key that never left its TPM;
2. the signature is the AK's, in the AK's own scheme, and not over SHA-1;
3. magic, then type (`structures.parse_attest`);
4. extraData is the expected qualifying data, and the AK is a primary key of the endorsement hierarchy, since for others
   a TPM blurs its counters and firmware version (Part 1, 36.7);
5. the PCR selection is *exactly* the one that was asked for (CVE-2022-0317), and never PCR 16 or 23, which a running
   system can reset and refill with a good log's digests. A bank but the first may be empty: then the TPM says that it
   is turned off; or not there: then it is unknown to the TPM, by the agent's word;
6. the claimed values are exactly of that selection, and their digest is the quoted one.

Counters, clock and firmware version are held against the last quote of the same TPM by `appraise`.
"""

import hashlib
import hmac
from collections.abc import Mapping, Sequence

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from freehold.root_of_trust.attestation.errors import AttestationKeyError, QuoteError
from freehold.root_of_trust.attestation.structures import (
    ALG_ECDSA,
    ALG_RSASSA,
    Attest,
    Attributes,
    Public,
    Signature,
    parse_attest,
    parse_signature,
)

RH_ENDORSEMENT = bytes.fromhex("4000000b")
RESETTABLE_PCRS = frozenset({16, 23})
STRONG_HASHES: Mapping[str, hashes.HashAlgorithm] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
AK_MUST = (
    Attributes.RESTRICTED
    | Attributes.SIGN
    | Attributes.FIXED_TPM
    | Attributes.FIXED_PARENT
    | Attributes.SENSITIVE_DATA_ORIGIN
)

Selection = Mapping[str, Sequence[int]]
PcrValues = Mapping[str, Mapping[int, bytes]]


def check_ak(ak: Public) -> None:
    """Refuse an AK that could sign what the TPM did not make, or that could leave the TPM."""
    if ak.attributes & AK_MUST != AK_MUST:
        missing = ", ".join(flag.name or "" for flag in AK_MUST & ~ak.attributes)
        raise AttestationKeyError(
            f"the attestation key lacks {missing}", expected="a restricted signing key fixed to its TPM"
        )
    if ak.attributes & Attributes.DECRYPT:
        raise AttestationKeyError("the attestation key may also decrypt", expected="a key that only signs")
    if ak.scheme is None or ak.scheme[0] not in (ALG_ECDSA, ALG_RSASSA) or ak.scheme[1] not in STRONG_HASHES:
        raise AttestationKeyError(
            f"the attestation key's scheme is {ak.scheme}", expected="ECDSA or RSASSA with SHA-256 or more"
        )
    if (ak.scheme[0] == ALG_ECDSA) != isinstance(ak.key, ec.EllipticCurvePublicKey) or ak.name_alg not in STRONG_HASHES:
        raise AttestationKeyError("the attestation key's scheme or name algorithm does not fit its type")


def check_quote(ak: Public, attest: bytes, signature: bytes, *, qualifying_data: bytes, selection: Selection) -> Attest:
    """Steps 1 to 5: a quote by this AK for this qualifying data over exactly this selection."""
    check_ak(ak)
    _check_signature(ak, attest, parse_signature(signature))
    quote = parse_attest(attest)
    if not hmac.compare_digest(quote.extra_data, qualifying_data):
        raise QuoteError(
            "the quote is not for this challenge: its qualifying data differs",
            expected=qualifying_data.hex(),
            remedy="look for a replayed or relayed quote: something stands between the server and the controller",
        )
    if quote.qualified_signer != _qualified_name(ak):
        raise QuoteError("the attestation key is not a primary key of the endorsement hierarchy")
    asked = {bank: tuple(sorted(indices)) for bank, indices in selection.items()}
    forbidden = sorted(RESETTABLE_PCRS & {index for indices in asked.values() for index in indices})
    if forbidden or not asked or not all(asked.values()):
        raise QuoteError(f"policy asks for no PCRs, or for resettable PCRs {forbidden}", remedy="correct the policy")
    needed, *others = asked
    exact = quote.selection.get(needed) == asked[needed] and quote.selection.keys() <= asked.keys()
    if not exact or any(quote.selection.get(bank, ()) not in ((), asked[bank]) for bank in others):
        raise QuoteError(f"the quote covers other PCRs: {_words(quote.selection)}", expected=_words(asked))
    return quote


def check_values(ak: Public, quote: Attest, pcrs: PcrValues) -> bool:
    """Step 6: whether `pcrs`, which must be exactly of the quote's selection, have the quoted digest."""
    claimed = {bank: tuple(sorted(values)) for bank, values in pcrs.items() if values}
    if claimed != {bank: indices for bank, indices in quote.selection.items() if indices}:
        return False
    # Part 3, 18.4: banks in the order of the selection, PCRs ascending, hashed by the signing scheme's hash.
    joined = b"".join(pcrs[bank][index] for bank, indices in quote.selection.items() for index in indices)
    assert ak.scheme is not None  # check_ak
    return hmac.compare_digest(hashlib.new(ak.scheme[1], joined).digest(), quote.pcr_digest)


def _check_signature(ak: Public, attest: bytes, signature: Signature) -> None:
    if (signature.scheme, signature.hash) != ak.scheme:
        raise QuoteError(
            f"the quote is signed by scheme {signature.scheme:#06x} with {signature.hash}, not the AK's own"
        )
    verify_signature(ak.key, attest, signature)


def verify_signature(
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey | None, attest: bytes, signature: Signature
) -> None:
    """The signature is the key's, by ECDSA or RSASSA, over SHA-256 or more. Raises `QuoteError`."""
    algorithm = STRONG_HASHES.get(signature.hash)
    if algorithm is None or signature.scheme not in (ALG_ECDSA, ALG_RSASSA):
        raise QuoteError(f"the quote is signed by scheme {signature.scheme:#06x} with {signature.hash}")
    try:
        if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(signature.value, tuple):
            key.verify(utils.encode_dss_signature(*signature.value), attest, ec.ECDSA(algorithm))
        elif isinstance(key, rsa.RSAPublicKey) and isinstance(signature.value, bytes):
            key.verify(signature.value, attest, padding.PKCS1v15(), algorithm)
        else:
            raise QuoteError("the quote's signature does not fit the attestation key's type")
    except InvalidSignature as error:
        raise QuoteError("the quote's signature is not by the server's attestation key") from error


def _qualified_name(ak: Public) -> bytes:
    """Of a primary key: nameAlg || H(handle of the hierarchy || name) (Part 1, 16)."""
    return ak.name[:2] + hashlib.new(ak.name_alg, RH_ENDORSEMENT + ak.name).digest()


def _words(selection: Selection) -> str:
    return "; ".join(f"{bank}: {', '.join(map(str, indices))}" for bank, indices in selection.items()) or "none"
