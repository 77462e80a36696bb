"""qemu-nbd, started on a socket of ours, so that it ends with this process whatever ends that."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence
from typing import IO

_END_S = 10.0

# The listening socket comes as standard input and goes on as descriptor 3 (sd_listen_fds(3)), whose reader
# wants to find its own process id. The check of the parent closes the gap before setpriv has asked the kernel.
_START = (
    *("setpriv", "--pdeathsig", "KILL", "sh", "-c"),
    '[ "$PPID" = "$1" ] || exit 1; shift; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@" 3<&0 </dev/null',
    "sh",
)


def start(
    command: Sequence[str], listening: socket.socket, errors: IO[bytes] | int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Start a qemu-nbd that takes its connections from this socket; its standard error goes to `errors`.

    The kernel ends it with the thread that called this, so that thread has to outlive it.
    """
    return subprocess.Popen(
        [*_START, str(os.getpid()), *command],
        stdin=listening.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=errors,
        start_new_session=True,  # Ctrl-C is for us
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """Terminate a qemu-nbd and take its status; it is killed if it still runs after 10 s."""
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
