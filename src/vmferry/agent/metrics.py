"""The agent's metrics for Prometheus, on the listener of --metrics, loopback only."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

REGISTRY = CollectorRegistry()
OPERATIONS = Gauge("vmferry_operations_running", "Acts that run now", registry=REGISTRY)
CALLS = Counter("vmferry_calls", "Calls of a host's methods", ["method", "outcome"], registry=REGISTRY)
MOVED = Counter("vmferry_moved_bytes", "Bytes copied or compared", ["method"], registry=REGISTRY)
REFUSED = Counter("vmferry_refused", "Requests and connections refused", ["why"], registry=REGISTRY)
FENCED = Counter("vmferry_fenced", "Acts of an older epoch refused", registry=REGISTRY)
CERTIFICATE = Gauge("vmferry_certificate_expires_seconds", "Unix time of this agent's certificate", registry=REGISTRY)
