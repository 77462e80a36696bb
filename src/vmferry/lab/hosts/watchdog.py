"""The lab's guard: takes a lab down when the process that owns it ends in any way, `kill -9` included.

Run as `python -m vmferry.lab.hosts.watchdog AT LAB_ID OWNER_PID`, outside the lab's namespaces.
"""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path

from vmferry.lab.hosts.lab import lab_at

LOOK_EVERY_S = 5  # for a lab that somebody else took down


def main() -> None:
    """Wait for the owner's end, then take down the lab if it is still the same one."""
    at, lab_id, owner = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    try:
        owner_fd = os.pidfd_open(owner)
    except ProcessLookupError:
        owner_fd = None
    while (lab := lab_at(at)) and lab.record.lab_id == lab_id:
        if owner_fd is None or select.select([owner_fd], [], [], LOOK_EVERY_S)[0]:
            lab.down()
            return


if __name__ == "__main__":
    main()
