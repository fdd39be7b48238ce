"""The tables of the store. Structs are kept as JSON text (msgspec); columns exist only for what is searched or fenced.

Times are UNIX seconds. Nothing here is SQLite's alone: PostgreSQL is a second URL.
"""

from sqlalchemy import Boolean, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text

VERSION = 2
"""Of these tables. A store of another version is refused, not guessed at."""

metadata = MetaData()

about = Table("about", metadata, Column("name", String, primary_key=True), Column("value", Text, nullable=False))

resources = Table(
    "resources",
    metadata,
    Column("kind", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("document", Text, nullable=False),
    Column("server", String, index=True),  # of an Assignment or Waiver: the server that it names
    Column("generation", Integer, nullable=False),
    Column("revision", String, nullable=False),  # new with every change, and with every re-creation
    Column("created", Float, nullable=False),
    Column("updated", Float, nullable=False),
)

servers = Table(
    "servers",
    metadata,
    Column("name", String, primary_key=True),
    Column("state", String, nullable=False, index=True),
    Column("status", Text, nullable=False),
    Column("paused", Boolean, nullable=False, default=False),
    Column("epoch", String),  # the replica that has it in flight
    Column("fence", Integer, nullable=False, default=0),
    Column("wakes", Integer, nullable=False, default=0),  # counts wake-ups, so that none is lost in flight
    Column("next_due", Float, nullable=True),  # null: only a wake-up makes it due
)
Index("servers_due", servers.c.next_due)

replicas = Table(
    "replicas",
    metadata,
    Column("epoch", String, primary_key=True),
    Column("expires_at", Float, nullable=False),
)

journal = Table(
    "journal",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("server", String, nullable=False, index=True),
    Column("step", String, nullable=False),
    Column("key", String, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("started", Float, nullable=False),
    Column("finished", Float),
    Column("outcome", Text),
)
Index("journal_open", journal.c.server, sqlite_where=journal.c.finished.is_(None))

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("server", String, index=True),
    Column("kind", String, nullable=False),
    Column("message", Text, nullable=False),
    sqlite_autoincrement=True,
)

intents = Table(
    "intents",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("server", String, ForeignKey("servers.name", ondelete="CASCADE"), nullable=False),
    Column("kind", String, nullable=False),
    Column("reason", Text, nullable=False),
    Column("by", String, nullable=False),
    Column("args", Text, nullable=False),
    Column("at", Float, nullable=False),
    Column("handled", Float),
    Column("outcome", Text),
)
Index("intents_open", intents.c.server, sqlite_where=intents.c.handled.is_(None))

agent_sessions = Table(
    "agent_sessions",
    metadata,
    Column("server", String, ForeignKey("servers.name", ondelete="CASCADE"), primary_key=True),
    Column("session", Text, nullable=False),
)

tpm_states = Table(
    "tpm_states",
    metadata,
    Column("ek", String, primary_key=True),  # SHA-256 of the EK's TPMT_PUBLIC, hex
    Column("state", Text, nullable=False),  # of its last quote
)

ticket_uses = Table(
    "ticket_uses",
    metadata,
    Column("server", String, ForeignKey("servers.name", ondelete="CASCADE"), primary_key=True),
    Column("ticket", String, nullable=False),  # SHA-256 of the one that was used last, hex
    Column("boot_id", String, nullable=False),  # of the only boot that it is good for
)

orders = Table(
    "orders",
    metadata,
    Column("server", String, ForeignKey("servers.name", ondelete="CASCADE"), primary_key=True),
    Column("key", String, primary_key=True),
    Column("id", String, nullable=False, unique=True),
    Column("state", String, nullable=False),
    Column("data", Text, nullable=False),
)

operators = Table(
    "operators",
    metadata,
    Column("name", String, primary_key=True),
    Column("public_key", Text, nullable=False),  # PEM
    Column("enrolled", Float, nullable=False),
)

circles = Table(
    "circles",  # append-only: who the operators were, so that an approval can be verified when they are others
    metadata,
    Column("id", Integer, primary_key=True),
    Column("since", Float, nullable=False),
    Column("people", Text, nullable=False),  # JSON: name -> public key in PEM
)

approvals = Table(
    "approvals",
    metadata,
    Column("id", String, primary_key=True),
    Column("request", Text, nullable=False),  # canonical JSON: the bytes that are signed
    Column("at", Float, nullable=False),
    Column("spent", Float),  # when what was approved was done, or the request was withdrawn
)

signatures = Table(
    "signatures",
    metadata,
    Column("approval", String, ForeignKey("approvals.id", ondelete="CASCADE"), primary_key=True),
    Column("operator", String, primary_key=True),
    Column("envelope", Text, nullable=False),  # DSSE
)

reference_values = Table(
    "reference_values",
    metadata,
    Column("id", String, primary_key=True),
    Column("vendor", String, nullable=False),
    Column("model", String, nullable=False),
    Column("version", String, nullable=False),
    Column("state", String, nullable=False),
    Column("document", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("approval", String, nullable=False),  # the request that two people sign
    Column("changed", Float, nullable=False),
)
Index("reference_values_board", reference_values.c.vendor, reference_values.c.model, reference_values.c.version)

site_findings = Table(
    "site_findings",
    metadata,
    Column("source", String, primary_key=True),  # who looks: `depot`
    Column("findings", Text, nullable=False),
)

told = Table(
    "told",
    metadata,
    Column("source", String, primary_key=True),
    Column("digest", String, primary_key=True),  # SHA-256 of the facts that the evidence log has
)

evidence_due = Table(
    "evidence_due",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("predicate", String, nullable=False),
    Column("subject", String, nullable=False),
    Column("facts", Text, nullable=False),  # for the controller, which alone writes the log
)
