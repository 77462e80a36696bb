"""What jobs leave on disk: their rows, facts, journals, phases and receipts."""

from vmferry.manager.store.jobs import Store
from vmferry.manager.store.records import NewJob, Row

__all__ = ["NewJob", "Row", "Store"]
