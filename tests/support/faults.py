"""Faults of a relocation between two hosts: each made at a moment of the job, and mended by hand."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from tests.support.fleets import ManagedLab
from tests.support.starts import follow

from vmferry.api.client.client import Client
from vmferry.api.client.errors import ServerError
from vmferry.errors import LabLate
from vmferry.lab import LabGuest, LabHost, wait_for
from vmferry.lab.vmferry_command import ENDS
from vmferry.process.state import StateLocation

CUT_S = 5.0
FROZEN_S = 20.0
"""Longer than an agent's silence is borne."""
SEEN_S = 90.0
STARTS = ("Migrate", "Restore")
"""The steps in which libvirtd starts the VM at the destination."""


@dataclass
class Case:
    """A relocation that a fault is made in."""

    fleet: ManagedLab
    guest: LabGuest
    folder: Path
    job: str
    step: str
    hogs: list[Path] = field(default_factory=list)
    powerless: bool = False
    """Has the job asked for the end of the guest?"""

    @property
    def hosts(self) -> tuple[LabHost, LabHost]:
        one, two = self.fleet.lab.hosts
        return one, two

    def state(self) -> str:
        return self.fleet.manager.state(self.job)

    def ended(self) -> bool:
        return self.state() in ENDS

    def past(self) -> bool:
        """The job has left the step, or ended."""
        return self.ended() or self.fleet.manager.step(self.job) != self.step

    def says(self) -> str:
        """What an operator reads of it now."""
        told = self.fleet.manager.job(self.job)
        return f"{told.get('sentence')} {(told.get('progress') or {}).get('now')}"


@dataclass(frozen=True)
class Fault:
    """`inject` tells whether there was anything to strike."""

    name: str
    inject: Callable[[Case], bool]
    mend: Callable[[Case], None]
    ends_guest: bool = False
    """To the guest it may be a power failure."""


def last(seconds: float) -> None:
    """How long a fault lasts is what it is: nothing is waited for."""
    Event().wait(seconds)


def nothing(_case: Case) -> None:
    """It has mended itself."""


def kill_manager(case: Case) -> bool:
    return case.fleet.manager.kill_worker()


def kill_agent(number: int) -> Callable[[Case], bool]:
    def inject(case: Case) -> bool:
        case.fleet.agents[case.hosts[number].name].kill()
        last(1.0)
        return True

    return inject


def start_agent(number: int) -> Callable[[Case], None]:
    return lambda case: case.fleet.agents[case.hosts[number].name].start()


def kill_libvirtd(number: int) -> Callable[[Case], bool]:
    def inject(case: Case) -> bool:
        case.hosts[number].kill_libvirtd()
        last(1.0)
        return True

    return inject


def start_libvirtd(number: int) -> Callable[[Case], None]:
    def mend(case: Case) -> None:
        host = case.hosts[number]
        host.start_libvirtd()
        if number and case.step in STARTS:
            case.powerless = follow(case.fleet.manager, case.job, host, case.guest.name)

    return mend


def kill_qemu(number: int) -> Callable[[Case], bool]:
    def inject(case: Case) -> bool:
        host, name = case.hosts[number], case.guest.name
        if case.step in STARTS:
            wait_for(lambda: host.qemu_pid(name) or case.past(), "QEMU to be there", 60)
        there = host.qemu_pid(name) is not None
        host.kill_qemu(name)
        return there

    return inject


def cut_for_a_while(case: Case) -> bool:
    case.fleet.lab.link("host2").cut("silent")
    last(CUT_S)
    return True


def cut_until_it_is_told(case: Case) -> bool:
    """The operator heals the link once the job has told that it waits for a host."""
    case.fleet.lab.link("host2").cut("silent")
    with suppress(LabLate):
        wait_for(lambda: case.ended() or "host2" in case.says(), "the job to tell", SEEN_S)
    return True


def heal(case: Case) -> None:
    case.fleet.lab.link("host2").heal()


def fill(case: Case) -> bool:
    storage = case.folder.parent
    free = os.statvfs(storage)
    hog = storage / f"hog-{case.job}"
    with hog.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1 << 20, free.f_bavail * free.f_frsize - (1 << 20)))
    case.hogs.append(hog)
    with suppress(LabLate):
        wait_for(case.ended, "the job to meet it", 20)
    return True


def empty(case: Case) -> None:
    for hog in case.hogs:
        hog.unlink(missing_ok=True)


def freeze_manager(case: Case) -> bool:
    pid = case.fleet.manager.worker_pid
    if pid is None:
        return False
    os.kill(pid, signal.SIGSTOP)
    last(FROZEN_S)
    os.kill(pid, signal.SIGCONT)
    return True


def cancel(case: Case) -> bool:
    """As long as there is a way back the job takes it; past that it goes on.

    The worker is asked without the command, which takes longer to begin than most steps take.
    """
    try:
        Client(StateLocation.of(case.fleet.manager.state_folder), print).cancel(case.job)
    except ServerError as refused:
        assert case.ended() or "before its point of no return" in str(refused), refused
        return False
    return True


FAULTS: Sequence[Fault] = (
    Fault("manager killed", kill_manager, nothing),
    Fault("source agent killed", kill_agent(0), start_agent(0)),
    Fault("destination agent killed", kill_agent(1), start_agent(1)),
    Fault("source libvirtd killed", kill_libvirtd(0), start_libvirtd(0)),
    Fault("destination libvirtd killed", kill_libvirtd(1), start_libvirtd(1)),
    Fault("source QEMU killed", kill_qemu(0), nothing, ends_guest=True),
    Fault("destination QEMU killed", kill_qemu(1), nothing, ends_guest=True),
    Fault("link cut for 5 s", cut_for_a_while, heal),
    Fault("link cut until healed", cut_until_it_is_told, heal),
    Fault("destination full", fill, empty),
    Fault("manager frozen and woken", freeze_manager, nothing),
    Fault("cancelled", cancel, nothing),
)
