"""Turns a request into a plan, and into a job about to be queued."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version

from vmferry import preflight
from vmferry.errors import Refused, UsageError
from vmferry.hosts.interface import Host, Hosts
from vmferry.manager.fleet.file_users import FleetFileUsers, Storages
from vmferry.manager.jobs.leftovers import Leftovers
from vmferry.manager.limits.shared import check_rate
from vmferry.manager.limits.slots import room_of, slots_of
from vmferry.manager.store import NewJob, Store
from vmferry.manager.store.jobs import now
from vmferry.migration.pause_history import LOOK_BACK, pause_factor
from vmferry.model import ACTIVE, Finding, MoveRequest, Plan, Severity
from vmferry.model.names import new_id
from vmferry.process.state import ManagerIdentity, is_local


class Admission:
    """Makes plans from what hosts have and what active jobs have claimed; writes nothing."""

    def __init__(self, identity: ManagerIdentity, hosts: Hosts, store: Store, storages: Storages) -> None:
        self._identity = identity
        self._hosts = hosts
        self._store = store
        self.others = FleetFileUsers(hosts, store, storages)
        self.leftovers = Leftovers(store, hosts, self.others.asking())

    def plan(self, request: MoveRequest) -> Plan:
        """Return what a move would do, and all that stands against it. Raises NoSuchVm, NoSuchDisk, VmBusy."""
        host, there = self._ends(request)
        self._store.refuse_busy(host.vm(request.vm).uuid)  # its disks are the job's overlays meanwhile
        return self._plan(request, host, there)

    def job(self, request: MoveRequest) -> NewJob:
        """Return a job that can be queued. Raises VmBusy, Refused, and what `plan` raises."""
        host, there = self._ends(request)
        # Before the plan: a job that ends while we plan would leave its overlays in it.
        self._store.refuse_busy(host.vm(request.vm).uuid)
        plan = self._plan(request, host, there)
        if plan.blockers:
            reasons = "; ".join(f"{found.what}: {found.cure}" for found in plan.blockers)
            raise Refused(vm=plan.vm, reasons=reasons)
        return NewJob(
            id=new_id(),
            plan=plan,
            request=request,
            version=version("vmferry"),
            slots=slots_of(plan, host, there),
            room=room_of(plan, there),
            created=now(),
            machine=self._identity.reach(plan.connect, plan.to or ""),
        )

    def _plan(self, request: MoveRequest, host: Host, there: Host) -> Plan:
        past = self._store.past(request.connect, LOOK_BACK)
        plan = preflight.plan(
            request,
            host,
            there,
            self._reserved(),
            lambda technology: pause_factor(past, technology, request.to),
            self.others.asking(),
        )
        return replace(plan, findings=(*plan.findings, *self._claimed(plan)))

    def _claimed(self, plan: Plan) -> Iterator[Finding]:
        """Find files that another active job is making: the second of the two would fail once it had copied all."""
        for job, other, file in self.others.claims(plan):
            what = f"{file} is being made by job {job}, which moves VM {other.vm}"
            yield Finding(Severity.BLOCKER, what, "choose another folder, or wait until that job has ended")

    def _ends(self, request: MoveRequest) -> tuple[Host, Host]:
        """Return the host that the VM is on, and the one that it goes to."""
        host = self._hosts.open(request.connect)
        return host, self._hosts.open(request.to) if request.to else host

    def _reserved(self) -> dict[str, int]:
        """Return, by file system, the bytes that active jobs will need there.

        Another machine's own file systems are others, and are left out.
        """
        reserved: Counter[str] = Counter()
        for row in self._store.rows(ACTIVE):
            here = row.machine in (None, self._identity.machine)
            reserved.update({place: room for place, room in row.room.items() if here or not is_local(place)})
        return dict(reserved)


def check_limits(limit_bytes_s: int | None, max_pause_s: float) -> None:
    """Raise UsageError for limits, in bytes a second and in seconds, at which nothing would move."""
    check_rate(limit_bytes_s)
    if not max_pause_s > 0:
        raise UsageError(reason=f"a pause of at most {max_pause_s:g} s is not possible: give more than 0")
