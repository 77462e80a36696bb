"""What a person asked for, and what becomes of a job."""

from __future__ import annotations

from vmferry.errors.base import UsageError, VmferryError

# -- finding things


class NoSuchVm(UsageError):
    says = "there is no VM named {vm} on {host}: see `vmferry vms`"


class MistypedVm(NoSuchVm):
    says = "there is no VM named {vm} on {host}: did you mean {meant}? `vmferry vms` lists them all"


class NoSuchDisk(UsageError):
    says = "{vm} has no disk {target}: it has {present}"


class NoSuchJob(UsageError):
    says = "there is no job {job}: see `vmferry jobs`"


class AmbiguousJob(UsageError):
    says = "{job} may mean any of {candidates}: give more of its letters"


class NoSuchHost(UsageError):
    says = "there is no host {host}: see `vmferry host list`, or name a libvirt URI"


class OtherAuthority(UsageError):
    says = (
        "{folder} does not hold the authority that signed for the hosts in these records: stop this manager, "
        "put a copy of `authority/` of the manager that added the first host there, and start it again"
    )


class HostKnown(UsageError):
    says = "there is a host {host} already: `vmferry host remove {host}` first, or choose another name"


class HostBusy(VmferryError):
    says = "{host} is needed by {jobs}: wait for them, or cancel them"
    exit_code = 3


class NoSuchStorage(UsageError):
    says = "{host} has no storage {storage}: see `vmferry storage list`"


class StorageKnown(UsageError):
    says = "{host} has a storage {storage} already, at {path}: `vmferry storage remove {storage} --host {host}` first"


class StorageUnfit(UsageError):
    says = "{path} on {host} cannot be a storage: {reason}"


class JoinRefused(UsageError):
    says = "{address} does not let this manager in ({reason}): get a new token there, `vmferry agent --new-token`"


# -- jobs


class Refused(VmferryError):
    """Preflight found what would stop the job; the VM was not touched."""

    says = "{vm} cannot be moved: {reasons}"
    exit_code = 3


class VmBusy(VmferryError):
    says = "{vm} is being moved by job {job}: wait for it, or `vmferry job cancel {job}`"
    exit_code = 3


class WrongState(UsageError):
    says = "job {job} is {state}: {action} is possible only while it is {allowed}"


class NotResolvable(VmferryError):
    says = "job {job} cannot be resolved this way: {reason}"
    exit_code = 3


class DestinationLost(VmferryError):
    """An operator has declared the destination host lost: `vmferry job resolve`."""

    says = (
        "{host} was declared lost, {vm} is taken back on {source}{as_of}: never start it on {host} again; "
        "once that is back, look at `vmferry leftovers --connect {host}`"
    )


class PlanChanged(VmferryError):
    says = (
        "job {job} was planned by another version of vmferry ({theirs}), this one has {ours}: "
        "finish it with that version, or cancel it there"
    )
    exit_code = 4


class Superseded(VmferryError):
    says = "job {job} was taken over (epoch {epoch} is older than {newest}): this process no longer acts for it"


class StoreAway(VmferryError):
    """The database cannot be reached, or ended the session. What was being written may have been written, or not."""

    says = (
        "the records of vmferry cannot be reached ({reason}): see that the database runs; jobs go on by themselves then"
    )
    passing = True


class WorkerRunning(VmferryError):
    says = "a worker (process {pid}) already serves {state}: commands reach it by themselves"


class AgentRunning(VmferryError):
    says = "an agent (process {pid}) already serves {state}"


class WorkerUnreachable(VmferryError):
    says = "the worker for {state} did not answer: {reason}; its log is {log}"


class Cancelled(VmferryError):
    says = "cancelled"
    exit_code = 5


class Suspended(VmferryError):
    """Raised into a step that copies, which is done again once the job may go on."""

    says = "suspended"
