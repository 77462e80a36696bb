"""`vmferry job resolve`: an operator says where the VM of a relocation is, since one of its hosts is lost for good.

Here stands what forbids it. The rest is the saga's: without the destination a job goes back, without the source
forward, and nothing is asked of the lost host any more (hosts/lost.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vmferry.errors import HostUnreachable, NoSuchHost, NotResolvable, UsageError, VmferryError, WrongState
from vmferry.hosts.interface import Hosts
from vmferry.manager.store import Row
from vmferry.migration.facts import Fact, JobFacts
from vmferry.model import FINAL, MIRRORS, JobState, JobView, Lost, Plan, StepRecord


@dataclass(frozen=True, slots=True)
class Resolution:
    """An operator's word on which host is lost, and what the other host said to that."""

    job: str
    plan: Plan
    lost: Lost
    arrived: bool
    """All of the VM is at the destination, by what that says itself."""

    @property
    def lost_host(self) -> str:
        return host_of(self.plan, self.lost)

    def judge(self, row: Row, journal: tuple[StepRecord, ...], facts: Mapping[str, Fact]) -> None:
        """Raise WrongState or NotResolvable if the job, as it is now, forbids the declaration."""
        said = JobFacts.of(facts).lost
        if row.state in FINAL or row.state is JobState.QUEUED:
            raise WrongState(job=row.id, state=row.state.value, action="resolve", allowed="under way")
        if said is not None and said != self.lost:
            reason = f"its {said} was declared lost before"
        elif self.lost is Lost.DESTINATION:
            reason = self._why_not_back(journal)
        else:
            reason = self._why_not_forward(row, journal)
        if reason:
            raise NotResolvable(job=self.job, reason=reason)

    def _why_not_back(self, journal: tuple[StepRecord, ...]) -> str:
        if _begun(journal, "Retire"):
            return f"{self.plan.vm} ran on {self.plan.to}, and what {self.plan.connect} had of it is being removed"
        return ""

    def _why_not_forward(self, row: Row, journal: tuple[StepRecord, ...]) -> str:
        vm, source, to = self.plan.vm, self.plan.connect, self.plan.to
        if JobState.UNDOING in (row.state, row.before_stuck):
            return f"{vm} is being taken back to {source} already, and {to} has given it up"
        if not _done(journal, "Relinquish"):
            return f"{source} had not given {vm} up when it was last heard of, and {to} does not have all of it"
        if self.plan.technology in MIRRORS and not (self.arrived or _done(journal, "Migrate")):
            return f"{to} does not have all of {vm}: it was still on its way"
        return ""


def resolution(hosts: Hosts, job: str, plan: Plan, vm_is_at: str, vm: str) -> Resolution:
    """Ask both hosts of a relocation, and return what may be declared lost. Raises UsageError, NotResolvable.

    `vm_is_at`: the host that has the VM. `vm`: the VM's name, as a confirmation.
    """
    if plan.to is None:
        raise NotResolvable(job=job, reason=f"it moves {plan.vm} on one host, which it waits for")
    if vm_is_at not in (plan.connect, plan.to):
        raise UsageError(reason=f"job {job} moves {plan.vm} from {plan.connect} to {plan.to}, not to {vm_is_at}")
    if vm != plan.vm:
        raise UsageError(reason=f"job {job} moves {plan.vm}, not {vm}: confirm it with the name of the VM")
    lost = Lost.DESTINATION if vm_is_at == plan.connect else Lost.SOURCE
    away = host_of(plan, lost)
    if _answers(hosts, away, plan.uuid) is not None:
        raise NotResolvable(job=job, reason=f"{away} answers, so nothing has to be guessed: the job goes on by itself")
    arrived = _answers(hosts, vm_is_at, plan.uuid)
    if arrived is None:
        raise NotResolvable(job=job, reason=f"{vm_is_at} does not answer either: bring one of the two back first")
    return Resolution(job, plan, lost, arrived)


def host_of(plan: Plan, end: Lost) -> str:
    return plan.connect if end is Lost.SOURCE else plan.to or plan.connect


def with_facts(view: JobView, facts: JobFacts) -> JobView:
    """Return the job's view with the guest's clock and what was declared of its hosts."""
    view = replace(view, clock=facts.clock or "")
    if facts.lost is None:
        return view
    return replace(view, lost=host_of(view.plan, Lost(facts.lost)), left=tuple(map(Path, facts.left or ())))


def _answers(hosts: Hosts, host: str, uuid: str) -> bool | None:
    """Tell whether the VM is on the host, complete; None when the host does not answer."""
    try:
        return hosts.open(host).arrived(uuid)
    except (HostUnreachable, NoSuchHost):
        return None
    except VmferryError:
        return False  # an answer, if none that helps


def _begun(journal: Iterable[StepRecord], step: str) -> bool:
    return any(record.act == "do" and record.step == step for record in journal)


def _done(journal: Iterable[StepRecord], step: str) -> bool:
    return any(record.act == "do" and record.step == step and record.ok for record in journal)
