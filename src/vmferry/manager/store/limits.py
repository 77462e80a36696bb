"""Reads limits that jobs share from their tables."""

from __future__ import annotations

import sqlalchemy as sa

from vmferry.manager.store.codec import load_all
from vmferry.manager.store.tables import calendars, limits
from vmferry.model import Scope, SharedLimit, Window

KEY = ("scope", "connect", "place")


def shared_limits(connection: sa.Connection, *where: sa.ColumnElement[bool]) -> tuple[SharedLimit, ...]:
    """Return the shared limits, each with its calendar, by scope, host and place."""
    joined = limits.outerjoin(calendars, sa.and_(*(limits.c[n] == calendars.c[n] for n in KEY)))
    query = sa.select(limits, calendars.c.during).select_from(joined).where(*where)
    found = connection.execute(query.order_by(limits.c.scope, limits.c.connect, limits.c.place)).mappings()
    return tuple(_of(row) for row in found)


def _of(found: sa.RowMapping) -> SharedLimit:
    during = load_all(Window, found["during"] or "[]")
    return SharedLimit(Scope(found["scope"]), found["connect"], found["place"], found["limit_bytes_s"], during)
