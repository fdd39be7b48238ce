"""Which algorithms a CMS signature (RFC 5652, 5.3) was made with. Pure: bytes in, the weakness in words out.

`openssl cms` verifies whatever digest a SignerInfo names, MD5 too, and has no option against it.
"""

from typing import Any

from asn1crypto import cms, pem

STRONG = frozenset({"sha256", "sha384", "sha512", "sha512_256", "sha3_256", "sha3_384", "sha3_512"})
_BY_THE_DIGEST = frozenset({"rsassa_pkcs1v15", "ecdsa"})  # algorithms that leave the digest to `digestAlgorithm`


def der(signature: bytes) -> bytes:
    """A signature in DER, from DER or from PEM with one block. Raises `ValueError`."""
    if not signature.lstrip().startswith(b"-----BEGIN"):
        return signature
    blocks = list(pem.unarmor(signature, multiple=True))
    if len(blocks) != 1:
        raise ValueError(f"{len(blocks)} blocks of PEM where one belongs")
    return bytes(blocks[0][2])


def weak_digest(signature: bytes) -> str | None:
    """The first digest below SHA-256 (or algorithm that is not known) that a signer of this SignedData (DER) relies on;
    None: there is none. Raises `ValueError`, or what asn1crypto raises, if it cannot be read."""
    content = cms.ContentInfo.load(signature)
    if content["content_type"].native != "signed_data":
        raise ValueError("it is no SignedData")
    signers = content["content"]["signer_infos"]
    named = [name for signer in signers for name in _digests(signer)]
    return next((name for name in named if name not in STRONG), None)


def _digests(signer: Any) -> list[str]:
    algorithm = signer["signature_algorithm"]
    name = algorithm["algorithm"].native
    names = [signer["digest_algorithm"]["algorithm"].native]
    if name == "rsassa_pss":  # its own digest, and the one of its mask (RFC 4055, 3.1); both are SHA-1 by default
        parameters = algorithm["parameters"]
        mask = parameters["mask_gen_algorithm"]["parameters"]
        names += [parameters["hash_algorithm"]["algorithm"].native, mask["algorithm"].native]
    elif name in ("ed25519", "ed448"):
        pass  # the digest is part of the algorithm (RFC 8419)
    elif name not in _BY_THE_DIGEST:
        names.append(name.partition("_rsa")[0].partition("_ecdsa")[0])  # `sha256_rsa`; what is unknown stays weak
    return names
