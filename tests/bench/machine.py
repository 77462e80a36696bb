"""What the bench ran on."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence

import libvirt

from vmferry.lab.guests.boot import prepare_boot
from vmferry.lab.programs import run


def machine() -> dict[str, str]:
    """Cores, accelerator, kernel and versions; and the load, which tells whether the figures are worth much."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": f"{os.cpu_count()} ({_processor()})",
        "memory": f"{memory / (1 << 30):.0f} GiB",
        "guests run on": prepare_boot().accelerator,
        "kernel": platform.release(),
        "QEMU": run("qemu-img", "--version").split()[2],
        "libvirt": _dotted(libvirt.getVersion()),
        "load at the start": f"{os.getloadavg()[0]:.1f}",
    }


def headline(facts: dict[str, str], runs: int) -> Sequence[str]:
    """What stands above the table."""
    told = [f"{name} {value}" for name, value in facts.items()]
    return [
        ", ".join(told[:2]),
        ", ".join(told[2:]),
        f"Medians of {runs} and their spread, in seconds; ratio is vmferry's median to the other's: less is better.",
        "The aim is a ratio where it says x. All sides of a case run in turn, so that a slow moment hits them alike.",
        "Guests write 100 times a second to two disks, qcow2 and raw, that go from ext4 to xfs; the reflink case",
        "has one raw disk in one xfs. vmferry hashes all that it copies, and in a job compares it too; the others do",
        "neither. It moves in the foreground, as they do, but for the guest's latency: there with --priority low.",
        "CPU is that of all processes, a server's too.",
    ]


def _processor() -> str:
    with open("/proc/cpuinfo") as file:  # noqa: PTH123  # no path of ours
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _dotted(version: int) -> str:
    return f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"
