"""States, progress, receipts and journals of jobs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vmferry.model.files import SourceFileFate
from vmferry.model.notices import NoticeView
from vmferry.model.plans import Plan
from vmferry.model.seals import Seal


class JobState(StrEnum):
    QUEUED = "queued"
    """Submitted; waits for its slots."""
    RUNNING = "running"
    PAUSED = "paused"
    """Waits for a person, with the VM untouched: the guest writes faster than the rounds can follow."""
    UNDOING = "undoing"
    DONE = "done"
    UNDONE = "undone"
    FAILED = "failed"
    """Ended before it began; nothing was touched."""
    STUCK = "stuck"
    """Needs an operator; `job.sentence` says what to do."""


ACTIVE = frozenset({JobState.QUEUED, JobState.RUNNING, JobState.PAUSED, JobState.UNDOING, JobState.STUCK})
FINAL = frozenset({JobState.DONE, JobState.UNDONE, JobState.FAILED})

ALLOWED: frozenset[tuple[JobState, JobState]] = frozenset(
    {
        (JobState.QUEUED, JobState.RUNNING),
        (JobState.QUEUED, JobState.FAILED),  # cancelled, or no longer possible, before its turn came
        (JobState.RUNNING, JobState.PAUSED),
        (JobState.PAUSED, JobState.RUNNING),
        (JobState.RUNNING, JobState.UNDOING),
        (JobState.PAUSED, JobState.UNDOING),
        (JobState.RUNNING, JobState.DONE),
        (JobState.UNDOING, JobState.UNDONE),
        (JobState.RUNNING, JobState.STUCK),  # only after the point of no return
        (JobState.UNDOING, JobState.STUCK),
        (JobState.STUCK, JobState.RUNNING),  # `job retry`
        (JobState.STUCK, JobState.UNDOING),
    }
)
"""All changes of a job's state that exist; every other one is a bug and is refused."""


class Lost(StrEnum):
    """The end of a relocation that an operator has declared lost."""

    SOURCE = "source"
    DESTINATION = "destination"


@dataclass(frozen=True, slots=True)
class FencingToken:
    """A job and its epoch, sent with each act: a host refuses an epoch lower than the highest it has seen."""

    job: str
    epoch: int


@dataclass(frozen=True, slots=True)
class DiskProgress:
    target: str
    done_bytes: int = 0
    total_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """A job's progress as a person sees it; bytes written, not bytes asked for."""

    now: str = ""
    next: str = ""
    step: int = 0
    steps: int = 0
    disks: tuple[DiskProgress, ...] = ()
    rate_bytes_s: float = 0.0
    seconds_left: float | None = None
    pause_forecast_s: float | None = None
    held: str = ""
    """Why it goes slower than it could, or waits; empty when nothing holds it back."""


# -- what is left


@dataclass(frozen=True, slots=True)
class DiskReceipt:
    target: str
    from_: str
    to: str
    format: str
    virtual_bytes: int
    copied_bytes: int
    root_hash: str
    seal: Seal | None = None
    """What lay at the destination when it was compared; None of a receipt of an earlier version."""


@dataclass(frozen=True, slots=True)
class Phase:
    name: str
    seconds: float
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Receipt:
    job: str
    vm: str
    technology: str
    disks: tuple[DiskReceipt, ...]
    phases: tuple[Phase, ...]
    pause_forecast_s: float
    pause_s: float
    verified: bool
    rounds: int
    finished: str = ""
    """ISO 8601, UTC"""
    kept: tuple[Path, ...] = ()
    """Source files kept, renamed, by --keep-source."""
    quiesced: str = ""
    """Were the guest's file systems frozen at the freeze: yes, no, unsure (they may be still); "" without an agent."""
    checkpoints_dropped: tuple[str, ...] = ()
    """libvirt's checkpoints that could not go along: the next backup must be a full one."""
    clock: str = ""
    """What became of the guest's clock, which stood while the guest did; "" where it did not."""
    from_host: str = ""
    to_host: str = ""
    """Of a move to another host."""
    lost: str = ""
    """The host that was declared lost, and on which the source was left; "" for none."""
    left: tuple[Path, ...] = ()
    """What may still lie there."""
    next_start: tuple[str, ...] = ()
    """Disks for whose next start a person had chosen another image, which stays."""
    stayed: tuple[str, ...] = ()
    """Disks that were not part of the move and lie in a folder that it left, as "/san1/b.img (vdb)"."""
    sources: tuple[SourceFileFate, ...] = ()
    """What became of each file that was copied, at the source."""
    pause_allowed_s: float = 0.0
    """As asked when it ended; 0 of a receipt of an earlier version."""
    ejected: tuple[str, ...] = ()
    """Discs that were taken out of their drives on the way, since their files were gone, as "/iso/a.iso (sda)"."""
    checksum: str = ""
    """Of all the rest; see model.seals. "" of a receipt of an earlier version."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One line of a job's journal."""

    act: str
    """do or undo"""
    number: int
    step: str
    says: str
    begun: str
    ended: str | None = None
    ok: bool | None = None
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as the API shows it."""

    id: str
    state: JobState
    plan: Plan
    created: str
    sentence: str = ""
    """Why it is undone, stuck or waiting; empty when all is well."""
    kind: str = ""
    """The class of the error that ended it: Cancelled, DestinationFull, ..."""
    limit_bytes_s: int | None = None
    priority: str = "normal"
    max_pause_s: float = 2.0
    cancel_asked: bool = False
    ended: str | None = None
    lost: str = ""
    """The host that an operator has declared lost; "" for none."""
    left: tuple[Path, ...] = ()
    """What the job may have left there."""
    clock: str = ""
    """What became of the guest's clock after its memory was loaded, by an undo too; "" where it was not."""
    progress: Progress = Progress()
    journal: tuple[StepRecord, ...] = ()
    notices: tuple[NoticeView, ...] = ()
    manager: str = ""
    """Of several, the one that acts for it; empty while it is queued, and where there is only one."""
