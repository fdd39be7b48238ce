"""All that a decision about one server may rest on: frozen data, read from the store as of one moment."""

import msgspec

from freehold.model.resources import AssignmentSpec, FirmwareBaselineSpec, PolicySpec, ServerSpec
from freehold.model.status import AgentSession, Facts, Intent, Order, ServerStatus
from freehold.orchestration.pace import Pace
from freehold.orchestration.waivers import ActiveWaiver
from freehold.root_of_trust.operators import Asked


class Assigned(msgspec.Struct, frozen=True):
    """The assignment that names this server. `revision` changes when somebody declares it anew."""

    name: str
    spec: AssignmentSpec
    revision: str


class ServerView(msgspec.Struct, frozen=True, kw_only=True):
    """All that a decision may rest on."""

    name: str
    spec: ServerSpec
    status: ServerStatus = ServerStatus()
    policy: PolicySpec = PolicySpec()
    baselines: tuple[FirmwareBaselineSpec, ...] = ()
    assignment: Assigned | None = None
    generation: int = 1
    secure_boot_generation: int = 1  # the newest of the site's Secure Boot keys
    pace: Pace = Pace()
    agent_trust: tuple[int, int] = (1, 1)  # what the site's agent believes: generation of agent CA, of image key
    bmc_ca: str | None = None  # `pki.key_id` of the BMC CA, once it is not the first one any more
    listening_since: float = 0.0  # when the controller last began to listen to agents, UNIX seconds
    paused: bool = False
    waivers: tuple[ActiveWaiver, ...] = ()
    intents: tuple[Intent, ...] = ()
    asked: dict[str, Asked] = {}  # by id: the requests for approval that intents name
    agent: AgentSession | None = None
    orders: dict[str, Order] = {}

    @property
    def facts(self) -> Facts:
        return self.status.facts
