"""Finds a kernel for lab guests: the machine's own, or Debian's cloud kernel, unpacked and never installed."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from vmferry.errors import LabNeeds, LabProgramFailed
from vmferry.lab.programs import program, run

META_PACKAGE = "linux-image-cloud-amd64"
UNPACK = {".xz": "xz", ".zst": "zstd", ".gz": "gzip"}


@dataclass(frozen=True)
class Kernel:
    """A kernel image and its modules, of one version."""

    version: str
    image: Path
    modules: Path

    def with_dependencies(self, names: tuple[str, ...]) -> dict[str, bytes]:
        """Return these modules and all they need, in the order to load them; built-in ones are left out."""
        files = {_module_name(file): file for file in self.modules.rglob("*.ko*")}
        ordered: dict[str, bytes] = {}
        for name in names:
            _add(name, files, ordered)
        return ordered


def find_kernel(cache: Path) -> Kernel:
    """Return an unpacked kernel below `cache`, else one in /boot, else Debian's, downloaded. Raises LabNeeds."""
    return _kernel_below(cache / "kernel") or _kernel_below(Path("/")) or _download(cache / "kernel")


def _kernel_below(root: Path) -> Kernel | None:
    found = [
        Kernel(version, image, modules)
        for image in sorted((root / "boot").glob("vmlinuz-*"), key=_by_version, reverse=True)
        for version in [image.name.removeprefix("vmlinuz-")]
        for modules in (root / "lib/modules" / version, root / "usr/lib/modules" / version)
        if modules.is_dir()
    ]
    # The cloud kernel first: it is up in half the time of the one for real machines.
    return min(found, key=lambda kernel: "cloud" not in kernel.version, default=None)


def _download(into: Path) -> Kernel:
    into.mkdir(parents=True, exist_ok=True)
    try:
        depends = run("apt-cache", "depends", "--important", META_PACKAGE)
        package = re.findall(r"linux-image-\d[\w.+-]*cloud-amd64", depends)[0]
        run("apt-get", "download", package, cwd=into)
        for deb in into.glob("*.deb"):
            run("dpkg-deb", "-x", deb, into)
            deb.unlink()
    except (LabProgramFailed, LabNeeds, IndexError) as error:
        raise LabNeeds(missing="a Linux kernel for its guests", cure=f"put one into /boot ({error})") from error
    kernel = _kernel_below(into)
    if kernel is None:
        raise LabNeeds(missing="a Linux kernel for its guests", cure=f"{package} holds none; put one into /boot")
    return kernel


def _add(name: str, files: dict[str, Path], ordered: dict[str, bytes]) -> None:
    if name in ordered or name not in files:
        return
    content = _unpacked(files[name])
    for needed in _depends(content):
        _add(needed, files, ordered)
    ordered[name] = content


def _depends(content: bytes) -> list[str]:
    """Return a module's dependencies from its .modinfo; a kernel unpacked from a package has no modules.dep."""
    found = re.search(rb"\0depends=([^\0]*)\0", content)
    names = found[1].decode().split(",") if found else []
    return [name.replace("-", "_") for name in names if name]


def _unpacked(file: Path) -> bytes:
    if file.suffix not in UNPACK:
        return file.read_bytes()
    return subprocess.run([program(UNPACK[file.suffix]), "-dc", file], capture_output=True, check=True).stdout


def _module_name(file: Path) -> str:
    return file.name.split(".ko")[0].replace("-", "_")


def _by_version(image: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", image.name)]
