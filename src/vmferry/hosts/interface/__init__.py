"""What a host can do for a job.

`hosts/libvirt` does it on this machine, `hosts/remote` asks the agent of another one, `hosts/simulator` plays it for
tests.

A host is opened to look (`token` None) or to act in a job's name; each act is refused with Superseded when a newer
epoch of the same job has acted. Acts can be repeated: what already is so stays so. All methods may raise
HostUnreachable (try again when it is back) and HostRefused (libvirt's own reason).
"""

from __future__ import annotations

from typing import Protocol

from vmferry.hosts.interface.disks import Disks
from vmferry.hosts.interface.files import Files
from vmferry.hosts.interface.memory import GuestMemory
from vmferry.hosts.interface.processors import HostProcessors
from vmferry.hosts.interface.relocation import Relocation
from vmferry.hosts.interface.transfers import DiskTransfer
from vmferry.hosts.interface.vms import VirtualMachines
from vmferry.model import FencingToken, Folder

__all__ = ["DiskTransfer", "Host", "Hosts", "filesystem_of"]


class Host(VirtualMachines, Disks, GuestMemory, Files, HostProcessors, Relocation, Protocol):
    """Everything that a job may ask of one host; the module's docstring says what every method may raise."""

    name: str


class Hosts(Protocol):
    """Opens hosts by name or libvirt URI."""

    def open(self, connect: str, token: FencingToken | None = None) -> Host:
        """Return the host of that name or libvirt URI, to look at or to act on for a job. Raises NoSuchHost."""


def filesystem_of(folder: Folder, host: Host) -> str:
    """Return a file system's name that is unique among all hosts: two of them may number theirs alike."""
    return f"{folder.filesystem} of {host.name}"
