"""`make demo`: moves a real guest's storage while it writes, in a lab that leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vmferry.errors import VmferryError
from vmferry.lab import DiskSpec, GuestSpec, LabGuest, LabHost
from vmferry.lab.vmferry_command import VmferryCommand

GUEST = GuestSpec(
    "demo",
    disks=(
        DiskSpec("vda", format="qcow2", size_mib=512, data_mib=192, internal_snapshot="before"),
        DiskSpec("vdb", format="raw", size_mib=512, data_mib=192),
    ),
    rate=0,
)


def main() -> int:
    """Run the demo. Return 0 when the guest has lost no write."""
    try:
        with _lab() as host, VmferryCommand(host.at / "state", host.uri) as ferry:
            return _show(host, ferry)
    except VmferryError as error:
        print(f"the demo cannot run here: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; nothing is left behind", file=sys.stderr)
        return 130


@contextmanager
def _lab() -> Iterator[LabHost]:
    place = Path(tempfile.mkdtemp(prefix="vmferry-demo-"))
    host = LabHost(place / "lab")
    try:
        _say("A private libvirtd comes up beside the system's own, with two storages: san1 (ext4), san2 (xfs).")
        yield host.up(owner_pid=os.getpid())
    finally:
        host.down()
        shutil.rmtree(place, ignore_errors=True)


def _show(host: LabHost, ferry: VmferryCommand) -> int:
    _say("A small guest starts on san1: a qcow2 with an internal snapshot, and a raw disk. It writes as hard")
    _say("as it can, and acknowledges each write only when it is durable.", gap=False)
    guest = LabGuest.make(host, GUEST)
    guest.wait_acks(200)
    folder = host.storage("san2") / GUEST.name
    folder.mkdir()
    words = ("migrate-storage", GUEST.name, "--path", folder)
    _say(f"Its storage moves while it runs:\n\n    vmferry {' '.join(map(str, words))}\n")
    code = ferry.show(*words)
    return code or _judge(guest)


def _judge(guest: LabGuest) -> int:
    guest.wait_acks(200)
    guest.wait_edges(2)
    guest.stop_writing()
    verdict = guest.verdict()
    _say("The guest's own verdict, from what it wrote on its console and what lies on the disks now:\n")
    print(f"    writes acknowledged  {verdict.acknowledged:,}")
    print(f"    writes lost          {verdict.lost}")
    print(f"    longest pause        {verdict.longest_pause_s * 1000:.0f} ms, by the guest's own clock")
    _say("Try it on a VM of your own. The first line changes nothing, it tells what would be done:\n")
    print("    sudo .venv/bin/vmferry migrate-storage VM --path /new/storage --plan")
    print("    sudo .venv/bin/vmferry migrate-storage VM --path /new/storage --keep-source\n")
    return 0 if verdict.clean else 1


def _say(words: str, *, gap: bool = True) -> None:
    print(f"\n{words}" if gap else words, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
