"""The lab's guard: takes a lab down when the process that owns it ends in whatever way, `kill -9` included.

Run as `python -m vmferry.lab.guard AT LAB_ID OWNER_PID`, outside the lab's namespaces.
"""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path

from vmferry.lab.host import LabHost
from vmferry.lab.record import read_record

LOOK_EVERY_S = 5  # for a lab that somebody else took down


def main() -> None:
    """Wait for the owner's end, then take down the lab if it is still the same one."""
    at, lab_id, owner = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    try:
        owner_fd = os.pidfd_open(owner)
    except ProcessLookupError:
        owner_fd = None
    while _same_lab(at, lab_id):
        if owner_fd is None or select.select([owner_fd], [], [], LOOK_EVERY_S)[0]:
            LabHost(at).down()
            return


def _same_lab(at: Path, lab_id: str) -> bool:
    record = read_record(at)
    return record is not None and record.lab_id == lab_id


if __name__ == "__main__":
    main()
