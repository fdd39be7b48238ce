"""What went wrong in other verifiers and must not go wrong here. The table of all of them is in docs/attestation.md;
those that need a TPM, the door or the agent's API are tested beside these."""

import base64
import hashlib
import re
import socket
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from attest_support import NOW, event, evidence, header, log_bytes, policy
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509.oid import AuthorityInformationAccessOID
from der_support import element, reissue
from test_attest_ek import EK, EK_USAGE, ENCIPHER, LEAF, MIDDLE_KEY, der, leaf, roots

from freehold.agent.tpm import AK_TEMPLATE, ENDORSEMENT
from freehold.root_of_trust.attestation import ek, session
from freehold.root_of_trust.attestation.appraise import appraise
from freehold.root_of_trust.attestation.errors import (
    AttestationError,
    ChallengeError,
    EndorsementKeyError,
    MalformedEvidenceError,
    QuoteError,
)
from freehold.root_of_trust.attestation.event_log import parse_event_log
from freehold.root_of_trust.attestation.quote import check_quote
from freehold.root_of_trust.attestation.session import Challenge, Response
from freehold.root_of_trust.attestation.structures import parse_public

TLS = b"certificate"
AK_KEY = ec.generate_private_key(ec.SECP256R1())


def ak_public() -> bytes:
    numbers = AK_KEY.public_key().public_numbers()
    return AK_TEMPLATE[:-4] + b"".join(struct.pack(">H", 32) + n.to_bytes(32, "big") for n in (numbers.x, numbers.y))


def signed(qualifying_data: bytes, selection: bytes, digest: bytes) -> tuple[bytes, bytes]:
    """What a TPM with this AK says: (TPMS_ATTEST, TPMT_SIGNATURE)."""
    name = parse_public(ak_public()).name
    qualified = name[:2] + hashlib.sha256(struct.pack(">I", ENDORSEMENT) + name).digest()
    attest = struct.pack(">IHH", 0xFF544347, 0x8018, len(qualified)) + qualified
    attest += struct.pack(">H", len(qualifying_data)) + qualifying_data + bytes(25) + selection
    attest += struct.pack(">H", len(digest)) + digest
    r, s = utils.decode_dss_signature(AK_KEY.sign(attest, ec.ECDSA(hashes.SHA256())))
    return attest, struct.pack(">HH", 0x18, 0x0B) + b"".join(
        struct.pack(">H", 32) + n.to_bytes(32, "big") for n in (r, s)
    )


def pcrs(*indices: int, bank: int = 0x0B) -> bytes:
    return struct.pack(">IHB", 1, bank, 3) + sum(1 << index for index in indices).to_bytes(3, "little")


def challenge() -> Challenge:
    return session.new_challenge(EK.raw, ak_public(), now=NOW)


def answered(given: Challenge, **changes: bytes) -> Response:
    whole = {"secret": b"s" * 32, "quote": b"q", "signature": b"s", "event_log": log_bytes(), "public_key": b"key"}
    return Response(**(whole | changes))


def test_cve_2022_1053_the_certificate_and_the_quote_are_of_one_ek() -> None:
    """keylime: the tenant checked the EK of one record, the verifier used the AK of another.

    Here the certificate is checked against the very bytes that the credential is made for, and identity is their hash.
    """
    other = replace(EK, raw=EK.raw[:-1] + bytes([EK.raw[-1] ^ 2]))
    assert ek.ek_identity(other.raw) != ek.ek_identity(EK.raw)
    with pytest.raises(EndorsementKeyError, match="of another key"):
        ek.verify_ek(der(leaf()), parse_public(other.raw), roots(), now=NOW)
    assert challenge().ek_public == EK.raw


@pytest.mark.parametrize("compressed", [zlib.compress(bytes(50_000_000), 9), b"\x1f\x8b\x08" + bytes(100)])
def test_cve_2022_23951_nothing_in_evidence_is_ever_inflated(compressed: bytes) -> None:
    """keylime: a quote was zlib data, and 50 MB of zeros fit into 49 kB. Here evidence is bytes with bounds."""
    for parse in (parse_event_log, parse_public):
        with pytest.raises(MalformedEvidenceError):
            parse(compressed)
    with pytest.raises(AttestationError):
        check_quote(parse_public(ak_public()), compressed, compressed, qualifying_data=b"", selection={"sha256": [0]})


def test_cve_2022_23949_names_that_a_stranger_chose_cannot_forge_a_line() -> None:
    """keylime: the agent's UUID went into the log as it came, line breaks included."""
    text = b"TPM\nfreehold: server-1 attested\x1b[2K\r"
    issuer = element(0x30, element(0x31, element(0x30, element(6, b"\x55\4\3"), element(12, text))))
    with pytest.raises(EndorsementKeyError, match="unknown EK issuer CN=TPM") as refused:
        ek.verify_ek(reissue(leaf(), MIDDLE_KEY, issuer=issuer), EK, roots(), now=NOW)
    assert refused.value.what.isprintable()
    image = struct.pack("<QQQQ", 0, 0, 0, 4 + len(text) * 2) + struct.pack("<BBH", 4, 4, 4 + len(text) * 2)
    path = image + text.decode().encode("utf-16-le")
    log = parse_event_log(header() + event(4, 0x80000003, path) + event(2, 0x80000004, path))
    reasons = appraise(evidence(log), policy(), NOW).reasons
    assert any("server-1 attested" in reason for reason in reasons)
    assert all(reason.isprintable() for reason in reasons)


def test_cve_2023_38201_a_refusal_does_not_say_what_would_have_been_right() -> None:
    """keylime: the registrar answered a wrong tag with the right one, so nobody needed the TPM."""
    given = challenge()
    with pytest.raises(ChallengeError) as refused:
        session.verify_response(given, answered(given), tls_certificate=TLS, now=NOW)
    told = str(refused.value)
    for secret in (given.secret_hash, given.credential_blob):
        assert secret.hex() not in told
        assert base64.b64encode(secret).decode() not in told
    assert refused.value.expected is None


def test_infra_controller_a_constant_instead_of_a_nonce_is_refused() -> None:
    """NVIDIA's controller quoted over sixteen bytes 0xFF, so an old quote was as good as a new one."""
    ak, selection = parse_public(ak_public()), {"sha256": [0]}
    attest, signature = signed(b"\xff" * 16, pcrs(0), bytes(32))
    check_quote(ak, attest, signature, qualifying_data=b"\xff" * 16, selection=selection)  # the quote itself is good
    expected = session.qualifying_data(challenge().nonce, "session", TLS, b"key")
    with pytest.raises(QuoteError, match="not for this challenge"):
        check_quote(ak, attest, signature, qualifying_data=expected, selection=selection)


@pytest.mark.parametrize(
    ("selection", "digest"),
    [(pcrs(), b""), (pcrs(1), bytes(32)), (pcrs(0, 1), bytes(32)), (pcrs(0, bank=4), bytes(32)), (bytes(4), bytes(32))],
    ids=["no PCRs", "another PCR", "one more PCR", "SHA-1 instead", "no bank"],
)
def test_infra_controller_and_cve_2022_0317_the_selection_is_compared_and_never_taken_from_the_quote(
    selection: bytes, digest: bytes
) -> None:
    """go-attestation took PCR values for quoted that were not; the other one never looked at the selection."""
    attest, signature = signed(b"n", selection, digest)
    with pytest.raises(QuoteError, match="covers other PCRs"):
        check_quote(parse_public(ak_public()), attest, signature, qualifying_data=b"n", selection={"sha256": [0]})


def test_ghsa_hcm6_rjfh_f25p_events_within_events_are_not_descended_into() -> None:
    """go-attestation: Windows' ELAM events nest, and the parser recursed as deep as an attacker liked.

    Here the data of an event is bytes. What is looked into (variables, images, paths, certificates) does not recurse.
    """
    nested = b""
    for _ in range(60_000):
        nested = struct.pack("<II", 0x40010001, len(nested) & 0xFFFFFFFF) + nested[:8]
    deep = struct.pack("<II", 0x40010001, 0) * 60_000
    log = parse_event_log(header() + event(12, 6, deep) + event(13, 6, nested))
    (reason, *_) = appraise(evidence(log), policy(), NOW).reasons
    assert reason
    certificate = b""
    for _ in range(2000):
        certificate = element(0x30, certificate)
    with pytest.raises(MalformedEvidenceError):
        ek.read_certificate(certificate)


def test_go_tpm_tools_177632b0_nothing_is_fetched_that_a_certificate_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """go-tpm-tools downloaded the issuer from wherever the certificate said, as much as came."""

    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("the verifier went to the network")

    monkeypatch.setattr(socket, "socket", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    place = x509.UniformResourceIdentifier("http://127.0.0.1:9/issuer.crt")
    access = x509.AuthorityInformationAccess([x509.AccessDescription(AuthorityInformationAccessOID.CA_ISSUERS, place)])
    plain = leaf(LEAF, EK_USAGE, ENCIPHER)
    builder = x509.CertificateBuilder(
        plain.issuer, plain.subject, plain.public_key(), 7, plain.not_valid_before_utc, plain.not_valid_after_utc,
        [*plain.extensions, x509.Extension(access.oid, False, access)],
    )  # fmt: skip
    made = builder.sign(MIDDLE_KEY, hashes.SHA256())
    with pytest.raises(EndorsementKeyError, match="unknown EK issuer CN=Middle"):
        ek.verify_ek(der(made), EK, ek.TpmRoots(certificates=()), now=NOW)
    assert ek.verify_ek(der(made), EK, roots(), now=NOW).issuers


def test_event_log_disclosure_2019_a_types_word_counts_for_nothing() -> None:
    """go-attestation's disclosure: types (and most data) are not measured, so whoever skips unknown types skips what an
    attacker relabels. Here no event of a policed PCR is skipped, and NO_ACTION extends nothing."""
    log = parse_event_log(log_bytes())
    for kind in (0x05, 0x06, 0x0D, 0x80000007, 0xDEADBEEF):
        one = parse_event_log(header() + event(4, kind, b"x")).events[0]
        assert not appraise(evidence(replace(log, events=(*log.events, one))), policy(), NOW).trusted
    silent = parse_event_log(header() + event(4, 3, b"x")).events[0]
    assert appraise(evidence(replace(log, events=(*log.events, silent))), policy(), NOW).trusted


def test_every_row_of_the_documents_table_is_a_test() -> None:
    tests = Path(__file__).parents[1]
    page = (tests.parent / "docs/attestation.md").read_text()
    table = page.partition("## What went wrong elsewhere")[2]
    _, *rows = re.findall(r"^\| (.+?) \| .+? \| (.+?) \|$", table, re.MULTILINE)
    assert len(rows) == 23
    for number, here in rows:
        name = re.sub("[^a-z0-9]", "_", number.lower())
        files = re.findall(r"`(test_\w+)`", here)
        assert files, number
        for file in files:
            (path,) = tests.rglob(f"{file}.py")
            assert re.search(rf"def test_\w*{name}", path.read_text()), f"{file} has no test for {number}"
