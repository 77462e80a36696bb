"""The real command, whose workers are memory workers: for tests only."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from vmferry.api.client import spawn
from vmferry.cli.main import main
from vmferry.process import state

if __name__ == "__main__":
    state.home = lambda: Path(os.environ["TEST_SITE"]) / "home"
    idle = ("--idle-minutes", os.environ["TEST_IDLE_MINUTES"]) if "TEST_IDLE_MINUTES" in os.environ else ()
    spawn.WORKER = (sys.executable, str(Path(__file__).with_name("simulated_worker.py")), *idle)
    sys.argv[0] = "vmferry"
    main()
