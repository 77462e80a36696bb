"""The lab: a real libvirt host, storages and guests beside the machine's own, to try vmferry without risk.

    with LabHost(Path("/tmp/lab")).up() as host:
        guest = host.guest(GuestSpec("web", disks=(DiskSpec("vda"), DiskSpec("vdb", format="raw"))))
        ...
        assert guest.verdict().clean

A guest stamps every write and acknowledges it when it is durable; afterwards each acknowledged write must be found.
"""

from vmferry.lab.bare import BARE_GUEST
from vmferry.lab.console import Ack
from vmferry.lab.disks import DiskSpec
from vmferry.lab.domain import GuestSpec
from vmferry.lab.guests import LabGuest
from vmferry.lab.host import LabHost
from vmferry.lab.programs import wait_for
from vmferry.lab.several import Lab
from vmferry.lab.storage import StorageSpec
from vmferry.lab.verdict import Verdict

__all__ = [
    "BARE_GUEST",
    "Ack",
    "DiskSpec",
    "GuestSpec",
    "Lab",
    "LabGuest",
    "LabHost",
    "StorageSpec",
    "Verdict",
    "wait_for",
]
