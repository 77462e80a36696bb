"""The tables of the database: the same on SQLite and on PostgreSQL."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(8), nullable=False, unique=True),
    sa.Column("vm", sa.String, nullable=False),
    # The VM's UUID while the job is active, else NULL: so the database itself keeps a second job out.
    sa.Column("active_vm", sa.String, unique=True),
    sa.Column("connect", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False, index=True),
    sa.Column("before_stuck", sa.String),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("version", sa.String, nullable=False),
    sa.Column("slots", sa.Text, nullable=False),
    sa.Column("room", sa.Text, nullable=False),
    sa.Column("created", sa.String, nullable=False),
    sa.Column("started", sa.String),
    sa.Column("ended", sa.String),
    sa.Column("sentence", sa.Text, nullable=False, default=""),
    sa.Column("kind", sa.String, nullable=False, default=""),
    sa.Column("limit_bytes_s", sa.BigInteger),
    sa.Column("max_pause_s", sa.Float, nullable=False),
    sa.Column("cancel_asked", sa.Boolean, nullable=False, default=False),
    sa.Column("retry_asked", sa.Boolean, nullable=False, default=False),
    sa.Column("suspend_asked", sa.Boolean, nullable=False, default=False),
    sa.Column("priority", sa.Integer, nullable=False),  # 0 goes first
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("manager", sa.String),  # that acts for it; NULL while it is queued
    sa.Column("machine", sa.String),  # whose managers alone can act for it; NULL: all can
    sa.Column("progress", sa.Text),  # as its manager saw it last, for those who watch at another
)

facts = sa.Table(
    "facts",
    metadata,
    sa.Column("job", sa.String(8), primary_key=True),
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

journal = sa.Table(
    "journal",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("job", sa.String(8), nullable=False, index=True),
    sa.Column("act", sa.String, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("step", sa.String, nullable=False),
    sa.Column("says", sa.String, nullable=False),
    sa.Column("begun", sa.String, nullable=False),
    sa.Column("ended", sa.String),
    sa.Column("ok", sa.Boolean),
    sa.Column("sentence", sa.Text, nullable=False, default=""),
)

phases = sa.Table(
    "phases",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("job", sa.String(8), nullable=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("job", "name"),
)

receipts = sa.Table(
    "receipts",
    metadata,
    sa.Column("job", sa.String(8), primary_key=True),
    sa.Column("receipt", sa.Text, nullable=False),
)

limits = sa.Table(
    "limits",
    metadata,
    sa.Column("scope", sa.String, primary_key=True),
    sa.Column("connect", sa.String, primary_key=True),
    sa.Column("place", sa.String, primary_key=True),
    sa.Column("limit_bytes_s", sa.BigInteger),
)

# Beside the limits, and not a column of theirs: a state folder of an earlier version gets it as it is opened.
calendars = sa.Table(
    "calendars",
    metadata,
    sa.Column("scope", sa.String, primary_key=True),
    sa.Column("connect", sa.String, primary_key=True),
    sa.Column("place", sa.String, primary_key=True),
    sa.Column("during", sa.Text, nullable=False),
)

transfers = sa.Table(
    "transfers",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(8), nullable=False, unique=True),
    sa.Column("state", sa.String, nullable=False, index=True),
    sa.Column("request", sa.Text, nullable=False),
    # While it is active, else NULL: so the database itself keeps a second transfer from going there.
    sa.Column("active_destination", sa.String, unique=True),
    sa.Column("slots", sa.Text, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),  # 0 goes first
    sa.Column("limit_bytes_s", sa.BigInteger),
    sa.Column("created", sa.String, nullable=False),
    sa.Column("ended", sa.String),
    sa.Column("sentence", sa.Text, nullable=False, default=""),
    sa.Column("kind", sa.String, nullable=False, default=""),
    sa.Column("failures", sa.Integer, nullable=False, default=0),
    sa.Column("retry_at", sa.String),
    sa.Column("stalled_since", sa.String),
    sa.Column("done_bytes", sa.BigInteger, nullable=False, default=0),
    sa.Column("total_bytes", sa.BigInteger, nullable=False, default=0),
    sa.Column("cancel_asked", sa.Boolean, nullable=False, default=False),
    sa.Column("receipt", sa.Text),
    sa.Column("manager", sa.String, nullable=False),  # its bookmarks lie there
)

notices = sa.Table(
    "notices",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("event_id", sa.String, nullable=False),
    sa.Column("event", sa.String, nullable=False),
    sa.Column("about", sa.String, nullable=False),
    sa.Column("subject", sa.String, nullable=False, index=True),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("way", sa.String, nullable=False),
    sa.Column("receiver", sa.Text, nullable=False),
    sa.Column("secret", sa.Text),
    sa.Column("created", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False, index=True),
    sa.Column("tries", sa.Integer, nullable=False, default=0),
    sa.Column("sentence", sa.Text, nullable=False, default=""),
    sa.Column("ended", sa.String),
    sa.Column("manager", sa.String),  # that tells it, or tried last
    sa.Column("not_before", sa.String),  # until then it is left to that one
)

# One row: who is told of everything in this database.
receivers = sa.Table(
    "receivers",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("receivers", sa.Text, nullable=False),
)
