"""What jobs leave on disk: their rows, facts, journals, phases and receipts."""

from vmferry.store.records import NewJob, Row
from vmferry.store.store import Store

__all__ = ["NewJob", "Row", "Store"]
