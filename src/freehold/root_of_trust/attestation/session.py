"""The two server-side steps of an attestation (docs/architecture.md, agent protocol 1 and 2).

A Challenge is frozen and good for one answer: `OpenChallenges.take` hands it out once, before anything is verified,
so that a failed answer cannot be improved.
"""

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from freehold.root_of_trust.attestation.appraise import BANK, Evidence, TpmState
from freehold.root_of_trust.attestation.credential import make_credential
from freehold.root_of_trust.attestation.ek import check_ek_template, ek_identity
from freehold.root_of_trust.attestation.errors import ChallengeError, QuoteError
from freehold.root_of_trust.attestation.event_log import DIGEST_SIZES, EventLog, extend, parse_event_log, replay
from freehold.root_of_trust.attestation.predict import BOOT_PHASES
from freehold.root_of_trust.attestation.quote import check_ak, check_quote, check_values
from freehold.root_of_trust.attestation.structures import Attest, Public, parse_public

# The PCRs that firmware and systemd-stub measure into; not 10 (IMA), 15 and up (the running system). Every bank is
# quoted that is active: what runs can fill a bank that the firmware does not measure into (CVE-2021-42299).
PCRS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14)
SELECTION: Mapping[str, Sequence[int]] = dict.fromkeys((BANK, "sha384", "sha512", "sha1"), PCRS)
LIFETIME = timedelta(seconds=90)
SECRET_BYTES = NONCE_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class Challenge:
    """What the server keeps of a hello, and (`credential_blob`, `encrypted_secret`, `nonce`, `selection`) its answer.

    Only the hash of the credential's secret is kept.
    """

    session: str
    credential_blob: bytes
    encrypted_secret: bytes
    secret_hash: bytes
    nonce: bytes
    selection: Mapping[str, Sequence[int]]
    expires_at: datetime
    ek_public: bytes
    ak_public: bytes


@dataclass(frozen=True, kw_only=True)
class Response:
    """The agent's answer: the recovered secret, TPMS_ATTEST, TPMT_SIGNATURE, the firmware's event log, and the public
    key (SubjectPublicKeyInfo, DER) that it will speak with."""

    secret: bytes
    quote: bytes
    signature: bytes
    event_log: bytes
    public_key: bytes


@dataclass
class OpenChallenges:
    """The challenges in flight, in memory only: a restart of the controller makes every agent say hello again."""

    most: int = 10_000
    _open: dict[str, Challenge] = field(default_factory=dict)

    def add(self, challenge: Challenge, now: datetime) -> None:
        """Keep it, and forget those that expired; refuses when too many are open."""
        self._open = {key: kept for key, kept in self._open.items() if kept.expires_at > now}
        if len(self._open) >= self.most:
            raise ChallengeError(f"{self.most} challenges are open", remedy="find out which machine asks so often")
        self._open[challenge.session] = challenge

    def take(self, session: str) -> Challenge:
        """The challenge, once; a second answer to it is refused."""
        challenge = self._open.pop(session, None)
        if challenge is None:
            raise ChallengeError("this challenge is unknown or already spent", remedy="the agent says hello again")
        return challenge


def new_challenge(
    ek_public: bytes,
    ak_public: bytes,
    *,
    now: datetime,
    lifetime: timedelta = LIFETIME,
    selection: Mapping[str, Sequence[int]] = SELECTION,
) -> Challenge:
    """A fresh challenge for these TPMT_PUBLICs; whether the EK is one to trust is `ek.verify_ek`'s question."""
    ek, ak = parse_public(ek_public), parse_public(ak_public)
    check_ek_template(ek)
    check_ak(ak)
    secret = secrets.token_bytes(SECRET_BYTES)
    credential = make_credential(ek, ak.name, secret)
    return Challenge(
        session=secrets.token_hex(16),
        credential_blob=credential.blob,
        encrypted_secret=credential.encrypted_secret,
        secret_hash=hashlib.sha256(secret).digest(),
        nonce=secrets.token_bytes(NONCE_BYTES),
        selection=selection,
        expires_at=now + lifetime,
        ek_public=ek_public,
        ak_public=ak_public,
    )


def qualifying_data(nonce: bytes, session: str, tls_certificate: bytes, public_key: bytes) -> bytes:
    """SHA-256(nonce || session || SHA-256(DER of the controller's certificate) || SHA-256(the agent's public key)): a
    relayed quote names another certificate, and nobody can put their own key beside somebody else's quote."""
    bound = hashlib.sha256(tls_certificate).digest() + hashlib.sha256(public_key).digest()
    return hashlib.sha256(nonce + session.encode() + bound).digest()


def verify_response(
    challenge: Challenge,
    response: Response,
    *,
    tls_certificate: bytes,
    now: datetime,
    phases: Iterable[str] = BOOT_PHASES,
) -> Evidence:
    """Evidence that this EK's TPM quoted these PCRs now and that the log replays to them; or an AttestationError.

    PCR values are never taken from the peer: they are the log's replay, with as many of the boot `phases` that
    systemd-pcrphase extends into PCR 11 without logging as make the quoted digest.
    """
    if now >= challenge.expires_at:
        raise ChallengeError("the challenge expired before the answer came", remedy="the agent says hello again")
    if not hmac.compare_digest(hashlib.sha256(response.secret).digest(), challenge.secret_hash):
        raise ChallengeError("the credential's secret was not recovered: the AK is not of the EK's TPM")
    ak = parse_public(challenge.ak_public)
    expected = qualifying_data(challenge.nonce, challenge.session, tls_certificate, response.public_key)
    quote = check_quote(ak, response.quote, response.signature, qualifying_data=expected, selection=challenge.selection)
    log = parse_event_log(response.event_log)
    return evidence_of(ak, ek_identity(challenge.ek_public), challenge.nonce, quote, log, now, tuple(phases))


def evidence_of(
    ak: Public, ek: str, nonce: bytes, quote: Attest, log: EventLog, now: datetime, phases: Sequence[str]
) -> Evidence:
    """Of a quote that `check_quote` passed, if the log replays to it; else a `QuoteError`. Policy is over SHA-256."""
    if BANK not in log.banks:
        raise QuoteError(
            f"the event log has no {BANK} digest for every event; it has {', '.join(log.banks)}",
            remedy=f"turn the TPM's {BANK} bank on in the firmware's setup",
        )
    values = _values(ak, quote, log, phases)
    banks = {bank: bool(indices) for bank, indices in quote.selection.items()}
    return Evidence(
        ek_identity=ek,
        ak_name=ak.name,
        nonce=nonce,
        pcrs=values[BANK],
        log=log,
        tpm=TpmState(clock=quote.clock, firmware_version=quote.firmware_version, banks=banks),
        quoted_at=now,
    )


def _values(ak: Public, quote: Attest, log: EventLog, phases: Sequence[str]) -> Mapping[str, Mapping[int, bytes]]:
    """A bank that is active and that the firmware does not log must be untouched, all zeros."""
    pcrs = {}
    for bank, indices in quote.selection.items():
        replayed = replay(log, bank) if bank in log.banks else dict.fromkeys(indices, bytes(DIGEST_SIZES[bank]))
        pcrs[bank] = {index: replayed[index] for index in indices if index in replayed}
    if check_values(ak, quote, pcrs):
        return pcrs
    for phase in phases:
        for bank, values in pcrs.items():
            if 11 in values and bank in log.banks:
                values[11] = extend(bank, values[11], hashlib.new(bank, phase.encode()).digest())
        if check_values(ak, quote, pcrs):
            return pcrs
    raise QuoteError(
        "the event log does not replay to the quoted PCR values",
        remedy="something was measured that the log does not show, or the log was changed on its way",
    )
