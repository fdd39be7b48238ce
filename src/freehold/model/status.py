"""What was observed and established about a server. Times are UNIX seconds (UTC)."""

from enum import StrEnum
from typing import Any, Literal

import msgspec

from freehold.model.findings import Finding
from freehold.model.resources import AssignmentSpec, DriftKind, Waivable


class ServerState(StrEnum):
    ENROLLED = "enrolled"
    SECURING = "securing"
    DISCOVERING = "discovering"
    PREPARING = "preparing"
    AVAILABLE = "available"
    PROVISIONING = "provisioning"
    ATTESTING = "attesting"
    ACTIVE = "active"
    DRIFTED = "drifted"
    REMEDIATING = "remediating"
    DECOMMISSIONING = "decommissioning"
    QUARANTINED = "quarantined"
    RETIRED = "retired"


class ImageFact(msgspec.Struct, frozen=True, kw_only=True):
    """The image that a server was given: `manifest` is the SHA-256 (hex) of the signed manifest's payload, `agent_ca`
    the generation of the agent CA by which its agent knows the controller."""

    name: str
    version: str
    manifest: str
    agent_ca: int = 1


class FirmwareFact(msgspec.Struct, frozen=True, kw_only=True):
    """The board, and the version of its BIOS as its BMC last told it."""

    vendor: str
    model: str
    version: str


class SentFirmware(msgspec.Struct, frozen=True, kw_only=True):
    """BMC firmware that was sent, until the BMC tells of it. `at`: UNIX seconds. `seen`: the BMC said that it was done.
    `owed`: the statement about it, written down before it is sent, until that is in the evidence log."""

    version: str
    at: float
    seen: bool = True
    owed: dict[str, Any] | None = None


class Medium(msgspec.Struct, frozen=True, kw_only=True):
    """One storage medium on its way out. `verified` is None until it was read back, False if data was found."""

    serial: str
    planted: bool = False
    sanitized: bool = False
    verified: bool | None = None
    details: dict[str, Any] = {}


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    kind: DriftKind
    subject: str
    expected: str
    observed: str


class Tenancy(msgspec.Struct, frozen=True, kw_only=True):
    """The assignment as it was when the server was given: what is declared later does not change a tenancy."""

    name: str
    revision: str
    spec: AssignmentSpec


class BmcCertificate(msgspec.Struct, frozen=True, kw_only=True):
    """The certificate of the site's BMC CA that the BMC was seen to serve. `serial` and `sha256` (of the DER) are hex,
    times UNIX seconds. `issuer`: the CA's key, as `pki.key_id`; None: kept before CAs could be replaced."""

    serial: str
    sha256: str
    not_before: float
    not_after: float
    issuer: str | None = None


class PendingCertificate(msgspec.Struct, frozen=True, kw_only=True):
    """The write-ahead record of a certificate change: issued, and not yet seen to be served. `sent_at`: when the BMC
    accepted it; `restarted_at`: when the BMC was restarted because it went on to serve the old one; `given_up`: another
    one is to be made, and the BMC may still come to serve this one."""

    pem: str
    sent_at: float | None = None
    restarted_at: float | None = None
    given_up: bool = False


class RotationTurn(msgspec.Struct, frozen=True, kw_only=True):
    """The slot that a server has for its next rotation, taken at that time (UNIX seconds)."""

    slot: int
    taken: float


class Facts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What has been established. A field is None or False until a step established it; `lifecycle.FORGETS` says which
    facts a server loses on entering a state."""

    # securing
    bmc_key_seen: str | None = None  # what first contact found, until a person confirms it: SHA-256 of the SPKI, hex
    bmc_identity: str | None = None  # SHA-256 of the BMC certificate's SubjectPublicKeyInfo, hex
    bmc_address: str | None = None  # where that key was pinned: its credential goes nowhere else
    bmc_credential_committed: bool = False
    bmc_credential_since: float | None = None  # when the password that the BMC has now was put on it
    rotation_turn: RotationTurn | None = None
    bmc_certificate: BmcCertificate | None = None  # once it is there, only the site's BMC CA is accepted
    bmc_certificate_pending: PendingCertificate | None = None
    bmc_certificate_waived: bool = False  # it cannot take one, and a waiver says that it need not
    factory_accounts_disabled: bool = False
    ipmi_off: bool = False
    ipmi_waived: bool = False  # its BMC answers IPMI and cannot be kept from it, and a waiver says that it may
    services_closed: bool = False
    services_left_open: tuple[str, ...] = ()  # what the BMC did not let us close, as `hardening.opened` names it
    posture_recorded: bool = False
    # discovering
    oob_inventory: dict[str, Any] | None = None
    inband_inventory: dict[str, Any] | None = None
    inventory_agrees: bool = False
    ek_sha256: str | None = None  # SHA-256 of the EK's TPMT_PUBLIC, hex
    tpm_missing: float | None = None  # when our agent on it last said that there is no usable TPM
    tpm_waived: bool = False  # it has none, and a waiver says that it goes without: `ek_sha256` will not come
    agent_released: bool = False
    firmware: FirmwareFact | None = None
    bmc_version: str | None = None  # of the BMC's own firmware, as it last told it
    bmc_firmware_sent: SentFirmware | None = None
    remeasured: bool = False  # a person released it with other firmware than it was approved with
    learned_reference: dict[str, tuple[str, ...]] | None = None  # PCR ("0", "2") -> hex digests of its events, in order
    # preparing
    bios_applied: bool = False
    secure_boot_enrolled: bool = False
    secure_boot_generation: int | None = None  # of the site's keys, as enrolled; None: the first, if any was
    secure_boot_confirmed: int | None = None  # the generation that PCR 7 of a boot has shown; a BMC only says so
    secure_boot_waived: bool = False  # nothing could enrol them, and a waiver says that it goes without
    secure_boot_changing: bool = False  # its keys are being written: nobody knows what its firmware would measure
    enrolment_booted_at: float | None = None  # when it was started into the enrolment image, until that is done
    reference_values: dict[str, tuple[str, ...]] | None = None  # as `learned_reference`: what boots are held against
    reference_id: str | None = None  # the approved `ReferenceValues` that they are; None: learned only
    # agent: when the machine was last started into the agent's ramdisk
    agent_booted_at: float | None = None
    agent_uki: str | None = None  # SHA-256 of the agent's UKI that was booted then
    agent_trust: tuple[int, int] | None = None  # what it believes, as in `ServerView`; None: the first keys
    boot_ticket: str | None = None  # SHA-256 (hex) of the ticket that this boot was given in place of a TPM
    # provisioning, attesting
    tenancy: Tenancy | None = None
    image: ImageFact | None = None
    image_written: bool = False
    seed_written: bool = False
    os_ticket: str | None = None  # SHA-256 (hex) of the ticket on its disk, which nobody but the machine ever had
    boot_entry_set: bool = False
    os_booted_at: float | None = None
    last_attestation: float | None = None
    attestation_demanded: float | None = None  # when the OS was first told to attest anew; counts until it has
    waivers_ended: tuple[Waivable, ...] = ()  # what it lives without, as people were last told, though no waiver holds
    revocations_checked: int | None = None  # newest generation of the site's keys that its OS image was held against
    image_revoked: str | None = None  # digest (Authenticode, hex) of its OS image, if dbx of that generation holds it
    released_at: float | None = None  # when a person last let it out of quarantine: what was proved before is stale
    # drift
    baseline: dict[str, Any] | None = None  # `operations.drift.Observation`, as accepted when the server became active
    drift: tuple[Drift, ...] = ()
    last_drift_check: float | None = None
    remediated: tuple[DriftKind, ...] = ()
    last_remediation: float | None = None
    # decommissioning
    workload_stopped: bool = False
    media: tuple[Medium, ...] | None = None
    missing_media: tuple[str, ...] = ()  # serial numbers of disks that a waiver lets go unaccounted for
    tpm_cleared: bool = False  # or there is none to clear, by a waiver
    keys_destroyed: bool = False
    state_reasserted: bool = False
    certificate_index: int | None = None  # leaf of the destruction certificate in the evidence log
    ended_assignment: str | None = None  # revision of the assignment that a decommissioning ended


class ServerStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Written by the engine only. `reason` says why the server is in this state, `waiting_for` what it needs."""

    state: ServerState = ServerState.ENROLLED
    state_since: float = 0.0
    reason: str = "declared"
    step: str = ""
    waiting_for: str = ""
    attempts: int = 0
    retry_at: float | None = None
    deadline: float | None = None
    stuck: bool = False
    paused: bool = False
    observed_generation: int = 0
    quarantined_from: ServerState | None = None
    retiring: bool = False
    facts: Facts = Facts()
    findings: tuple[Finding, ...] = ()


class AgentSession(msgspec.Struct, frozen=True, kw_only=True):
    """The agent that speaks for a server now. `started`: time of its hello; `attested_at`: of its accepted quote, or of
    its ticket where a waiver lets the server go without a TPM (`by_ticket`): then nothing has proved what it booted.

    One that was not let in (`attested_at` is None) has only said that its machine has no usable TPM (`no_tpm`)."""

    id: str
    mode: Literal["ramdisk", "os"]
    boot_id: str
    started: float
    last_seen: float
    attested_at: float | None = None
    ready_at: float | None = None
    details: dict[str, Any] = {}

    @property
    def by_ticket(self) -> bool:
        return "ticket" in self.details

    @property
    def no_tpm(self) -> bool:
        return "no_tpm" in self.details


class OrderState(StrEnum):
    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One order to the agent. `key` is the step that gave it; a server has at most one order a key."""

    id: str
    key: str
    kind: str
    args: dict[str, Any] = {}
    state: OrderState = OrderState.PENDING
    result: dict[str, Any] = {}
    error: dict[str, Any] | None = None
    progress: dict[str, Any] = {}


class IntentKind(StrEnum):
    """What people (and, for `quarantine`, the verifier) ask the engine for. Only the engine moves state."""

    PAUSE = "pause"
    RESUME = "resume"
    DECOMMISSION = "decommission"
    RETIRE = "retire"
    RELEASE = "release"
    QUARANTINE = "quarantine"
    ROTATE = "rotate"
    CONFIRM = "confirm"
    ATTEST = "attest"


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """`at`: when it was asked, UNIX seconds."""

    id: int
    at: float = 0.0
    kind: IntentKind
    reason: str = ""
    by: str = ""
    args: dict[str, Any] = {}
