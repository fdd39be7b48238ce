"""The whole protocol between a real software TPM and the verifier, then every check tampered with, one at a time."""

import hashlib
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from attest_support import log_bytes, policy, two_banks
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from freehold.agent import tpm as client
from freehold.agent.tpm import Key, Tpm, TpmError
from freehold.root_of_trust.attestation import ek, quote, session
from freehold.root_of_trust.attestation.appraise import Evidence, Verdict, appraise
from freehold.root_of_trust.attestation.credential import make_credential
from freehold.root_of_trust.attestation.errors import (
    AttestationError,
    AttestationKeyError,
    ChallengeError,
    EndorsementKeyError,
    MalformedEvidenceError,
    QuoteError,
)
from freehold.root_of_trust.attestation.event_log import parse_event_log
from freehold.root_of_trust.attestation.predict import BOOT_PHASES
from freehold.root_of_trust.attestation.session import Challenge, OpenChallenges, Response
from freehold.root_of_trust.attestation.structures import parse_attest, parse_public

sys.path.append(str(Path(__file__).parents[1] / "agent"))
from swtpm_support import Vendor, powered

pytestmark = pytest.mark.host
TLS = b"the controller's certificate"
KEY = b"the public key of the session"
NOW = datetime.now(UTC) + timedelta(hours=1)  # the certificates of these tests are made after this line


@dataclass
class Server:
    """A powered TPM into which the recorded boot was measured, and the agent's half of the protocol."""

    tpm: Tpm
    ek: Key
    ak: Key
    certificate: bytes
    log: bytes

    def challenge(self, **changes: object) -> Challenge:
        return session.new_challenge(self.ek.public, self.ak.public, now=NOW, **changes)  # type: ignore[arg-type]

    def answer(self, challenge: Challenge, *, tls: bytes = TLS, selection: object = None) -> Response:
        secret = self.tpm.activate_credential(self.ak, self.ek, challenge.credential_blob, challenge.encrypted_secret)
        data = session.qualifying_data(challenge.nonce, challenge.session, tls, KEY)
        attest, signature = self.tpm.quote(self.ak, data, selection or challenge.selection)  # type: ignore[arg-type]
        return Response(secret=secret, quote=attest, signature=signature, event_log=self.log, public_key=KEY)


@pytest.fixture(scope="module")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Vendor:
    return Vendor(tmp_path_factory.mktemp("vendor") / "v")


def boot(state: Path, log: bytes = b"") -> Iterator[Server]:
    log = log or log_bytes()
    with powered(state) as tpm, tpm.create_ek() as endorsement, tpm.create_ak() as ak:
        for event in parse_event_log(log).events:
            if event.type != 3:
                tpm.pcr_extend(event.pcr, dict(event.digests))
        certificate = tpm.ek_certificate()
        assert certificate is not None
        yield Server(tpm, endorsement, ak, certificate, log)


@pytest.fixture(scope="module")
def state(vendor: Vendor) -> Path:
    return vendor.make("one")


@pytest.fixture
def server(state: Path) -> Iterator[Server]:
    yield from boot(state)


@pytest.fixture
def other(vendor: Vendor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    state = vendor.directory / "two"
    yield from boot(state if state.exists() else vendor.make("two"))


def verify(challenge: Challenge, response: Response, **changes: object) -> object:
    given = {"tls_certificate": TLS, "now": NOW} | changes
    return session.verify_response(challenge, response, **given)  # type: ignore[arg-type]


def test_a_server_is_trusted_end_to_end(server: Server, vendor: Vendor) -> None:
    roots = ek.load_roots(vendor.roots())
    identity = ek.verify_ek(server.certificate, parse_public(server.ek.public), roots, now=NOW)
    assert identity.identity == hashlib.sha256(server.ek.public).hexdigest()
    assert identity.issuers[-1] == "CN=swtpm-localca-rootca"
    challenge = server.challenge()
    evidence = session.verify_response(challenge, server.answer(challenge), tls_certificate=TLS, now=NOW)
    assert evidence.ek_identity == identity.identity
    assert dict(evidence.pcrs) == server.tpm.pcr_read("sha256", challenge.selection["sha256"])
    verdict = appraise(evidence, policy(ek_identity=identity.identity), NOW)
    assert (verdict.trusted, verdict.reasons) == (True, ())


def test_boot_phases_of_a_running_system_are_found(server: Server) -> None:
    for phase in BOOT_PHASES[:3]:
        server.tpm.pcr_extend(11, {"sha256": hashlib.sha256(phase.encode()).digest()})
    challenge = server.challenge()
    response = server.answer(challenge)
    evidence = session.verify_response(challenge, response, tls_certificate=TLS, now=NOW)
    assert evidence.pcrs[11] == server.tpm.pcr_read("sha256", [11])[11]
    with pytest.raises(QuoteError, match="does not replay"):
        verify(challenge, response, phases=())


def test_a_name_is_computed_as_the_tpm_computes_it(server: Server) -> None:
    attest, _ = server.tpm.quote(server.ak, b"", {"sha256": [0]})
    ak = parse_public(server.ak.public)
    # Qualified name of a primary: nameAlg || H(handle of the hierarchy || name) (Part 1, 16).
    joined = hashlib.sha256(struct.pack(">I", client.ENDORSEMENT) + ak.name).digest()
    assert parse_attest(attest).qualified_signer == b"\0\x0b" + joined


def test_cve_2026_6420_no_two_challenges_are_alike(server: Server) -> None:
    challenges = [server.challenge() for _ in range(5)]
    for part in ("nonce", "session", "secret_hash", "credential_blob", "encrypted_secret"):
        assert len({getattr(one, part) for one in challenges}) == 5
    assert len(challenges[0].nonce) == 32


def test_a_quote_for_another_nonce_or_another_tls_peer_is_refused(server: Server) -> None:
    first, second = server.challenge(), server.challenge()
    mixed = replace(server.answer(second), quote=(old := server.answer(first)).quote, signature=old.signature)
    with pytest.raises(QuoteError, match="not for this challenge"):
        verify(second, mixed)
    with pytest.raises(QuoteError, match="not for this challenge"):
        verify(first, server.answer(first, tls=b"the certificate of one in the middle"))


def test_a_challenge_is_answered_once_and_in_time(server: Server) -> None:
    challenge, waiting = server.challenge(), OpenChallenges(most=2)
    waiting.add(challenge, NOW)
    assert waiting.take(challenge.session) is challenge
    with pytest.raises(ChallengeError, match="already spent"):
        waiting.take(challenge.session)
    late = challenge.expires_at
    assert late - NOW == timedelta(seconds=90)
    with pytest.raises(ChallengeError, match="expired"):
        verify(challenge, server.answer(challenge), now=late)
    for _ in range(2):
        waiting.add(server.challenge(), NOW)
    with pytest.raises(ChallengeError, match="2 challenges are open"):
        waiting.add(challenge, NOW)
    waiting.add(replace(challenge, expires_at=late + timedelta(seconds=9)), late)


def test_cve_2021_3406_the_ek_of_one_tpm_does_not_vouch_for_the_ak_of_another(server: Server, other: Server) -> None:
    challenge = session.new_challenge(other.ek.public, server.ak.public, now=NOW)
    for at in (server, other):
        with pytest.raises(TpmError, match="TPM2_ActivateCredential failed"):
            at.tpm.activate_credential(at.ak, at.ek, challenge.credential_blob, challenge.encrypted_secret)
    honest = server.challenge()
    guessed = replace(server.answer(honest), secret=bytes(32))
    with pytest.raises(ChallengeError, match="not of the EK's TPM"):
        verify(honest, guessed)


def test_the_certificate_of_another_tpm_is_refused(server: Server, other: Server, vendor: Vendor) -> None:
    roots = ek.load_roots(vendor.roots())
    with pytest.raises(EndorsementKeyError, match="of another key"):
        ek.verify_ek(other.certificate, parse_public(server.ek.public), roots, now=NOW)


def test_a_quote_does_not_vouch_for_the_key_of_somebody_who_puts_it_beside_it(server: Server) -> None:
    challenge = server.challenge()
    with pytest.raises(QuoteError, match="not for this challenge"):
        verify(challenge, replace(server.answer(challenge), public_key=b"the key of who stands in between"))


def test_a_quote_by_another_ak_is_refused(server: Server, other: Server) -> None:
    challenge = server.challenge()
    data = session.qualifying_data(challenge.nonce, challenge.session, TLS, KEY)
    attest, signature = other.tpm.quote(other.ak, data, challenge.selection)
    with pytest.raises(QuoteError, match="not by the server's attestation key"):
        verify(challenge, replace(server.answer(challenge), quote=attest, signature=signature))


@pytest.mark.parametrize(
    "selection", [{"sha256": [0]}, {"sha256": [16]}, {}, {"sha256": [*range(10), 11, 12, 13, 14, 15]}]
)
def test_cve_2022_0317_only_the_pcrs_that_were_asked_for_are_accepted(server: Server, selection: object) -> None:
    challenge = server.challenge()
    response = server.answer(challenge)
    data = session.qualifying_data(challenge.nonce, challenge.session, TLS, KEY)
    attest, signature = server.tpm.quote(server.ak, data, selection)  # type: ignore[arg-type]
    with pytest.raises(QuoteError, match="covers other PCRs"):
        verify(challenge, replace(response, quote=attest, signature=signature))


@pytest.mark.parametrize("selection", [{"sha256": (0, 16)}, {"sha256": (23,)}, {"sha256": ()}, {}])
def test_resettable_pcrs_and_no_pcrs_are_never_asked_for(server: Server, selection: dict[str, tuple[int, ...]]) -> None:
    challenge = server.challenge(selection=selection)
    response = server.answer(challenge, selection=selection or {"sha256": [0]})
    with pytest.raises(QuoteError, match="resettable"):
        verify(challenge, response)


def test_a_changed_log_does_not_replay(server: Server) -> None:
    challenge = server.challenge()
    response = server.answer(challenge)
    digest = parse_event_log(server.log).of_pcr(4)[-1].digests["sha256"]
    assert server.log.count(digest) == 1
    with pytest.raises(QuoteError, match="does not replay"):
        verify(challenge, replace(response, event_log=server.log.replace(digest, bytes(32))))
    server.tpm.pcr_extend(4, {"sha256": b"\1" * 32})  # something ran that the log does not show
    with pytest.raises(QuoteError, match="does not replay"):
        verify(challenge, server.answer(challenge))


def test_cve_2023_3674_every_flipped_byte_of_quote_or_signature_is_refused(server: Server) -> None:
    challenge = server.challenge()
    response = server.answer(challenge)
    verify(challenge, response)
    for part in ("quote", "signature"):
        whole = getattr(response, part)
        for at in range(len(whole)):
            flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
            with pytest.raises(AttestationError):
                verify(challenge, replace(response, **{part: flipped}))
        for cut in (b"", whole[:-1], whole + b"\0"):
            with pytest.raises(AttestationError):
                verify(challenge, replace(response, **{part: cut}))


def test_what_the_tpm_did_not_make_is_refused_even_if_the_key_signed_it() -> None:
    """Magic and type: a key that signs anything, so is not restricted, could forge the rest."""
    key = ec.generate_private_key(ec.SECP256R1())
    numbers = key.public_key().public_numbers()
    point = b"".join(struct.pack(">H", 32) + n.to_bytes(32, "big") for n in (numbers.x, numbers.y))
    ak = parse_public(client.AK_TEMPLATE[:-4] + point)
    name = hashlib.sha256(struct.pack(">I", client.ENDORSEMENT) + ak.name).digest()
    good = struct.pack(">IHHH", 0xFF544347, 0x8018, 34, 11) + name + bytes(2)
    good += bytes(25) + struct.pack(">IHBBBB", 1, 11, 3, 1, 0, 0)
    good += struct.pack(">H", 32) + bytes(32)

    def check(attest: bytes) -> None:
        r, s = utils.decode_dss_signature(key.sign(attest, ec.ECDSA(hashes.SHA256())))
        parts = b"".join(struct.pack(">H", 32) + n.to_bytes(32, "big") for n in (r, s))
        signature = struct.pack(">HH", 0x18, 0x0B) + parts
        quote.check_quote(ak, attest, signature, qualifying_data=b"", selection={"sha256": [0]})

    check(good)
    with pytest.raises(MalformedEvidenceError, match="no TPM made this"):
        check(b"\0" + good[1:])
    with pytest.raises(MalformedEvidenceError, match="not a quote"):
        check(good[:4] + b"\x80\x17" + good[6:])


def test_sha_1_and_a_scheme_that_is_not_the_keys_are_refused(server: Server) -> None:
    challenge = server.challenge()
    response = server.answer(challenge)
    for scheme, name in ((0x18, 0x04), (0x18, 0x0C), (0x14, 0x0B)):
        changed = struct.pack(">HH", scheme, name) + response.signature[4:]
        with pytest.raises(AttestationError):
            verify(challenge, replace(response, signature=changed))
    sha1 = server.ak.public.replace(struct.pack(">HH", 0x18, 0x0B), struct.pack(">HH", 0x18, 0x04))
    with pytest.raises(AttestationKeyError, match="SHA-256 or more"):
        session.new_challenge(server.ek.public, sha1, now=NOW)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        (0x00040472, "RESTRICTED"),
        (0x00050470, "FIXED_TPM"),
        (0x00050452, "SENSITIVE_DATA_ORIGIN"),
        (0x00070472, "decrypt"),
    ],
)
def test_an_ak_of_another_kind_is_refused(server: Server, attributes: int, words: str) -> None:
    public = server.ak.public[:4] + struct.pack(">I", attributes) + server.ak.public[8:]
    with pytest.raises(AttestationKeyError, match=words):
        session.new_challenge(server.ek.public, public, now=NOW)


def test_an_ek_of_another_template_is_refused(server: Server) -> None:
    changed = server.ek.public[:4] + struct.pack(">I", 0x000300F2) + server.ek.public[8:]  # userWithAuth
    with pytest.raises(EndorsementKeyError, match="attributes 0x300f2"):
        session.new_challenge(changed, server.ak.public, now=NOW)
    with pytest.raises(EndorsementKeyError, match="template L-2"):
        session.new_challenge(server.ak.public, server.ak.public, now=NOW)


def test_what_a_tpm_says_of_itself_is_held_against_its_last_quote(server: Server) -> None:
    first, second = attested(server), attested(server)
    assert judge(second, last_seen=first.tpm).trusted
    (reason,) = judge(first, last_seen=second.tpm).reasons
    assert reason.startswith("the TPM's clock went back from")
    server.tpm.clear()  # sets the counters to zero
    with server.tpm.create_ek() as endorsement, server.tpm.create_ak() as ak:
        cleared = attested(replace(server, ek=endorsement, ak=ak))
    assert cleared.tpm.clock.reset_count == 0
    assert judge(cleared).trusted
    (reason,) = judge(cleared, last_seen=second.tpm).reasons
    assert reason == f"the TPM's reset counters went back from {second.tpm.clock.reset_count}/0 to 0/0"


def attested(server: Server) -> Evidence:
    challenge = server.challenge()
    return session.verify_response(challenge, server.answer(challenge), tls_certificate=TLS, now=NOW)


def judge(evidence: Evidence, **changes: object) -> Verdict:
    return appraise(evidence, policy(ek_identity=evidence.ek_identity, **changes), NOW)


def test_the_certificate_of_a_software_tpm_obeys_the_rules(server: Server, vendor: Vendor, tmp_path: Path) -> None:
    public = parse_public(server.ek.public)
    with pytest.raises(EndorsementKeyError, match="unknown EK issuer CN=swtpm-localca"):
        ek.verify_ek(server.certificate, public, ek.load_roots(tmp_path), now=NOW)
    early = NOW - timedelta(days=400)
    for forgiving in (False, True):  # the CA's own dates are never forgiven
        with pytest.raises(EndorsementKeyError, match="is valid from"):
            ek.verify_ek(server.certificate, public, ek.load_roots(vendor.roots()), now=early, allow_expired=forgiving)


@pytest.mark.parametrize(
    ("options", "only", "template"),
    [
        ((), 0x01C00002, "L-1"), ((), 0x01C0000A, "L-2"), ((), 0x01C00012, "H-1"), ((), 0x01C00014, "H-2"),
        (("--ecc",), 0x01C00016, "H-3"), (("--rsa-keysize", "3072"), 0x01C0001C, "H-6"),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_credentials_are_activated_with_an_ek_of_each_template(
    vendor: Vendor, tmp_path: Path, options: tuple[str, ...], only: int, template: str
) -> None:
    """Those that swtpm certifies are verified with their certificates too; the key is what TPM2_CreatePrimary gives."""
    state = vendor.directory / f"ek-{template}"
    vendor.make(state.name, *options)
    with powered(state) as tpm, pytest.MonkeyPatch.context() as patch, tpm.create_ak() as ak:
        patch.setattr(client.endorsement, "TEMPLATES", {only: client.endorsement.TEMPLATES[only]})
        if (certificate := tpm.ek_certificate()) is None:
            patch.setattr(client.endorsement, "EK_TEMPLATE", client.endorsement.TEMPLATES[only])
        with tpm.create_ek() as endorsement:
            public = parse_public(endorsement.public)
            assert template in [one.name for one in ek.TEMPLATES if not ek._differences(public, one)]
            if certificate is not None:
                ek.verify_ek(certificate, public, ek.load_roots(vendor.roots()), now=NOW)
            challenge = session.new_challenge(endorsement.public, ak.public, now=NOW)
            secret = tpm.activate_credential(ak, endorsement, challenge.credential_blob, challenge.encrypted_secret)
            assert hashlib.sha256(secret).digest() == challenge.secret_hash
            other = make_credential(public, b"\0\x0b" + bytes(32), bytes(32))
            with pytest.raises(TpmError, match="INTEGRITY"):
                tpm.activate_credential(ak, endorsement, other.blob, other.encrypted_secret)
    assert (certificate is not None) == (template in ("L-1", "H-3", "H-6"))


def test_the_ek_is_the_first_that_the_vendor_certified(vendor: Vendor) -> None:
    with powered(vendor.make("large", "--rsa-keysize", "3072")) as tpm, tpm.create_ek() as endorsement:
        certificate = tpm.ek_certificate()
        assert certificate is not None
        public = parse_public(endorsement.public)
        assert public.key.key_size == 384  # ECC P-384: it has one, and RSA 3072, but none of the low range
        ek.verify_ek(certificate, public, ek.load_roots(vendor.roots()), now=NOW)


@pytest.fixture
def two_bank_server(vendor: Vendor) -> Iterator[Server]:
    state = vendor.directory / "two-banks"
    yield from boot(state if state.exists() else vendor.make("two-banks", banks="sha256,sha384"), two_banks())


def test_every_active_bank_is_quoted_and_replayed(two_bank_server: Server) -> None:
    evidence = attested(two_bank_server)
    assert evidence.tpm.banks == {"sha256": True, "sha384": True, "sha512": False, "sha1": False}
    verdict = judge(evidence)
    assert (verdict.trusted, verdict.reasons, verdict.findings) == (True, (), ())


def test_cve_2021_42299_a_bank_that_was_extended_apart_is_found(two_bank_server: Server) -> None:
    """Surface Pro 3: the firmware measured into one bank only, so what ran could fill the other with a good log.

    Ours quotes every active bank: the TPM itself says which those are, and each must be what the firmware's log makes.
    """
    server = two_bank_server
    server.tpm.pcr_extend(7, {"sha384": bytes(48)})
    with pytest.raises(QuoteError, match="does not replay"):
        attested(server)
    with pytest.raises(QuoteError, match="does not replay"):  # a log that leaves the bank out
        attested(replace(server, log=log_bytes()))
    challenge = server.challenge()
    response = server.answer(challenge, selection={"sha256": challenge.selection["sha256"]})
    # An agent that hides the bank does not hide it for long: the log has it, and so had the last quote.
    evidence = session.verify_response(challenge, response, tls_certificate=TLS, now=NOW)
    (finding,) = judge(evidence).findings
    assert "measures into PCR banks that are not in the quote: sha384" in finding.detail
    (reason,) = judge(evidence, last_seen=replace(evidence.tpm, banks={"sha256": True, "sha384": True})).reasons
    assert reason == "the quote leaves out PCR banks that this TPM has: sha384"


@pytest.mark.parametrize(
    ("bank", "why"), [("sha256", "no sha256 digest for every event; it has sha384"), ("sha384", "does not replay")]
)
def test_cve_2021_42299_a_log_that_leaves_a_bank_out_of_one_event_hides_nothing(
    two_bank_server: Server, bank: str, why: str
) -> None:
    with pytest.raises(QuoteError, match=why):
        attested(replace(two_bank_server, log=two_banks(last_lacks=bank)))


def test_cve_2021_42299_an_active_bank_that_the_firmware_does_not_measure_into_is_a_finding(vendor: Vendor) -> None:
    """The same machine before anything used the hole: the bank is empty, and somebody is told to turn it off."""
    for server in boot(vendor.make("unmeasured", banks="sha256,sha384")):
        verdict = judge(attested(server))
        assert verdict.trusted
        (finding,) = verdict.findings
        assert (finding.kind, finding.subject) == ("pcr-banks", "sha384")
        assert "turn these banks off" in finding.remedy


def test_an_ak_outside_the_endorsement_hierarchy_is_refused(server: Server) -> None:
    """For its quotes the TPM blurs counters and firmware version (Part 1, 36.7)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "ENDORSEMENT", client.OWNER)
        owned = server.tpm.create_ak()
    with pytest.raises(QuoteError, match="not a primary key of the endorsement hierarchy"):
        attested(replace(server, ak=owned))
