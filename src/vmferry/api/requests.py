"""Request bodies of the API, validated on arrival."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from vmferry.model import MoveRequest, Priority, Receivers, Scope, SharedLimit, Url, Window
from vmferry.model.limits import DAY_MIN
from vmferry.model.processors import CpuLimitRequest
from vmferry.model.transfers import NO_PROGRESS_S, RETRY_DELAY_S, SHORTEST_RETRY_DELAY_S, TransferRequest


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError(f"must be an absolute path, not {path}")
    return path


Name = Annotated[str, Field(min_length=1, max_length=1024)]
Absolute = Annotated[Path, AfterValidator(_absolute)]


class UrlBody(BaseModel):
    """A network volume, by its URL."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[str, Field(min_length=7, max_length=2048)]


Words = Annotated[str, Field(min_length=1, max_length=8192, description="A path or a URL")]
Rate = Annotated[int, Field(ge=1, description="bytes a second")]
Pause = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False, description="seconds")]


class ReceiversBody(BaseModel):
    """Receivers of notices: a command, a webhook, both or neither."""

    model_config = ConfigDict(extra="forbid")

    command: Annotated[str, Field(max_length=8192)] = ""
    url: Annotated[str, Field(max_length=2048)] = ""
    secret: Absolute | None = None

    def receivers(self) -> Receivers:
        return Receivers(self.command, self.url, self.secret)


class MoveBody(BaseModel):
    """A move of a VM's storage, or of a VM to another host: `vmferry migrate-storage` and `vmferry migrate`."""

    model_config = ConfigDict(extra="forbid")

    vm: Name
    connect: Name
    path: Absolute | None = None
    disks: dict[Name, Absolute | UrlBody] = Field(default_factory=dict, max_length=256)
    via: Literal["auto", "live", "quick", "offline", "lan"] = "auto"
    max_pause_s: Pause = 2.0
    limit_bytes_s: Rate | None = None
    keep_source: bool = False
    remove_bases: bool = False
    overlays: Absolute | None = None
    format: Literal["raw", "qcow2"] | None = None
    overwrite: bool = False
    priority: Priority = Priority.NORMAL
    to: Name | None = None
    networks: dict[Name, Name] = Field(default_factory=dict, max_length=256)
    notify: ReceiversBody = ReceiversBody()
    iso: Literal["copy", "same", "eject"] = "copy"

    def request(self) -> MoveRequest:
        return MoveRequest(
            to=self.to,
            networks=self.networks,
            iso=self.iso,
            vm=self.vm,
            connect=self.connect,
            path=self.path,
            disks={t: Url(to.url) if isinstance(to, UrlBody) else to for t, to in self.disks.items()},
            via=self.via,
            max_pause_s=self.max_pause_s,
            limit_bytes_s=self.limit_bytes_s,
            keep_source=self.keep_source,
            remove_bases=self.remove_bases,
            overlays=self.overlays,
            format=self.format,
            overwrite=self.overwrite,
            priority=self.priority.value,
            notify=self.notify.receivers(),
        )


class PriorityBody(BaseModel):
    """A job's or transfer's new priority."""

    model_config = ConfigDict(extra="forbid")

    priority: Priority


class ResolveBody(BaseModel):
    """The host that has the VM, and the VM's name as a confirmation: `vmferry job resolve`."""

    model_config = ConfigDict(extra="forbid")

    vm_is_at: Name
    vm: Name


class LimitBody(BaseModel):
    """New limits for a job; a field that is left out stays, a null rate means no limit."""

    model_config = ConfigDict(extra="forbid")

    limit_bytes_s: Rate | None = None
    max_pause_s: Pause | None = None


class WindowBody(BaseModel):
    """A weekly window with a limit; at 0 bytes a second nothing moves in it."""

    model_config = ConfigDict(extra="forbid")

    days: Annotated[list[Annotated[int, Field(ge=0, le=6)]], Field(min_length=1, max_length=7)]
    from_min: Annotated[int, Field(ge=0, lt=DAY_MIN)]
    to_min: Annotated[int, Field(ge=0, le=DAY_MIN)]
    limit_bytes_s: Annotated[int, Field(ge=0, description="bytes a second")]

    def window(self) -> Window:
        return Window(tuple(sorted(set(self.days))), self.from_min, self.to_min, self.limit_bytes_s)


class SharedLimitBody(BaseModel):
    """A limit of a host (no place) or of a storage; a field that is left out stays, a null rate means no limit."""

    model_config = ConfigDict(extra="forbid")

    scope: Scope
    connect: Name
    place: Annotated[str, Field(max_length=2048)] = ""
    limit_bytes_s: Rate | None = None
    during: Annotated[list[WindowBody], Field(max_length=64)] = Field(default_factory=list)

    def onto(self, before: SharedLimit) -> SharedLimit:
        """Return the earlier limit with the fields that this request sets."""
        if "limit_bytes_s" in self.model_fields_set:
            before = replace(before, limit_bytes_s=self.limit_bytes_s)
        if "during" in self.model_fields_set:
            before = replace(before, during=tuple(body.window() for body in self.during))
        return before


class CpuLimitBody(BaseModel):
    """A request to limit a VM's CPU: `vmferry cpu limit`."""

    model_config = ConfigDict(extra="forbid")

    vm: Name
    connect: Name
    to: Name
    hosts: Annotated[tuple[Name, ...], Field(max_length=256)] = ()
    xml: Annotated[str, Field(max_length=64 << 10)] = ""

    def request(self) -> CpuLimitRequest:
        return CpuLimitRequest(**self.model_dump())


class TransferBody(BaseModel):
    """A transfer for the worker to carry out: `vmferry copy --detach`."""

    model_config = ConfigDict(extra="forbid")

    source: Words
    destination: Words
    connect: Name
    source_format: Name = "raw"
    destination_format: Name = "raw"
    tls: Absolute | None = None
    streams: Annotated[int, Field(ge=1, le=32)] = 4
    limit_bytes_s: Rate | None = None
    priority: Priority = Priority.NORMAL
    retry_delay_s: Annotated[float, Field(ge=SHORTEST_RETRY_DELAY_S, allow_inf_nan=False)] = RETRY_DELAY_S
    no_progress_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = NO_PROGRESS_S
    hand_over: bool = False
    notify: ReceiversBody = ReceiversBody()

    def request(self) -> TransferRequest:
        plain = {"priority": self.priority.value, "notify": self.notify.receivers()}
        return TransferRequest(**self.model_dump() | plain)


class HostBody(BaseModel):
    """A host to add, with its agent's address and token: `vmferry host add`."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    address: Annotated[str, Field(min_length=1, max_length=300)]
    token: Annotated[str, Field(min_length=1, max_length=300)]
    also: Annotated[list[Annotated[str, Field(min_length=1, max_length=253)]], Field(max_length=32)] = []


class StorageBody(BaseModel):
    """A storage for a host to serve: `vmferry storage add`."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    host: Name
    path: Absolute
    grade: Annotated[str, Field(max_length=64)] = ""


class RateBody(BaseModel):
    """A new limit; a null rate means no limit."""

    model_config = ConfigDict(extra="forbid")

    limit_bytes_s: Rate | None
