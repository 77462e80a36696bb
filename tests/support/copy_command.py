"""`vmferry copy` as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

VMFERRY = [sys.executable, "-c", "from vmferry.cli.main import main; main()"]


def vmferry(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    state = {**os.environ, "VMFERRY_STATE": str(folder / "state")}
    command = [*VMFERRY, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=state, timeout=120)
