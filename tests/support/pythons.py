"""Builds the wheel and runs the unit family with it on each other Python of this machine: `make pythons`.

The interpreters of 3.11 to 3.14 are looked for on the PATH and among pyenv's; the one that runs this has its unit
family in `make test`. Each gets a virtual environment of its own, without Debian's packages: libvirt is built from
PyPI against Debian's libvirt-dev, and libnbd, which is not on PyPI, is done without.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

MINORS = range(11, 15)
SAMPLE = "8"
"""Each eighth of the long lists: they do not hang on the Python."""
ENVIRONMENTS = Path(".venv-pythons")


def interpreters() -> dict[int, Path]:
    """Return, by minor version, the first interpreter that runs, without the version that runs this."""
    found = {minor: path for minor in MINORS for path in reversed(list(_candidates(minor))) if _runs(path, minor)}
    found.pop(sys.version_info.minor, None)
    return found


def _candidates(minor: int) -> Iterator[Path]:
    if path := shutil.which(f"python3.{minor}"):
        yield Path(path)
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from sorted(root.glob(f"versions/3.{minor}.*/bin/python3"))


def _runs(path: Path, minor: int) -> bool:
    """Pyenv's shims are on the PATH for versions that are not chosen, and fail."""
    words: list[str | Path] = [path, "-c", "import sys, venv; print(sys.version_info.minor)"]
    done = subprocess.run(words, capture_output=True, text=True)
    return done.returncode == 0 and done.stdout.strip() == str(minor)


def build(folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, "."], check=True)
    (wheel,) = folder.glob("vmferry-*.whl")
    return wheel


def environment(python: Path, minor: int, wheel: Path) -> Path:
    """Return the bin folder of an environment with this wheel; what it needs is installed once."""
    folder = ENVIRONMENTS / f"3.{minor}"
    binaries = (folder / "bin").absolute()
    if not (binaries / "python").exists():
        subprocess.run([python, "-m", "venv", folder], check=True)
    pip: list[str | Path] = [binaries / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, f"{wheel}[dev]", "libvirt-python"], check=True)
    subprocess.run([*pip, "--no-deps", "--force-reinstall", wheel], check=True)
    return binaries


def main() -> int:
    found = interpreters()
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        wheel = build(Path(folder))
        print(f"{wheel.name}; other Pythons here: {', '.join(f'3.{minor}' for minor in found) or 'none'}", flush=True)
        for minor, python in found.items():
            binaries = environment(python, minor, wheel)
            subprocess.run([binaries / "vmferry", "--version"], check=True)
            print(f"the unit family on Python 3.{minor}", flush=True)
            tests: list[str | Path] = [
                binaries / "python",
                "-m",
                "pytest",
                "-q",
                "-n",
                "2",
                "-m",
                "not slow",
                "tests/unit",
            ]
            done = subprocess.run(tests, env=os.environ | {"VMFERRY_SAMPLE": SAMPLE})
            failed += [f"3.{minor}"] if done.returncode else []
    print(f"failed on Python {', '.join(failed)}" if failed else "passed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
