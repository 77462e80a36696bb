"""The database: jobs with their facts, journals and receipts; transfers, hosts, limits, leases, notices."""

from vmferry.manager.store.jobs import Store
from vmferry.manager.store.records import NewJob, Row

__all__ = ["NewJob", "Row", "Store"]
