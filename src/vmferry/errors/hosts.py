"""Hosts, the VMs on them and their processors."""

from __future__ import annotations

from vmferry.errors.base import UsageError, VmferryError

# -- hosts


class HostUnreachable(VmferryError):
    """libvirtd or an agent is away; the same call may succeed when it is back.

    A job that meets it waits, and adds that to the sentence; a command ends with it, and nothing was touched.
    """

    says = "{host} does not answer ({reason}): start libvirtd there (`systemctl start libvirtd`)"
    exit_code = 3


class HostDenied(HostUnreachable):
    """This user may not talk to that libvirtd."""

    says = "{host} does not let you in ({reason}): {cure}"


class HostNotFound(HostUnreachable):
    """The host's name in a libvirt URI has no address."""

    says = "{host} cannot be found ({reason}): look at how its name is spelled, and whether it resolves here"


class NoQemuDriver(HostUnreachable):
    """libvirtd answers, and has nothing to run VMs with."""

    says = (
        "{host} has no driver for QEMU ({reason}): install libvirt's there (Debian: libvirt-daemon-driver-qemu), "
        "then restart libvirtd"
    )


class BadConnectUri(HostUnreachable):
    """No libvirtd of any host has QEMU behind such a URI."""

    says = "{host} is no URI of a host with QEMU ({reason}): write qemu:///system, or qemu+ssh://root@HOST/system"
    exit_code = 2


class HostLost(VmferryError):
    """Something still needs a host that an operator has declared lost."""

    says = "{host} was declared lost and is needed all the same: bring it back, then `vmferry job retry`"
    exit_code = 4


class AgentUnreachable(HostUnreachable):
    says = "{host} does not answer ({reason}): start vmferry's agent there"


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


class FoldersRefused(VmferryError):
    """Folders that a move needs, found all at once in preflight."""

    says = "{refused}: declare what is missing, each under a NAME of its own, with {commands}"
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


class WayBroke(HostRefused):
    """libvirt at the source lost its connection to the other host during a migration; it still answers itself."""

    says = (
        "the way from {host} to the other host broke ({action}: {reason}): look at the link, and at libvirtd and "
        "vmferry's agent there, then start the job again"
    )


class VmHeld(HostRefused):
    """libvirt is at work on that VM, and did nothing: the same call may succeed once that has ended."""

    says = (
        "{host} could not {action} yet ({reason}): a job tries again by itself; "
        "if libvirt's work on the VM never ends, restart libvirtd there"
    )
    passing = True


class VmHalfStarted(VmHeld):
    """libvirtd was killed as it started that VM, and takes it for one that starts until it is restarted once more."""

    says = (
        "{host} takes {vm} for a VM that starts, but it has no QEMU there, since libvirtd was killed as it started it: "
        "restart libvirtd there (VMs that run stay as they are), then the job goes on by itself"
    )


class VmRunningUnseen(VmHeld):
    """A running VM counts as off, since libvirtd was killed in a bad moment and cannot read its own note of it."""

    says = (
        "{host} takes {vm} for off, but its QEMU runs (process {pid}), since libvirtd was killed and cannot read its "
        "note of the VM: shut the guest down from within, or end that process, which is a power failure to it, "
        "then the job goes on by itself; do not start the VM before"
    )


class StartedOnOverlay(VmHeld):
    """A VM was started again while a job had its disks frozen: QEMU may write the overlay it found, not the base."""

    says = (
        "{host} may not merge {path} while {vm} runs ({reason}), since {vm} was started on it in the midst of the job: "
        "it goes on running; shut it down when it suits, then the job ends by itself"
    )


class CannotStart(VmferryError):
    """Something needed to start the VM again is missing, seen before its memory leaves QEMU: nothing was saved."""

    says = "{host} could not start {vm} again, since this is not there: {what}; {cure}, then start the job again"
    exit_code = 3


class StartNeeds(VmHeld):
    """What the VM needs to start went missing while the guest stood. Its memory is kept, and loaded once it can be."""

    says = (
        "{host} cannot start {vm} again, since this is not there: {what}; its memory is kept in {path}: {cure}, "
        "then the guest goes on by itself"
    )


class GuestGone(VmferryError):
    says = (
        "{vm} stopped running while it was being moved: all that it wrote is kept, "
        "start it again once this job has ended"
    )


class ChainChanged(VmferryError):
    """Somebody else changed what a VM's disks lie on while a job had them."""

    says = (
        "{vm} was changed by somebody else while it was being moved: {change}; nothing is lost, what they made stays "
        "theirs: start the move again once they are done"
    )


class VmUndefined(VmferryError):
    says = (
        "{vm} was stopped and undefined by somebody else while it was being moved: all that it wrote is in its images, "
        "which stay where they were"
    )


class DiskHeld(VmHeld):
    """A block job that is not the job's own runs on a disk that is to be put back."""

    says = (
        "{host} cannot put disk {target} of {vm} back while somebody's block job ({kind}) runs on it: "
        "once that has ended, or `virsh blockjob {vm} {target} --abort`, the job goes on by itself"
    )


class RunWithout(ChainChanged):
    """A VM was started from a definition that was put back to what it was before the job."""

    says = (
        "{vm} was changed by somebody else while it was being moved: it was started again, and not from what it had "
        "written since the move began"
    )


class SnapshotHeld(VmHeld):
    """An internal snapshot that a person took lies in an overlay of a job: merging that would lose it."""

    says = (
        "{path} on {host} holds the snapshot {snapshot} of {vm}, which was taken while it was being moved and cannot "
        "be kept in what lies below: {vm} runs on as it is; `virsh snapshot-delete {vm} {snapshot}` when it is no "
        "longer needed, then the job ends by itself"
    )


class MemoryElsewhere(VmHeld):
    """A person saved a VM's memory to a file of their own while a job had its disks frozen: it names the overlays."""

    says = (
        "{vm} was saved to a file on {host} while it was being moved, and that file needs {path}: restore it "
        "(`virsh restore FILE`), or start {vm} without that memory, then the job ends by itself"
    )


class StillNamed(VmHeld):
    """An overlay of a job is named by somebody's disk."""

    says = "{path} on {host} is needed by {users}, so it stays: take it out of their disks, then the job ends by itself"


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


class SourceFull(SourceFilling):
    """The guest's writes have filled the source's storage, and QEMU has paused the guest."""

    says = (
        "{path} has only {free} MiB left while the guest's writes gather there, and {vm} stands: the move is undone; "
        "free space there, `virsh resume {vm}`, then start the job again"
    )


class MirrorEnded(VmferryError):
    says = (
        "the mirror of disk {target} of {vm} has ended ({reason}): if nobody ended it, mend the destination; "
        "then start again"
    )


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
