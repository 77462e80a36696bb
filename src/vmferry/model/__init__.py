"""The records that all parts share. Nothing here touches the world.

Bytes are integers in bytes, times are seconds, paths are absolute and mean a file on the record's host.
"""

from vmferry.model.jobs import (
    ACTIVE,
    ALLOWED,
    FINAL,
    DiskProgress,
    DiskReceipt,
    JobState,
    JobView,
    Phase,
    Progress,
    Receipt,
    StepRecord,
    Token,
)
from vmferry.model.plans import (
    DiskMove,
    FileMove,
    Finding,
    ImageMove,
    MoveRequest,
    Plan,
    Ruled,
    Severity,
)
from vmferry.model.vms import (
    Disk,
    Folder,
    Image,
    Placed,
    Power,
    Technology,
    Url,
    Vm,
    Volume,
    Where,
)

__all__ = [
    "ACTIVE",
    "ALLOWED",
    "FINAL",
    "Disk",
    "DiskMove",
    "DiskProgress",
    "DiskReceipt",
    "FileMove",
    "Finding",
    "Folder",
    "Image",
    "ImageMove",
    "JobState",
    "JobView",
    "MoveRequest",
    "Phase",
    "Placed",
    "Plan",
    "Power",
    "Progress",
    "Receipt",
    "Ruled",
    "Severity",
    "StepRecord",
    "Technology",
    "Token",
    "Url",
    "Vm",
    "Volume",
    "Where",
]
