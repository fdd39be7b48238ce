"""The certificate that the BMC serves: self-signed from the factory, replaced by the operator's."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from freehold_lab.bmc.messages import RedfishError
from freehold_lab.bmc.state import replace_file

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
SERVED, FACTORY, REQUESTED = "https.pem", "https-factory.pem", "https-request-key.pem"


def restore_factory_certificate(directory: Path) -> None:
    """As a BMC that is set back to its factory defaults: it serves its first key again from its next start on."""
    replace_file(directory / SERVED, (directory / FACTORY).read_bytes())


def forget_certificates(directory: Path) -> None:
    """As after a swap of the board: it makes a factory key that nobody has seen, at its next start."""
    for name in (SERVED, FACTORY, REQUESTED):
        (directory / name).unlink(missing_ok=True)


class TlsIdentity:
    """Key and certificate chain in one PEM file, so that both are replaced in one step. Made if missing."""

    def __init__(self, directory: Path, serial: str, manufacturer: str) -> None:
        self._path = directory / SERVED
        self._request_path = directory / REQUESTED
        if not self._path.exists():
            key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
            self._write(key, [_factory_certificate(key, serial, manufacturer)])
        factory = directory / FACTORY
        if not factory.exists():
            replace_file(factory, self._path.read_bytes())
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        # A BMC that kept its sessions would go on as the old identity after its certificate was replaced.
        self.context.options |= ssl.OP_NO_TICKET
        self.load()

    def load(self) -> None:
        """Serve what is in the file from the next handshake on."""
        self.context.load_cert_chain(self._path)

    @property
    def chain(self) -> list[x509.Certificate]:
        return x509.load_pem_x509_certificates(self._path.read_bytes())

    def request(self, subject: x509.Name, names: list[x509.GeneralName], algorithm: str, bits: int, curve: str) -> str:
        """A new key, kept until its certificate comes, and a PKCS #10 request for it as PEM."""
        key: PrivateKey
        if algorithm == "TPM_ALG_ECDSA":
            key = ec.generate_private_key(ec.SECP256R1() if curve == "TPM_ECC_NIST_P256" else ec.SECP384R1())
        else:
            key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
        replace_file(self._request_path, _key_pem(key))
        builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    def replace(self, pem: str, *, waits: bool = False) -> None:
        """Serve the certificate (chain) `pem` from the next handshake on, or, if it `waits`, from the next start on. It
        must fit the key of the last request or the present key, or bring its own key; raises
        ActionParameterValueError if not."""
        try:
            chain = x509.load_pem_x509_certificates(pem.encode())
        except ValueError as error:
            raise RedfishError("ActionParameterValueError", "CertificateString", "ReplaceCertificate") from error
        wanted = _public(chain[0].public_key())
        for source in (pem.encode(), *self._own_keys()):
            key = _load_key(source)
            if key is not None and _public(key.public_key()) == wanted:
                self._write(key, chain)
                if not waits:
                    self.load()
                self._request_path.unlink(missing_ok=True)
                return
        raise RedfishError("ActionParameterValueError", "CertificateString", "ReplaceCertificate")

    def _own_keys(self) -> list[bytes]:
        return [path.read_bytes() for path in (self._request_path, self._path) if path.exists()]

    def _write(self, key: PrivateKey, chain: list[x509.Certificate]) -> None:
        replace_file(self._path, _key_pem(key) + b"".join(c.public_bytes(serialization.Encoding.PEM) for c in chain))


def _factory_certificate(key: rsa.RSAPrivateKey, serial: str, manufacturer: str) -> x509.Certificate:
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "NO"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, manufacturer),
            x509.NameAttribute(NameOID.COMMON_NAME, f"hmc-{serial.lower()}"),
        ]
    )
    made = datetime.now(UTC) - timedelta(days=400)  # the day the board was made
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(made)
        .not_valid_after(made + timedelta(days=3650))
        .sign(key, hashes.SHA256())
    )


def _load_key(pem: bytes) -> PrivateKey | None:
    if b"PRIVATE KEY-----" not in pem:
        return None
    # A PEM file may hold certificates too; the loader wants the key's block alone.
    start = pem.index(b"-----BEGIN", max(0, pem.index(b"PRIVATE KEY-----") - 24))
    end = pem.index(b"PRIVATE KEY-----", pem.index(b"-----END", start)) + len(b"PRIVATE KEY-----")
    try:
        key = serialization.load_pem_private_key(pem[start:end] + b"\n", password=None)
    except ValueError:
        return None
    return key if isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) else None


def _key_pem(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _public(key: object) -> bytes:
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        return b""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
