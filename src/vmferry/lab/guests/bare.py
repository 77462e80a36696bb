"""A guest without an operating system, for hosts whose KVM runs no stock kernel (PVM, some nested ones).

Under KVM memory is written while the guest runs: only such a guest can show, there, that no page is lost.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from importlib.resources import files
from pathlib import Path

from vmferry.lab.guests.boot import Boot, default_cache, only_one
from vmferry.lab.guests.disks import DiskSpec
from vmferry.lab.guests.domain import GuestSpec
from vmferry.lab.programs import program, run

SOURCE = Path(str(files("vmferry.lab").joinpath("guests/bare_metal")))
MACHINE = "pc"
PROBE_DEADLINE_S = 30  # its memory and clock are slow where KVM has to emulate it
COMPILE = (
    *("gcc", "-m32", "-O2", "-Wall", "-Wextra", "-ffreestanding", "-fno-pic", "-fno-stack-protector"),
    *("-fno-asynchronous-unwind-tables", "-nostdlib", "-static", "-Wl,--build-id=none,--no-warn-rwx-segments"),
)


BARE_GUEST = GuestSpec(
    "bare",
    disks=(DiskSpec("hda", bus="ide"), DiskSpec("hdb", bus="ide", format="raw")),
    machine=MACHINE,
    bare=True,
    rate=20,
)
"""To be varied with dataclasses.replace; its disks are hda and hdb, on IDE."""


def bare_boot(cache: Path | None = None) -> Boot:
    """Return a bare guest's boot files; build what is not cached, one process at a time.

    Raises LabNeeds, LabProgramFailed.
    """
    with only_one(cache or default_cache()) as folder:
        image = _image(folder)
        return Boot(image, None, "", _accelerator(image))


def _image(cache: Path) -> Path:
    parts = [file.read_bytes() for file in sorted(SOURCE.iterdir()) if file.is_file()]
    image = cache / f"bare-{hashlib.sha256(b''.join(parts)).hexdigest()[:16]}.elf"
    if image.exists():
        return image
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        made = Path(folder, "bare")
        run(*COMPILE, f"-Wl,-T,{SOURCE / 'layout.ld'}", "-o", made, *sorted(SOURCE.glob("*.c")))
        made.replace(image)
    return image


def _accelerator(image: Path) -> str:
    """Return kvm if the bare guest really starts with it, else tcg; the result is kept beside the image."""
    remembered = image.with_suffix(".accelerator")
    if not remembered.exists():
        usable = os.access("/dev/kvm", os.R_OK | os.W_OK) and _starts_under_kvm(image)
        remembered.write_text("kvm" if usable else "tcg")
    return remembered.read_text()


def _starts_under_kvm(image: Path) -> bool:
    words = [program("qemu-system-x86_64"), "-accel", "kvm", "-M", MACHINE, "-m", "64", "-nodefaults"]
    words += ["-display", "none", "-no-reboot", "-serial", "stdio", "-kernel", str(image), "-append", "lab.probe"]
    try:
        tried = subprocess.run(words, capture_output=True, timeout=PROBE_DEADLINE_S, check=False)
    except subprocess.TimeoutExpired:
        return False
    return b"\nbye " in tried.stdout
