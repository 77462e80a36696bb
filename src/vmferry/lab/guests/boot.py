"""The boot files of a lab guest: kernel, initrd, and the accelerator that really runs them. Built once, then cached."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from vmferry.lab.guests.kernel import Kernel, find_kernel
from vmferry.lab.guests.qemu_guest_agent import agent_files
from vmferry.lab.programs import program, run

GUEST = Path(str(files("vmferry.lab").joinpath("guests/linux")))
MODULES = ("virtio_pci", "virtio_console", "virtio_blk", "virtio_scsi", "sd_mod", "button", "evdev")
# cryptomgr.notests and mitigations=off: a second less under tcg. No `mem=`: the kernel takes it as its own.
KERNEL_OPTIONS = "console=ttyS0 quiet loglevel=1 panic=-1 mitigations=off cryptomgr.notests"
PROBE_DEADLINE_S = 15


@dataclass(frozen=True)
class Boot:
    """Everything that starts a guest, except its disks."""

    kernel: Path
    initrd: Path | None
    options: str
    accelerator: str  # "kvm" or "tcg"


def default_cache() -> Path:
    """Return the cache's folder: $VMFERRY_LAB_CACHE, else /var/cache/vmferry-lab for root, else below ~/.cache."""
    if given := os.environ.get("VMFERRY_LAB_CACHE"):
        return Path(given)
    return Path("/var/cache/vmferry-lab") if os.geteuid() == 0 else Path.home() / ".cache/vmferry-lab"


def prepare_boot(cache: Path | None = None, *, agent: bool = False) -> Boot:
    """Return a guest's boot files, building what is not in the cache; safe in several processes at once.

    `agent`: with the real guest agent in the initrd, which doubles its size. Raises LabNeeds, LabProgramFailed.
    """
    with only_one(cache or default_cache()) as cache:
        kernel = find_kernel(cache)
        modules = kernel.with_dependencies(MODULES)
        initrd = _initrd(cache, kernel, modules, agent_files() if agent else {})
        options = f"{KERNEL_OPTIONS} lab.modules={','.join(modules)}"
        return Boot(kernel.image, initrd, options, _accelerator(cache, kernel, initrd, options))


@contextmanager
def only_one(cache: Path) -> Iterator[Path]:
    """Make the cache's folder and hold its lock, so that no other process builds there. A context manager."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield cache


def _initrd(cache: Path, kernel: Kernel, modules: dict[str, bytes], further: Mapping[str, Path]) -> Path:
    """Build the initrd: the guest's program as /init, the modules, and further files by place; named by their hash."""
    source = [file.read_bytes() for file in sorted(GUEST.iterdir())]
    parts = [*source, kernel.version.encode(), *modules.values(), *(file.read_bytes() for file in further.values())]
    initrd = cache / f"initrd-{hashlib.sha256(b''.join(parts)).hexdigest()[:16]}.cpio"
    if initrd.exists():
        return initrd
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        root = Path(folder, "root")
        (root / "modules").mkdir(parents=True)
        (root / "dev").mkdir()
        for name, module in modules.items():
            (root / "modules" / f"{name}.ko").write_bytes(module)
        for place, file in further.items():
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, root / place)
        run("gcc", "-static", "-O2", "-Wall", "-Wextra", "-pthread", "-o", root / "init", *sorted(GUEST.glob("*.c")))
        _pack(root, Path(folder, "initrd"))
        Path(folder, "initrd").replace(initrd)
    return initrd


def _pack(root: Path, into: Path) -> None:
    """Pack all below `root` into a cpio archive for the kernel (newc), uncompressed, since tcg expands slowly."""
    names = "\n".join(["."] + [str(path.relative_to(root)) for path in sorted(root.rglob("*"))])
    with into.open("wb") as out:
        words = [program("cpio"), "-o", "-H", "newc", "--quiet", "-R", "0:0"]
        subprocess.run(words, cwd=root, input=names.encode(), stdout=out, check=True)


def _accelerator(cache: Path, kernel: Kernel, initrd: Path, options: str) -> str:
    """Return kvm if a guest really starts with it, else tcg: /dev/kvm can exist and still not run a stock kernel."""
    remembered = cache / f"accelerator-{kernel.version}"
    if remembered.exists():
        return remembered.read_text()
    answer = "kvm" if os.access("/dev/kvm", os.R_OK | os.W_OK) and _starts_under_kvm(kernel, initrd, options) else "tcg"
    remembered.write_text(answer)
    return answer


def _starts_under_kvm(kernel: Kernel, initrd: Path, options: str) -> bool:
    words = [program("qemu-system-x86_64"), "-accel", "kvm", "-cpu", "host", "-M", "q35", "-m", "128"]
    words += ["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]
    words += ["-kernel", str(kernel.image), "-initrd", str(initrd), "-append", f"{options} lab.probe"]
    try:
        tried = subprocess.run(words, capture_output=True, timeout=PROBE_DEADLINE_S, check=False)
    except subprocess.TimeoutExpired:
        return False
    return b"\nbye " in tried.stdout
