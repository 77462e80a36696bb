"""Copies on their way, and what proves them."""

from __future__ import annotations

from vmferry.errors.base import UsageError, VmferryError

# -- transfers


class SourceUnreadable(VmferryError):
    says = "{path} cannot be read at byte {offset} ({reason}): repair the source storage, then start the job again"
    passing = True


class SourceChanged(VmferryError):
    says = "{path} was changed by something else while it was copied: find what writes to it, then start again"


class SourceGone(VmferryError):
    """A VM that is off cannot be put back on an image that somebody has removed or replaced."""

    says = (
        "{path} on {host}, of disk {target} of {vm}, is gone or another file now{copy}: put it back, or a copy of its "
        "copy, then `vmferry job retry {job}`"
    )


class SourceGoneRunning(SourceGone):
    """The VM runs on it: QEMU alone has what was removed or replaced."""

    says = (
        "{path} on {host} was removed or replaced while {vm} runs on it{copy}: move it back if it was moved; else "
        "leave {vm} running and have QEMU write a new image, "
        "`virsh blockcopy {vm} {target} NEWFILE --transient-job --wait --pivot`, then `vmferry job retry {job}`"
    )


class CopyReplaced(VmferryError):
    """A copy that was compared is gone, or another file has its name, before the job is done with it."""

    says = "{path} on {host} is not the file that was copied and compared, somebody removed or replaced it: {cure}"


class CopyWritten(VmferryError):
    """Somebody has written to a copy that was compared, before the VM was on it."""

    says = "somebody wrote to {path} on {host} after it was copied and compared: {cure}"


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


# -- receipts


class BadReceipt(UsageError):
    says = "{receipt} is not a receipt that can be trusted ({reason}): give the one that vmferry printed"


class OldReceipt(UsageError):
    says = (
        "{receipt} does not say what is needed to verify it (it is of an earlier version, or of a copy by one): "
        "compare the disks themselves"
    )
