"""The lab: a real libvirt host, storages and guests beside the machine's own, to try vmferry without risk.

    with LabHost(Path("/tmp/lab")).up() as host:
        guest = LabGuest.make(host, GuestSpec("web", disks=(DiskSpec("vda"), DiskSpec("vdb", format="raw"))))
        ...
        assert guest.verdict().clean

A guest stamps every write and acknowledges it when it is durable; afterwards each acknowledged write must be found.
"""

from vmferry.lab.guests.bare import BARE_GUEST
from vmferry.lab.guests.console import Ack
from vmferry.lab.guests.disks import DiskSpec
from vmferry.lab.guests.domain import GuestSpec
from vmferry.lab.guests.guest import LabGuest
from vmferry.lab.guests.verdict import GuestVerdict
from vmferry.lab.hosts.host import LabHost
from vmferry.lab.hosts.lab import Lab
from vmferry.lab.hosts.storage import StorageSpec
from vmferry.lab.programs import wait_for

__all__ = [
    "BARE_GUEST",
    "Ack",
    "DiskSpec",
    "GuestSpec",
    "GuestVerdict",
    "Lab",
    "LabGuest",
    "LabHost",
    "StorageSpec",
    "wait_for",
]
