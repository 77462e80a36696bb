"""Transfers that a worker carries out without a VM: states and records. After BITS (see docs/bits.md)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vmferry.model.notices import NOBODY, NoticeView, Receivers

RETRY_DELAY_S = 600.0
SHORTEST_RETRY_DELAY_S = 5.0
NO_PROGRESS_S = 14 * 86400.0


class TransferState(StrEnum):
    """States of a transfer, as in BITS' "Life Cycle of a BITS Job"."""

    QUEUED = "queued"
    """Waits for its turn."""
    CONNECTING = "connecting"
    """Both ends are opened."""
    TRANSFERRING = "transferring"
    """Copied, then read back and compared."""
    SUSPENDED = "suspended"
    """Waits for `resume`; nothing is open."""
    TRANSIENT = "transient error"
    """Failed in a way that may pass; tries again by itself."""
    ERROR = "error"
    """Waits for a person, who resumes or cancels it."""
    TRANSFERRED = "transferred"
    """Whole and compared, under its temporary name: waits for `acknowledge`, which gives it its own."""
    ACKNOWLEDGED = "acknowledged"
    CANCELLED = "cancelled"
    """Nothing of it is left."""


_S = TransferState
AT_WORK = frozenset({_S.CONNECTING, _S.TRANSFERRING})
NEEDS_WORKER = AT_WORK | {_S.QUEUED, _S.TRANSIENT}
OVER = frozenset({_S.ACKNOWLEDGED, _S.CANCELLED})
ACTIVE_TRANSFERS = frozenset(TransferState) - OVER

CHANGES: frozenset[tuple[TransferState, TransferState]] = frozenset(
    {
        (_S.QUEUED, _S.CONNECTING),
        (_S.CONNECTING, _S.TRANSFERRING),
        (_S.TRANSFERRING, _S.TRANSFERRED),
        (_S.TRANSFERRED, _S.ACKNOWLEDGED),
        *((before, _S.SUSPENDED) for before in NEEDS_WORKER),
        *((before, _S.QUEUED) for before in AT_WORK),  # made way for a higher one, or the worker died
        *((before, _S.TRANSIENT) for before in AT_WORK),
        *((before, _S.ERROR) for before in AT_WORK),
        *((before, _S.QUEUED) for before in (_S.SUSPENDED, _S.TRANSIENT, _S.ERROR)),  # resume; the delay is over
        *((before, _S.CANCELLED) for before in ACTIVE_TRANSFERS),
    }
)
"""All changes of a transfer's state that exist; every other one is a bug and is refused."""


@dataclass(frozen=True, slots=True)
class TransferRequest:
    """What `vmferry copy --detach` asks for; places as transfer.Place takes them, paths absolute."""

    source: str
    destination: str
    connect: str
    """The host, by its libvirt URI, whose limits hold. It is not talked to."""
    source_format: str = "raw"
    destination_format: str = "raw"
    tls: Path | None = None
    streams: int = 4
    limit_bytes_s: int | None = None
    priority: str = "normal"
    retry_delay_s: float = RETRY_DELAY_S
    no_progress_s: float = NO_PROGRESS_S
    """Given up when it has failed for so long without moving a byte; 0: at the first failure."""
    hand_over: bool = False
    """Acknowledged by itself as soon as it is transferred."""
    notify: Receivers = NOBODY
    """Told of what becomes of it, besides those of the state folder."""


@dataclass(frozen=True, slots=True)
class TransferView:
    """A transfer as the API shows it, without passwords."""

    id: str
    state: TransferState
    source: str
    destination: str
    source_format: str
    destination_format: str
    created: str
    priority: str
    limit_bytes_s: int | None
    retry_delay_s: float
    no_progress_s: float
    phase: str = ""
    """copying, comparing, or empty when it does neither."""
    done_bytes: int = 0
    total_bytes: int = 0
    rate_bytes_s: float = 0.0
    held: str = ""
    """Why it goes slower than it could, or waits; empty when nothing holds it back."""
    failures: int = 0
    """How often it met an error that may pass."""
    sentence: str = ""
    """What went wrong; empty when all is well."""
    kind: str = ""
    retry_at: str | None = None
    """ISO 8601, UTC: when a transient error is tried again."""
    cancel_asked: bool = False
    ended: str | None = None
    root_hash: str = ""
    notices: tuple[NoticeView, ...] = ()


@dataclass(frozen=True, slots=True)
class TransferSeen:
    """A transfer, and a number that differs once anything of it has changed."""

    version: int
    transfer: TransferView
