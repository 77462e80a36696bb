"""A job's row in the store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import RowMapping

from vmferry.manager.store.codec import dump, load
from vmferry.model import JobState, JobView, MoveRequest, Plan, Priority, Progress, StepRecord
from vmferry.process.state import ALONE


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job about to be queued."""

    id: str
    plan: Plan
    request: MoveRequest
    version: str
    slots: tuple[str, ...]
    """What it needs a slot of, sorted: its host and its storages."""
    room: Mapping[str, int]
    """File system to bytes reserved there while the job is active."""
    created: str
    machine: str | None = None
    """Whose managers alone can act for it; None: any."""

    def columns(self) -> dict[str, object]:
        return {
            "id": self.id,
            "vm": self.plan.vm,
            "active_vm": self.plan.uuid,
            "connect": self.plan.connect,
            "state": JobState.QUEUED.value,
            "plan": dump(self.plan),
            "request": dump(self.request),
            "version": self.version,
            "slots": json.dumps(self.slots),
            "room": json.dumps(dict(self.room)),
            "created": self.created,
            "limit_bytes_s": self.request.limit_bytes_s,
            "priority": Priority(self.request.priority).rank,
            "max_pause_s": self.request.max_pause_s,
            "epoch": 1,
            "machine": self.machine,
        }


@dataclass(frozen=True, slots=True)
class JobHeartbeat:
    """What may change in an active job while it runs: a person's orders, and how far it is."""

    id: str
    state: str
    sentence: str
    manager: str | None
    epoch: int
    limit_bytes_s: int | None
    priority: int
    max_pause_s: float
    cancel_asked: bool
    retry_asked: bool
    suspend_asked: bool
    progress: str | None


@dataclass(frozen=True, slots=True)
class Row:
    """A job in the store."""

    id: str
    connect: str
    state: JobState
    before_stuck: JobState | None
    plan: Plan
    request: MoveRequest
    version: str
    slots: tuple[str, ...]
    room: Mapping[str, int]
    created: str
    started: str | None
    """When it got its slots."""
    ended: str | None
    sentence: str
    kind: str
    limit_bytes_s: int | None
    priority: int
    max_pause_s: float
    cancel_asked: bool
    retry_asked: bool
    suspend_asked: bool
    epoch: int
    manager: str | None
    machine: str | None
    progress: Progress | None
    """As its manager recorded it last."""

    @staticmethod
    def of(found: RowMapping) -> Row:
        given: dict[str, Any] = {name: found[name] for name in Row.__slots__}
        return Row(
            **given
            | {
                "state": JobState(found["state"]),
                "before_stuck": JobState(found["before_stuck"]) if found["before_stuck"] else None,
                "plan": load(Plan, found["plan"]),
                "request": load(MoveRequest, found["request"]),
                "slots": tuple(json.loads(found["slots"])),
                "room": json.loads(found["room"]),
                "progress": load(Progress, found["progress"]) if found["progress"] else None,
            }
        )

    def view(self, progress: Progress, journal: tuple[StepRecord, ...]) -> JobView:
        return JobView(
            id=self.id,
            state=self.state,
            plan=self.plan,
            created=self.created,
            sentence=self.sentence,
            kind=self.kind,
            limit_bytes_s=self.limit_bytes_s,
            priority=list(Priority)[self.priority].value,
            max_pause_s=self.max_pause_s,
            cancel_asked=self.cancel_asked,
            ended=self.ended,
            progress=progress,
            journal=journal,
            manager=self.manager if self.manager and self.manager != ALONE else "",
        )
