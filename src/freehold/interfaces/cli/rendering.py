"""How resources look to a person: pure functions from what the store gave to cells and lines."""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import yaml

from freehold.interfaces.cli.common import moment, since
from freehold.model.findings import Finding
from freehold.model.resources import (
    AssignmentSpec,
    FirmwareBaselineSpec,
    ImageSpec,
    NetworkSpec,
    PolicySpec,
    Resource,
    SiteSpec,
    WaiverSpec,
)
from freehold.model.status import Facts, Order, OrderState, ServerStatus
from freehold.orchestration.store import Event, Stored
from freehold.orchestration.view import ServerView
from freehold.orchestration.waivers import ActiveWaiver, exceptions

Table = tuple[tuple[str, ...], list[tuple[object, ...]]]


class Shown(msgspec.Struct, frozen=True):
    """A resource, and for a server all that is known of it as of one moment."""

    stored: Stored
    view: ServerView | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the document (passwords masked) and, beside it, what is known."""
        stored, view = self.stored, self.view
        known: dict[str, Any] = {
            **stored.resource.to_document(),
            "generation": stored.generation,
            "revision": stored.revision,
            "created": stored.created,
            "updated": stored.updated,
        }
        if view is not None:
            orders = [_without_data(order) for order in view.orders.values()]
            known |= {"paused": view.paused, "status": full_status(view.status), "agent": view.agent, "orders": orders}
            known |= {"assignment": view.assignment and view.assignment.name, "intents": view.intents}
        decoded: dict[str, Any] = msgspec.to_builtins(known)
        return decoded


def full_status(status: ServerStatus) -> dict[str, Any]:
    """The status with its defaults, which the store leaves out: a script must not guess them."""
    sparse = msgspec.to_builtins(status)
    defaults = {name: getattr(status, name) for name in ("state", "reason", "step", "waiting_for", "attempts")}
    defaults |= {name: getattr(status, name) for name in ("state_since", "retry_at", "deadline", "stuck", "findings")}
    return {**msgspec.to_builtins(defaults), **sparse}


def _without_data(order: Order) -> dict[str, Any]:
    """An order without its arguments: a seed carries keys and is long."""
    found = {"id": order.id, "key": order.key, "kind": order.kind, "state": order.state.value}
    return found | {"progress": order.progress, "result": order.result, "error": order.error}


def as_yaml(resources: Sequence[Resource]) -> str:
    """Documents as declared, passwords masked."""
    return yaml.safe_dump_all([each.to_document() for each in resources], sort_keys=False, allow_unicode=True)


# ---- tables


def table(kind: str, found: Sequence[Shown], now: float, *, wide: bool) -> Table:
    if kind == "Server":
        return servers_table(found, now, wide=wide)
    headers, cells = _COLUMNS.get(kind, ((), lambda _: ()))
    rows = [
        (each.stored.resource.name, *cells(each.stored.resource.spec), since(each.stored.created, now))
        for each in found
    ]
    if wide:
        labels = [" ".join(f"{k}={v}" for k, v in each.stored.resource.labels.items()) or "-" for each in found]
        rows = [(*row, each.stored.generation, label) for row, each, label in zip(rows, found, labels, strict=True)]
    return ("NAME", *headers, "AGE", *(("GENERATION", "LABELS") if wide else ())), rows


def _network(spec: Any) -> tuple[object, ...]:
    assert isinstance(spec, NetworkSpec)
    dhcp = f"{spec.dhcp_range.start}-{spec.dhcp_range.end}" if spec.dhcp_range else "-"
    return spec.role, spec.prefix, spec.gateway or "-", dhcp


def _site(spec: Any) -> tuple[object, ...]:
    assert isinstance(spec, SiteSpec)
    return spec.controller.oob, spec.controller.provisioning


def _policy(spec: Any) -> tuple[object, ...]:
    assert isinstance(spec, PolicySpec)
    return spec.attestation_interval, spec.drift_interval, spec.first_contact, "/".join(spec.sanitization.techniques)


def _image(spec: Any) -> tuple[object, ...]:
    assert isinstance(spec, ImageSpec)
    origin = f"depot {spec.depot.vendor} {spec.depot.component}" if spec.depot else spec.path
    return spec.version, f"builtin {spec.builtin}" if spec.builtin else origin, (spec.digest or "-")[:16]


def _assignment(spec: Any) -> tuple[object, ...]:
    assert isinstance(spec, AssignmentSpec)
    return spec.server, spec.image, spec.hostname, ", ".join(user.name for user in spec.users) or "-"


def _waiver(spec: Any) -> tuple[object, ...]:
    assert isinstance(spec, WaiverSpec)
    return spec.server, spec.finding, spec.expires, spec.reason


def _baseline(spec: Any) -> tuple[object, ...]:
    assert isinstance(spec, FirmwareBaselineSpec)
    return spec.vendor, spec.model, spec.component, spec.version


_COLUMNS: dict[str, tuple[tuple[str, ...], Any]] = {
    "Site": (("OOB", "PROVISIONING"), _site),
    "Network": (("ROLE", "PREFIX", "GATEWAY", "DHCP"), _network),
    "Policy": (("ATTEST", "DRIFT", "CONTACT", "SANITIZE"), _policy),
    "Image": (("VERSION", "FROM", "SHA-256"), _image),
    "Assignment": (("SERVER", "IMAGE", "HOSTNAME", "USERS"), _assignment),
    "Waiver": (("SERVER", "FINDING", "EXPIRES", "REASON"), _waiver),
    "FirmwareBaseline": (("VENDOR", "MODEL", "COMPONENT", "VERSION"), _baseline),
}


def servers_table(found: Sequence[Shown], now: float, *, wide: bool) -> Table:
    """One line a server. The last column says in words why it is there, or what it waits for."""
    views = [each.view for each in found if each.view is not None]
    if not wide:
        rows = [(v.name, state(v), since(v.status.state_since, now), len(v.status.findings), why(v)) for v in views]
        return ("NAME", "STATE", "AGE", "FINDINGS", "WHY"), list(rows)
    headers = ("NAME", "STATE", "AGE", "STEP", "PROGRESS", "IMAGE", "BMC", "OS", "ATTESTED", "FINDINGS", "WHY")
    return headers, [
        (
            v.name, state(v), since(v.status.state_since, now), v.status.step or "-", progress(v) or "-", image(v),
            v.spec.bmc.address, system(v), attested(v, now), len(v.status.findings), why(v),
        )
        for v in views
    ]  # fmt: skip


def state(view: ServerView) -> str:
    """`active`, `provisioning (stuck)`, `preparing (paused)`."""
    marks = [mark for mark, holds in (("paused", view.paused), ("stuck", view.status.stuck)) if holds]
    return f"{view.status.state}" + (f" ({', '.join(marks)})" if marks else "")


def why(view: ServerView) -> str:
    status = view.status
    if status.attempts:
        return f"attempt {status.attempts} failed: {status.reason}"
    return f"waits for {status.waiting_for}" if status.waiting_for else status.reason or "-"


def progress(view: ServerView) -> str:
    """`write 45 %` of the order that the agent is at."""
    for order in view.orders.values():
        total, done = order.progress.get("total"), order.progress.get("done")
        if order.state is OrderState.PENDING and isinstance(total, int) and total and isinstance(done, int):
            return f"{order.progress.get('phase') or order.kind} {100 * done // total} %"
    return ""


def image(view: ServerView) -> str:
    """What the server was given, or, in brackets, what it is to get."""
    if (given := view.facts.image) is not None:
        return f"{given.name} {given.version}"
    return f"({view.assignment.spec.image})" if view.assignment else "-"


def system(view: ServerView) -> str:
    """The result of provisioning, as the OS reported it: `ready web-1 172.30.3.11`."""
    agent = view.agent
    if agent is None:
        return "-"
    if agent.mode == "ramdisk":
        return "agent ramdisk"
    if agent.ready_at is None:
        return "booting"
    addresses = [str(each) for each in agent.details.get("addresses", ())]
    return " ".join(["ready", str(agent.details.get("hostname", "")), ",".join(addresses)]).rstrip()


def attested(view: ServerView, now: float) -> str:
    """The age of the last accepted quote, and whether it was of an image that is revoked by now; of the last ticket,
    where a waiver stands for the TPM."""
    times = [view.facts.last_attestation, view.agent.attested_at if view.agent else None]
    known = [at for at in times if at is not None]
    if view.facts.tpm_waived:
        return f"never: no TPM, let in {since(max(known), now)} ago" if known else "never: no TPM"
    revoked = ", of a revoked image" if view.facts.image_revoked else ""
    return f"{since(max(known), now)} ago{revoked}" if known else "never"


# ---- one server, everything


def description(shown: Shown, recent: Sequence[Event], now: float) -> Iterator[str]:
    """Lines for a tired person: the state and what to do first, details after."""
    view = shown.view
    assert view is not None
    status, facts = view.status, view.facts
    yield f"{view.name}: {state(view)} for {since(status.state_since, now)}"
    yield from _pairs(
        ("why", status.reason),
        ("waits for", status.waiting_for),
        ("step", status.step + (f", {progress(view)}" if progress(view) else "")),
        ("attempts", f"{status.attempts} failed in a row, next {_in(status.retry_at, now)}" if status.attempts else ""),
        ("since", moment(status.state_since)),
        ("deadline", f"{moment(status.deadline)} ({_in(status.deadline, now)})" if status.deadline else ""),
        ("came from", f"{status.quarantined_from}: a release leads back there" if status.quarantined_from else ""),
        ("asked for", "; ".join(f"{i.kind} by {i.by}" + (f": {i.reason}" if i.reason else "") for i in view.intents)),
    )
    without = exceptions(view.waivers, facts, view.name, now)
    yield from _section(
        "Findings",
        _findings((*status.findings, *(each for each in without if each not in status.findings))) or ["none"],
    )
    if view.waivers:
        yield from _section("Waivers", [_signed_waiver(each, now) for each in view.waivers])
    yield from _section("Identity", _pairs(
        ("BMC", view.spec.bmc.address),
        ("BMC key", f"SHA-256 {facts.bmc_identity}" if facts.bmc_identity else "not pinned yet"),
        ("BMC cert", _bmc_certificate(facts)),
        ("BMC account", "ours" if facts.bmc_credential_committed else "the factory's"),
        ("TPM EK", f"SHA-256 {facts.ek_sha256}" if facts.ek_sha256
         else "NONE, by a waiver" if facts.tpm_waived else "not bound yet"),
        ("NICs", ", ".join(f"{nic.mac} {nic.network}" + (f" {nic.address}" if nic.address else "")
                           for nic in view.spec.nics)),
        ("policy", view.spec.policy or "the default one"),
    ))  # fmt: skip
    yield from _section("Attestation", _pairs(
        ("last", attested(view, now)),
        ("reference", _reference(facts)),
        ("Secure Boot", _secure_boot(facts)),
        ("agent", _agent(view, now)),
    ))  # fmt: skip
    yield from _section("Image", _pairs(
        ("assignment", f"{view.assignment.name}: {view.assignment.spec.image} as {view.assignment.spec.hostname}"
         if view.assignment else "none"),
        ("given", image(view) if facts.image else "none"),
        ("manifest", f"SHA-256 {facts.image.manifest}" if facts.image else ""),
        ("OS", system(view)),
    ))  # fmt: skip
    if facts.drift:
        yield from _section("Drift", [f"{d.kind} {d.subject}: {d.expected} -> {d.observed}" for d in facts.drift])
    if facts.media is not None:
        yield from _section("Media", [_medium(medium) for medium in facts.media] or ["none"])
    if facts.certificate_index is not None:
        yield from _section("Destruction certificate", [f"entry {facts.certificate_index} of the evidence log"])
    if view.orders:
        yield from _section("Orders", [_order(order) for order in view.orders.values()])
    lines = [f"{moment(event.at)}  {event.kind}: {event.message}" for event in recent]
    yield from _section(f"Last {len(recent)} events", lines)


def _secure_boot(facts: Facts) -> str:
    """Whose keys are on it, and by whose word."""
    if not facts.secure_boot_enrolled:
        return "not our keys, by a waiver" if facts.secure_boot_waived else "not our keys yet"
    generation = facts.secure_boot_generation or 1
    if facts.secure_boot_confirmed == generation:
        return f"keys of generation {generation}, confirmed by PCR 7"
    return f"keys of generation {generation}, by the BMC's word: PCR 7 of the next attested boot is to confirm it"


def _reference(facts: Facts) -> str:
    """What its boots are held against, and by whose word."""
    if facts.reference_values is None:
        return "none yet"
    if not facts.reference_values:
        return "none: there is no TPM to measure"
    return f"{facts.reference_id}, approved" if facts.reference_id else "learned: approved by NOBODY"


def _signed_waiver(waiver: ActiveWaiver, now: float) -> str:
    until = f"until {moment(waiver.expires)}" if now < waiver.expires else f"ended {moment(waiver.expires)}"
    return f"{waiver.finding} by {waiver.name}, {until}, signed by {', '.join(waiver.approved_by)}: {waiver.reason}"


def site_description(stored: Stored, findings: Sequence[Finding]) -> Iterator[str]:
    """Lines: where its controller is, and what is wrong with what belongs to no single server."""
    spec = stored.resource.spec
    assert isinstance(spec, SiteSpec)
    yield f"{stored.resource.name}:"
    yield from _pairs(("controller", f"{spec.controller.oob} (oob), {spec.controller.provisioning} (provisioning)"))
    yield from _section("Findings", _findings(findings) or ["none"])


def _bmc_certificate(facts: Facts) -> str:
    installed = facts.bmc_certificate
    if installed is None:
        return "being changed" if facts.bmc_certificate_pending else "the factory's"
    return f"{installed.serial} of the site's BMC CA, until {moment(installed.not_after)}"


def _section(title: str, lines: Any) -> Iterator[str]:
    yield ""
    yield f"{title}:"
    yield from (line if line.startswith("  ") else f"  {line}" for line in lines)


def _pairs(*pairs: tuple[str, str]) -> Iterator[str]:
    yield from (f"  {name + ':':<13}{value}" for name, value in pairs if value)


def _findings(findings: Sequence[Finding]) -> list[str]:
    lines = []
    for each in findings:
        lines += [f"{each.severity.upper()} {each.kind} ({each.subject}): {each.detail}"]
        lines += [f"    what to do: {each.remedy}"] if each.remedy else []
    return lines


def _agent(view: ServerView, now: float) -> str:
    agent = view.agent
    if agent is None:
        return "none speaks for it"
    return f"{agent.mode}, boot {agent.boot_id}, heard of {since(agent.last_seen, now)} ago"


def _medium(medium: Any) -> str:
    read = {None: "not read back yet", True: "read back: clean", False: "read back: DATA FOUND"}[medium.verified]
    return f"{medium.serial}: {'sanitized' if medium.sanitized else 'not sanitized yet'}, {read}"


def _order(order: Order) -> str:
    total, done = order.progress.get("total"), order.progress.get("done")
    at = f", {100 * done // total} %" if isinstance(total, int) and total and isinstance(done, int) else ""
    error = f": {order.error.get('what')}" if order.error else ""
    return f"{order.key} ({order.kind}): {order.state}{at}{error}"


def _in(at: float | None, now: float) -> str:
    if at is None:
        return "soon"
    return f"in {since(now, at)}" if at >= now else f"{since(at, now)} ago"
