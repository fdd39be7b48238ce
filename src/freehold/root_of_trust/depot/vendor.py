"""The vendor's signature, looked at once, when a package comes in. What was seen is part of what the operators sign.

Every key that counts is one that the operator hands over: no keyring of the user, no CA store of the system. OpenPGP
is checked by `gpgv`, PKCS #7 by `openssl cms`, each in an empty directory and on the very file that is kept, by
descriptor.
"""

import base64
import binascii
import hashlib
import os
import ssl
import subprocess
import tempfile
from collections.abc import Sequence
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

from freehold.root_of_trust.depot import cms, jcat
from freehold.root_of_trust.depot.errors import DepotError, VendorSignatureRefused
from freehold.root_of_trust.depot.package import Scheme

_SECONDS = 600
_WEAK_DIGESTS = ("SHA1", "RIPEMD160")  # gpgv refuses MD5 by itself
_AUTH_LEVEL = "2"  # 112 bits (openssl-verification-options): RSA of 2048 bits or more, no certificate signed with SHA-1
_BAD_STATUS = {"BADSIG", "ERRSIG", "EXPSIG", "EXPKEYSIG", "REVKEYSIG"}
_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
_REMEDY = (
    "make sure that file, signature and keys come from the vendor. A certificate that has expired since is checked "
    "with --as-of DAY; a package that its vendor did not sign is imported only with --unsigned-because"
)


class Verified(NamedTuple):
    """By whose key: see `package.VendorSignature`."""

    scheme: Scheme
    fingerprint: str


def verify(
    file: BinaryIO | FileIO, digest: str, name: str, signature: bytes, trust: bytes, as_of: datetime | None = None
) -> Verified:
    """Verifies a detached signature of `file` (a file on disk, open for reading; its position changes).

    `digest`: its SHA-256 in hex. `name`: what a catalogue calls it. `signature`: OpenPGP, PKCS #7, or a jcat catalogue.
    `trust`: an OpenPGP keyring, or certificates in PEM: CAs, or the signer's own. `as_of`: the moment at which
    certificates must be valid, default now. Raises `VendorSignatureRefused`.
    """
    by_certificate = _CERTIFICATE in trust
    if not jcat.is_jcat(signature):
        if by_certificate:
            return Verified(Scheme.PKCS7, _verify_pkcs7(file, signature, trust, as_of))
        return Verified(Scheme.PGP, _verify_pgp(file, signature, trust))
    problems = []
    for found in jcat.signatures(signature, name, digest, jcat.PKCS7 if by_certificate else jcat.GPG):
        with tempfile.TemporaryFile() as text:
            text.write(digest.encode())
            text.flush()
            signed: BinaryIO | FileIO = text if found.over_digest else file
            try:
                if by_certificate:
                    return Verified(Scheme.JCAT_PKCS7, _verify_pkcs7(signed, found.data, trust, as_of))
                return Verified(Scheme.JCAT_PGP, _verify_pgp(signed, found.data, trust))
            except VendorSignatureRefused as error:
                problems.append(error.what)
    raise VendorSignatureRefused(
        f"no signature in the catalogue verifies {name}: {'; '.join(problems) or 'it has none of that kind'}",
        remedy=_REMEDY,
    )


def _verify_pgp(file: BinaryIO | FileIO, signature: bytes, keyring: bytes) -> str:
    """Fingerprint of the primary key."""
    with tempfile.TemporaryDirectory(prefix="freehold-pgp-") as directory:
        ring, detached = Path(directory) / "ring", Path(directory) / "signature"
        ring.write_bytes(_dearmored(keyring))
        detached.write_bytes(signature)
        weak = [word for digest in _WEAK_DIGESTS for word in ("--weak-digest", digest)]
        command = [
            "gpgv",
            "--homedir",
            directory,
            "--status-fd",
            "1",
            *weak,
            "--keyring",
            str(ring),
            str(detached),
            "-",
        ]
        done = _run(command, file, directory)
    status = [
        line.split()[1:] for line in done.stdout.decode(errors="replace").splitlines() if line.startswith("[GNUPG:] ")
    ]
    valid = [words for words in status if words[0] == "VALIDSIG"]
    if done.returncode != 0 or not valid or any(words[0] in _BAD_STATUS for words in status):
        raise _refused("OpenPGP", done)
    return valid[0][-1].lower()


def _verify_pkcs7(file: BinaryIO | FileIO, signature: bytes, anchors: bytes, as_of: datetime | None) -> str:
    """SHA-256 of the signer's certificate. It may be for any purpose: vendors' are for code, not for mail."""
    binary = _strong(signature)
    with tempfile.TemporaryDirectory(prefix="freehold-pkcs7-") as directory:
        trusted, detached, signer = (Path(directory) / name for name in ("anchors.pem", "signature", "signer.pem"))
        trusted.write_bytes(anchors)
        detached.write_bytes(binary)
        command = [
            "openssl",
            "cms",
            "-verify",
            "-binary",
            "-auth_level",
            _AUTH_LEVEL,
            "-inform",
            "DER",
            "-in",
            str(detached),
            "-content",
            "/dev/stdin",
        ]
        command += ["-CAfile", str(trusted), "-no-CApath", "-no-CAstore", "-partial_chain", "-purpose", "any"]
        command += ["-attime", str(int(as_of.timestamp()))] if as_of else []
        done = _run([*command, "-signer", str(signer), "-out", "/dev/null"], file, directory)
        if done.returncode != 0 or not signer.exists():
            raise _refused("PKCS #7", done)
        first = signer.read_text().partition("-----END CERTIFICATE-----")
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert("".join(first[:2]).strip())).hexdigest()


def _strong(signature: bytes) -> bytes:
    """The signature in DER, if no signer relies on a weak digest: what is judged here is what openssl verifies."""
    try:
        binary = cms.der(signature)
        weak = cms.weak_digest(binary)
    except Exception as error:  # what cannot be judged is not trusted
        raise VendorSignatureRefused(
            f"the vendor's PKCS #7 signature cannot be read: {error}", remedy=_REMEDY
        ) from error
    if weak is None:
        return binary
    raise VendorSignatureRefused(
        f"the vendor's PKCS #7 signature relies on {weak}, which another file can be made to fit",
        expected="SHA-256 or better",
        remedy="ask the vendor for a signature of today; what has none is imported only with --unsigned-because",
    )


def _run(command: Sequence[str], file: BinaryIO | FileIO, directory: str) -> subprocess.CompletedProcess[bytes]:
    os.lseek(file.fileno(), 0, os.SEEK_SET)
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "LC_ALL": "C",
        "OPENSSL_CONF": os.devnull,
        "HOME": directory,
    }
    try:
        return subprocess.run(
            command, stdin=file, capture_output=True, env=environment, cwd=directory, timeout=_SECONDS, check=False
        )
    except FileNotFoundError as error:
        raise DepotError(f"{command[0]} is not installed", remedy=f"apt-get install {command[0]}") from error
    except subprocess.TimeoutExpired as error:
        raise VendorSignatureRefused(f"{command[0]} did not come to an end in {_SECONDS} s") from error


def _dearmored(keyring: bytes) -> bytes:
    """gpgv reads binary keyrings only; vendors publish armored ones (RFC 9580, 6.2)."""
    if not keyring.lstrip().startswith(b"-----BEGIN PGP PUBLIC KEY BLOCK-----"):
        return keyring
    found, body = bytearray(), None
    for line in keyring.splitlines():
        if line.startswith(b"-----END"):
            found += _decoded(body or b"")
            body = None
        elif body is not None and not line.startswith(b"="):
            body += line.strip()
        elif not line.strip() and body is None:
            body = b""
    return bytes(found)


def _decoded(body: bytes) -> bytes:
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise VendorSignatureRefused(f"the keyring is not what it looks like: {error}", remedy=_REMEDY) from error


def _plain(line: str) -> str:
    """The words of an OpenSSL error (`ID:error:CODE:LIBRARY:FUNCTION:REASON:FILE:LINE:DATA`)."""
    fields = line.split(":", 8)
    return ": ".join(part for part in (fields[5], fields[8]) if part) if len(fields) == 9 else line


def _refused(kind: str, done: subprocess.CompletedProcess[bytes]) -> VendorSignatureRefused:
    lines = [_plain(line) for line in done.stderr.decode(errors="replace").strip().splitlines()]
    return VendorSignatureRefused(
        f"the vendor's {kind} signature does not verify: {' / '.join(lines[-3:]) or 'no reason was given'}",
        expected="a valid signature by one of the keys given with --trust",
        remedy=_REMEDY,
    )
