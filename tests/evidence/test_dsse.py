import json
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from freehold.evidence import (
    Ed25519Signer,
    Envelope,
    EnvelopeRefused,
    KeyRefused,
    Predicate,
    PublicKey,
    Statement,
    StatementRefused,
    Subject,
    canonical,
    dsse,
    statement,
)

SIGNER = Ed25519Signer.generate()
KEY = SIGNER.public_key
CLAIM = Statement.claim(Predicate.DRIFT, [Subject.of_name("server/r1")], {"what": "boot order", "at": "2026-11-23"})


def test_pae_is_that_of_the_specification() -> None:
    encoded = dsse.pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
    assert encoded == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_a_signed_payload_comes_back() -> None:
    data = dsse.sign(b"payload", "text/plain", SIGNER).to_bytes()
    assert dsse.verify(data, "text/plain", KEY) == b"payload"
    assert json.loads(data)["signatures"][0]["keyid"] == KEY.key_id


def test_every_single_bit_of_an_envelope_counts() -> None:
    data = dsse.sign(b"payload", "text/plain", SIGNER).to_bytes()
    for at in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            with pytest.raises(EnvelopeRefused):
                dsse.verify(bytes(changed), "text/plain", KEY)


def test_every_truncation_and_addition_is_refused() -> None:
    data = dsse.sign(b"payload", "text/plain", SIGNER).to_bytes()
    for changed in [data[:n] for n in range(len(data))] + [data + b"\n", b" " + data, data + data]:
        with pytest.raises(EnvelopeRefused):
            dsse.verify(changed, "text/plain", KEY)


def spellings() -> dict[str, bytes]:
    data = dsse.sign(b"a", "text/plain", SIGNER).to_bytes()
    document = json.loads(data)
    two = {**document, "signatures": document["signatures"] * 2}
    return {
        "pretty": json.dumps(document, indent=1).encode(),
        "duplicate key": data.replace(b'{"payload":', b'{"payload":"YQ==","payload":', 1),
        "unknown member": canonical.dumps({**document, "x": 1}),
        "trailing bits in base64": data.replace(b"YQ==", b"YR=="),
        "missing padding": data.replace(b"YQ==", b"YQ"),
        "url-safe base64": canonical.dumps({**document, "payload": "-_-_"}),
        "two signatures": canonical.dumps(two),
        "no signature": canonical.dumps({**document, "signatures": []}),
        "not an object": b"[]",
        "deep": b"[" * 100_000,
        "not UTF-8": b"\xff",
        "lone surrogate": canonical.dumps({**document, "payloadType": "@"}).replace(b'"@"', b'"\\ud800"'),
    }


@pytest.mark.parametrize("name", spellings())
def test_another_spelling_is_refused(name: str) -> None:
    with pytest.raises(EnvelopeRefused):
        dsse.verify(spellings()[name], "text/plain", KEY)


def test_another_type_or_key_is_refused_in_words() -> None:
    data = dsse.sign(b"a", "text/plain", SIGNER).to_bytes()
    with pytest.raises(EnvelopeRefused, match=r"holds 'text/plain'[\s\S]*expected: text/html"):
        dsse.verify(data, "text/html", KEY)
    with pytest.raises(EnvelopeRefused, match="signed by key"):
        dsse.verify(data, "text/plain", Ed25519Signer.generate().public_key)
    claimed = Envelope(payload=b"a", payload_type="t", key_id=KEY.key_id, signature=Ed25519Signer.generate().sign(b"a"))
    with pytest.raises(EnvelopeRefused, match="does not match"):
        dsse.verify(claimed.to_bytes(), "t", KEY)


def test_a_key_of_another_kind_is_refused() -> None:
    pem = (
        ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(KeyRefused, match="Ed25519"):
        PublicKey.from_pem(pem)
    with pytest.raises(KeyRefused, match="PEM"):
        PublicKey.from_pem(b"hello")


def test_a_statement_comes_back_with_the_architectures_predicate_type() -> None:
    found = statement.verify(statement.sign(CLAIM, SIGNER).to_bytes(), KEY)
    assert found == CLAIM
    assert found.kind is Predicate.DRIFT
    assert found.predicate_type == "https://freehold.dev/drift/v1"
    assert json.loads(CLAIM.to_bytes())["_type"] == "https://in-toto.io/Statement/v1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_type": "https://in-toto.io/Statement/v0.1"}, "Statement/v1"),
        ({"subject": []}, "no subject"),
        ({"subject": [{"name": "a", "digest": {"sha256": "AB"}}]}, "digest of subject 'a'"),
        ({"subject": [{"name": "a", "digest": {"md5": "00"}}]}, "digest of subject 'a'"),
        ({"predicateType": "https://freehold.dev/drift/v2"}, "unknown predicateType"),
        ({"extra": 1}, "extra"),
        ({"predicate": []}, "predicate"),
    ],
)
def test_a_malformed_statement_is_refused(change: dict[str, object], message: str) -> None:
    data = canonical.dumps({**json.loads(CLAIM.to_bytes()), **change})
    with pytest.raises(StatementRefused, match=message):
        Statement.from_bytes(data)


@pytest.mark.parametrize("facts", [{"x": float("nan")}, {"x": object()}, {"x": "\ud800"}])
def test_facts_that_json_cannot_hold_are_refused_before_they_are_signed(facts: dict[str, object]) -> None:
    with pytest.raises(StatementRefused, match="cannot be written"):
        Statement.claim(Predicate.DRIFT, [Subject.of_name("a")], facts).to_bytes()


@pytest.mark.host
def test_openssl_agrees(tmp_path: Path) -> None:
    payload = CLAIM.to_bytes()
    envelope = statement.sign(CLAIM, SIGNER)
    (tmp_path / "key.pem").write_bytes(KEY.pem)
    (tmp_path / "sig").write_bytes(envelope.signature)
    command = [
        "openssl",
        "pkeyutl",
        "-verify",
        "-pubin",
        "-inkey",
        "key.pem",
        "-rawin",
        "-in",
        "pae",
        "-sigfile",
        "sig",
    ]
    for pae, code in ((dsse.pre_authentication_encoding(statement.PAYLOAD_TYPE, payload), 0), (payload, 1)):
        (tmp_path / "pae").write_bytes(pae)
        assert subprocess.run(command, cwd=tmp_path, check=False, capture_output=True).returncode == code
