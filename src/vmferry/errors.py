"""Every error that a person can meet: fields, and one sentence that says what to do.

An error is raised where the fact is known and caught at three borders only: a step, a request, a command.
"""

from __future__ import annotations

from string import Formatter
from typing import ClassVar


class VmferryError(Exception):
    """An error with fields; `says` is the sentence, formatted with them."""

    says: ClassVar[str] = "{reason}"
    exit_code: ClassVar[int] = 1
    passing: ClassVar[bool] = False
    """It may pass by itself, or by what somebody does to a storage or a link: the same call may succeed later."""

    def __init__(self, **fields: object) -> None:
        missing = {name for _, name, _, _ in Formatter().parse(self.says) if name} - fields.keys()
        if missing:
            raise TypeError(f"{type(self).__name__} needs {', '.join(sorted(missing))}")
        self.fields = fields
        super().__init__(self.says.format(**fields))


class UsageError(VmferryError):
    """The request itself is wrong; nothing was looked at."""

    exit_code = 2


# -- finding things


class NoSuchVm(UsageError):
    says = "there is no VM named {vm} on {host}: see `vmferry vms`"


class NoSuchDisk(UsageError):
    says = "{vm} has no disk {target}: it has {present}"


class NoSuchJob(UsageError):
    says = "there is no job {job}: see `vmferry jobs`"


class AmbiguousJob(UsageError):
    says = "{job} may mean any of {candidates}: give more of its letters"


class NoSuchHost(UsageError):
    says = "there is no host {host}: see `vmferry host list`, or name a libvirt URI"


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


# -- hosts


class HostUnreachable(VmferryError):
    """libvirtd or an agent is away; the same call may succeed when it is back."""

    says = "{host} does not answer ({reason}): start libvirtd there, the job waits for it"


class AgentUnreachable(HostUnreachable):
    says = "{host} does not answer ({reason}): start vmferry's agent there, the job waits for it"


class PeerRefused(HostUnreachable):
    """A certificate was refused, by this side or by the other."""

    says = "{host} and this side do not trust each other ({reason}): see `vmferry host list`, renew or add the host"


class AgentVersionMismatch(VmferryError):
    says = (
        "{host} speaks version {theirs} of the agents' protocol, this side {ours}: install the same vmferry on {older}"
    )
    exit_code = 4


class AgentFailed(VmferryError):
    says = "{host} failed in a way that nobody foresaw ({reason}): the agent's log there has the details"


class PathRefused(VmferryError):
    says = "{host} does not serve {path} ({reason}): see `vmferry storage list`"
    exit_code = 3


class VmRefused(VmferryError):
    says = "{host} refuses job {job} the VM {vm}: the job moves {own}"
    exit_code = 3


class RequestTooLarge(UsageError):
    says = "the request has more than {most} bytes"


class BadXml(VmferryError):
    says = "that is no XML of libvirt's ({reason}): look at who sent it"


class HostRefused(VmferryError):
    """libvirt answered, with an error of its own."""

    says = "{host} refused to {action}: {reason}"


class GuestGone(VmferryError):
    says = "{vm} stopped running while it was being moved: the move is undone, start the VM again when it suits"


class ImageToolFailed(VmferryError):
    says = "{tool} failed on {path}: {reason}"


class SourceInUse(VmferryError):
    says = "{path} is being written by another process: stop the VM or tool that has it open, then start again"


class VmChanged(VmferryError):
    says = "{vm} is not what it was when the move was planned ({change}): start the job again"


class VolumeChanged(VmferryError):
    says = "{path} is not what it was when the move was planned ({change}): look at it, then start the job again"
    exit_code = 3


class SourceFilling(VmferryError):
    says = (
        "{path} has only {free} MiB left while the guest's writes gather there: the move is undone before "
        "the guest meets a full disk; free space there, then start the job again"
    )


class MirrorEnded(VmferryError):
    says = "the mirror of disk {target} of {vm} ended by itself ({reason}): mend the destination, then start again"


class NotSeenRunning(VmferryError):
    says = "{vm} has not been seen on {path}: the source is kept until it is; look at `vmferry vm show {vm}`"
    exit_code = 4


class VmExists(VmferryError):
    says = "{host} has a VM {vm} already that this job did not announce: rename or remove it, then start again"
    exit_code = 3


class SavedStateSpent(VmferryError):
    says = "{path} was released on {host}, the VM has run there: go on there with `vmferry job retry {job}`"
    exit_code = 4


class SavedStateUncertain(VmferryError):
    says = (
        "{vm} is off and its saved state {path} cannot be proved to be newer than its disks: "
        "start {vm} from its disks (as after a power failure), then `vmferry job retry {job}`"
    )
    exit_code = 4


# -- processors


class BadCpuXml(UsageError):
    says = "this is not libvirt's <cpu> element ({reason}): take what `vmferry cpu baseline HOST --xml` prints"


class NoSuchCpu(UsageError):
    says = (
        "{host} knows no CPU model {model}: give baseline, x86-64-v2, x86-64-v3, x86-64-v4, none, "
        "or one that `virsh cpu-models {arch}` names there"
    )


class NoGuestsOfKind(UsageError):
    says = "{host} has no {guests} guests, it has {present}: choose another host, or mend its emulator"


class NotPersistent(VmferryError):
    says = "{vm} is transient, so it has no definition to change: define it first (`virsh dumpxml`, `virsh define`)"
    exit_code = 3


class CpuUnfit(VmferryError):
    says = "{host} cannot give {vm} the CPU {to}: it lacks {missing}; choose a lower one"
    exit_code = 3


class VendorsDiffer(VmferryError):
    says = "{vendors}: processors of different vendors have no CPU in common; group the hosts by vendor"
    exit_code = 3


class BaselineUnfit(VmferryError):
    says = "no greatest common CPU of {hosts} was found ({reason}): try `vmferry cpu limit VM --to x86-64-v2` instead"
    exit_code = 3


# -- transfers


class SourceUnreadable(VmferryError):
    says = "{path} cannot be read at byte {offset} ({reason}): repair the source storage, then start the job again"
    passing = True


class SourceChanged(VmferryError):
    says = "{path} was changed by something else while it was copied: find what writes to it, then start again"


class DestinationExists(VmferryError):
    says = "{path} exists and is never overwritten: move it away or choose another folder"
    exit_code = 3


class DestinationFull(VmferryError):
    says = "{path} has no space left: free some on that storage or choose another, then start the job again"
    passing = True


class DestinationUnwritable(VmferryError):
    says = "{path} cannot be written ({reason}): mend the destination storage or choose another"
    passing = True


class CopyDiffers(VmferryError):
    says = (
        "{path} does not hold what was written ({chunks} chunks differ after {tries} tries): do not trust that storage"
    )


class BookmarksDamaged(VmferryError):
    says = "the bookmarks {path} are damaged ({reason}): the transfer starts again from the beginning"


class BadPlace(UsageError):
    says = "{place} is not a place to copy from or to: {reason}"


class DestinationInUse(VmferryError):
    says = "{path} is mounted or open elsewhere: unmount it or stop what uses it, then start again"
    exit_code = 3


class DestinationTooSmall(VmferryError):
    says = "{path} has {size} bytes, {needed} are needed: make it larger or choose another"
    exit_code = 3


class DestinationChanged(VmferryError):
    says = (
        "{path} is not what it was when this copy began (another device, size or server): name the right one, "
        "or remove {bookmarks} to begin anew"
    )
    exit_code = 3


class CopyRunning(VmferryError):
    says = "a copy to {destination} is running: wait for it, or end it first"
    exit_code = 3


class ExportFailed(VmferryError):
    says = "{path} cannot be opened ({reason}): check its name, its format and that nothing else has it open"
    passing = True


class NoSuchTransfer(UsageError):
    says = "there is no transfer {transfer}: see `vmferry transfer list`"


class AmbiguousTransfer(UsageError):
    says = "{transfer} may mean any of {candidates}: give more of its letters"


class TransferWrongState(UsageError):
    says = "transfer {transfer} is {state}: {action} is possible only while it is {allowed}"


class TransferElsewhere(UsageError):
    says = "transfer {transfer} is carried by the manager {manager}: steer it on that machine"


class DestinationTaken(VmferryError):
    says = "transfer {transfer} goes there already: wait for it, or `vmferry transfer cancel {transfer}`"
    exit_code = 3


# -- tunnels between hosts


class TunnelRefused(VmferryError):
    says = "there is no tunnel with {peer} ({reason}): mend that, then try again with a new ticket"
    passing = True


class TunnelCut(VmferryError):
    says = "the tunnel was cut ({reason}): what passed through it can go on through a new one"
    passing = True


# -- notices


class NotTold(VmferryError):
    """One try to deliver a notice has failed; it is tried again, and nothing else suffers from it."""

    says = "{to} was not told: {reason}"


# -- receipts


class BadReceipt(UsageError):
    says = "{receipt} is not a receipt that can be trusted ({reason}): give the one that vmferry printed"


class OldReceipt(UsageError):
    says = (
        "{receipt} does not say what is needed to verify it (it is of an earlier version, or of a copy by one): "
        "compare the disks themselves"
    )


# -- the lab


class LabNeeds(UsageError):
    says = "the lab needs {missing}: {cure}"


class LabRunning(UsageError):
    says = "a lab already runs at {at}: use it, or end it first with `vmferry lab down --at {at}`"


class NoLab(UsageError):
    says = "no lab runs at {at}: `vmferry lab up --at {at}` starts one"


class LabPlaceUnfit(UsageError):
    says = "{at} cannot hold a lab ({reason}): choose another folder with --at"


class NoSuchLabHost(UsageError):
    says = "the lab has no host {host}: it has {present}"


class LabLinkUnfit(UsageError):
    says = "the link of {link} cannot become so: {reason}"


class LabLate(VmferryError):
    says = "waited {deadline_s} s in vain for {what}: {evidence}"


class LabProgramFailed(VmferryError):
    says = "{program} failed in the lab: {reason}"


# -- the command, its worker and the API between them


class StateUnusable(UsageError):
    says = "the state {state} cannot be used ({reason}): choose another with --state or VMFERRY_STATE"


class BadRequest(UsageError):
    says = "the request is wrong: {reason}"


class Unforeseen(VmferryError):
    says = "vmferry met something that nobody foresaw ({reason}): the worker's log {log} has the details"
