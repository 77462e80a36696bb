"""What a job's steps found out, so that another process can go on with it or undo it.

Each field is durable when the assignment returns, and reads as None, False or empty until it was written. A comment
names who writes it, and who reads it besides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar, overload

T = TypeVar("T")
Fact = str | int | float | bool | None | list[str]


class FactStore(Protocol):
    """Storage of one job's facts, by name."""

    def get(self, name: str) -> Fact: ...

    def put(self, name: str, value: Fact) -> None:
        """Store a fact; it is durable when this returns. Raises Superseded."""

    def all(self) -> Mapping[str, Fact]: ...


def _flag(fact: Fact) -> bool:
    return fact is True


def _known_flag(fact: Fact) -> bool | None:
    return fact if isinstance(fact, bool) else None


def _count(fact: Fact) -> int:
    return fact if isinstance(fact, int) else 0


def _number(fact: Fact) -> float | None:
    return float(fact) if isinstance(fact, int | float) and not isinstance(fact, bool) else None


def _text(fact: Fact) -> str | None:
    return fact if isinstance(fact, str) else None


def _texts(fact: Fact) -> Sequence[str] | None:
    return tuple(fact) if isinstance(fact, list) else None


def _plain(value: object) -> Fact:
    if isinstance(value, tuple | list):
        return [str(each) for each in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{value!r} is no fact")


class _Field(Generic[T]):
    """Descriptor of one fact, which is stored under the attribute's name."""

    def __init__(self, read: Callable[[Fact], T]) -> None:
        self._read = read

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, facts: None, owner: type) -> Self: ...

    @overload
    def __get__(self, facts: JobFacts, owner: type) -> T: ...

    def __get__(self, facts: JobFacts | None, owner: type) -> Self | T:
        return self if facts is None else self._read(facts.store.get(self._name))

    def __set__(self, facts: JobFacts, value: T | None) -> None:
        facts.store.put(self._name, _plain(value))


class _Each(Generic[T]):
    """Descriptor of a fact that each disk, image or file has; reads as a Table."""

    def __init__(self, read: Callable[[Fact], T]) -> None:
        self._read = read

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, facts: JobFacts, owner: type) -> Table[T]:
        return Table(facts.store, self._name, self._read)


@dataclass(frozen=True, slots=True)
class Table(Generic[T]):
    """One fact of each of several things, by disk target or path."""

    store: FactStore
    name: str
    read: Callable[[Fact], T]

    def __getitem__(self, key: object) -> T:
        return self.read(self.store.get(f"{self.name}:{key}"))

    def __setitem__(self, key: object, value: T) -> None:
        self.store.put(f"{self.name}:{key}", _plain(value))


@dataclass(frozen=True, slots=True)
class _Read:
    """A read-only store of facts that were read before."""

    known: Mapping[str, Fact]

    def get(self, name: str) -> Fact:
        return self.known.get(name)

    def put(self, name: str, value: Fact) -> None:
        raise TypeError("these facts are to look at")

    def all(self) -> Mapping[str, Fact]:
        return self.known


@dataclass
class JobFacts:
    """All facts of one job."""

    store: FactStore

    @classmethod
    def of(cls, known: Mapping[str, Fact]) -> Self:
        """Return facts for reading only, from a mapping of names to values; assigning one raises TypeError."""
        return cls(_Read(known))

    # -- the VM

    ran = _Field(_known_flag)
    """Did the guest run before the cut-over? Pivot, Save, Migrate; resumes, undo, SetClock."""
    undefined = _Field(_flag)
    """Somebody undefined the VM meanwhile. Save, Relinquish; Job.persistent."""
    definition = _Field(_text)
    """All that libvirt had written down of it. Relinquish; Arrive, undo."""
    checkpoints = _Field(_text)
    """The definition with the checkpoints that were forgotten. Freeze and what goes over; Settle, undo."""
    next_start = _Field(_texts)
    """Disks for which the next start names another image. Point, Relinquish; the receipt."""
    stayed = _Field(_texts)
    """Images that a person attached, and that stay at the source. Settle; the receipt."""
    ejected = _Field(_texts)
    """Discs taken out of their drives, their files being gone. Restore, undo of Save; the receipt."""
    seen = _Field(_flag)
    """The VM was seen running at the destination. Settle; Retire."""
    lost = _Field(_text)
    """The end that an operator declared lost, a Lost. Written by `job resolve`; all."""
    left = _Field(_texts)
    """What may still lie on the lost host. Whatever would have removed it; the receipt."""
    away = _Field(_texts)
    """The host that does not answer, and since when. The saga; the job's page."""

    # -- the freeze and the rounds

    frozen = _Field(_flag)
    """The guest writes to the job's overlays. Freeze; whatever watches the room at the source."""
    quiesced = _Field(_text)
    """Were its file systems frozen by the guest agent, a Quiesced. Freeze; the receipt."""
    thaw_owed = _Field(_flag)
    """The guest agent may have frozen them, and has not said that it thawed. Freeze; Freeze, the receipt."""
    rounds = _Field(_count)
    """The highest round that was ever begun. Rounds; all that name overlays."""
    reached = _Field(_count)
    """The highest round in which the disks were seen. Rounds."""
    folded = _Field(_count)
    """How many rounds are in the copy. Rounds, FoldLast."""
    grows_since = _Field(_number)
    """When the newest overlay was begun, a Unix time. Freeze, Rounds; the forecast."""
    growth_bytes_s = _Field(_number)
    """How fast the guest writes. Rounds; the forecast."""
    merging = _Field(_known_flag)
    """Did the guest run as its overlays were begun to be merged back? Undo of Freeze."""
    named = _Each(_texts)
    """What each disk's chain is called in the definition, by target. Freeze; whatever proves the chain."""
    layers = _Each(_texts)
    """What each disk lay on before the job, by target. Freeze; whatever proves the chain."""
    source_inode = _Each(_text)
    """Of each file that the VM had before the job, and of each overlay, by path. Reserve, Freeze, Rounds; all."""
    run = _Field(_text)
    """Which start of the VM it was that had the overlays. Freeze, Rounds; undo."""
    frozen_mark = _Each(_text)
    """The change stamp of each disk's active image as it was frozen, by its path. Freeze; undo."""
    going_home = _Each(_flag)
    """The job has begun to merge the disk's overlays, by target. Undo of Freeze."""
    unmerged = _Field(_texts)
    """Overlays that could not be merged, since the VM has run without them since. Undo of Freeze; the sentence."""
    home = _Each(_flag)
    """The disk is on what it lay on before, by target. Undo of Freeze and of Save."""

    # -- the copies

    copied = _Each(_count)
    """Bytes of each image or overlay that were copied, by its path. CopyBase and the rounds; the receipt."""
    hash = _Each(_text)
    """The root hash of each image, by its path. CopyBase, CompareBase; the receipt."""
    seal = _Each(_text)
    """The seal of each copy, JSON, by its source. CompareBase; the receipt."""
    placed = _Each(_text)
    """By destination: the inode of the copy that was given its name. Promote; what switches to it, Retire."""
    unwritten = _Each(_text)
    """By destination: the change stamp of a copy since the job wrote to it last. Promote, each fold; each next one."""
    brought = _Each(_text)
    """By destination: the inode of a closed overlay's copy that was compared. Rounds, CopyLast."""
    noted_checkpoints = _Field(_texts)
    """Names of the VM's checkpoints before the job touched it. Reserve; what cuts over."""
    noted_snapshots = _Field(_texts)
    """Names of the VM's snapshots just before its definition was recorded. Relinquish."""
    mark = _Each(_text)
    """The change stamp of each source on another host, by its path. CopyBase; Relinquish."""
    file = _Each(_flag)
    """The small file was copied, by its destination. CopyFiles."""
    verified = _Field(_flag)
    """Every byte of the base was compared. CompareBase; the receipt."""
    recopied_chunks = _Field(_count)
    """Chunks that differed and were copied again. CompareBase."""
    rate_bytes_s = _Field(_number)
    """What the base's copy reached. CopyBase; the forecast."""
    limited = _Field(_flag)
    """A limit held it back, so that rate says little. CopyBase; the forecast."""

    # -- the cut-over

    pause_forecast_s = _Field(_number)
    """Rounds; the receipt."""
    pause_s = _Field(_number)
    """How long the guest stood. Pivot, Resume, Migrate; SetClock, the receipt."""
    mirroring = _Field(_flag)
    """The job has begun to mirror into the copies. Mirror; whether a pivot by hand is a way forward."""
    standing = _Field(_flag)
    """The job has begun to make the guest stand for the pivot. Pivot."""
    stands_since = _Field(_number)
    """When the guest stopped, a Unix time. Save; Resume."""
    saved = _Each(_text)
    """The change stamp of each last overlay as the memory was saved, by target. Save; its undo."""
    copy = _Each(_text)
    """The change stamp of each copy before the memory is loaded on it, by target. FoldLast; Restore."""
    loading = _Field(_flag)
    """The memory may have been loaded at the destination. Restore."""
    let_go = _Field(_flag)
    """The guest was let run at the destination of a live relocation. Migrate; its undo."""
    stood_back_s = _Field(_number)
    """How long it stood, of a guest that was loaded where it was. Undo of Save."""
    clock = _Field(_text)
    """What became of the guest's clock. SetClock; the job's page, the receipt."""

    # -- the source

    kept = _Field(_texts)
    """Files of the source that were kept under a dated name. Retire; the receipt."""
    kept_day = _Field(_text)
    """The day in their names. Retire."""
    outcome = _Each(_text)
    """What became of each file of the source, JSON, by its path. Retire; the receipt."""
