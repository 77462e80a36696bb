"""How the steps and preflight ask who needs a file: a host alone, or with it the other jobs and hosts of a manager."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vmferry.hosts.interface import Host
from vmferry.model import FileUser, Where

AskUsers = Callable[[Host, Sequence[Where], Sequence[Path]], Sequence[FileUser]]
"""Of a host's files, with the folders where images may lie: all who need them, as far as anybody knows."""


def ask_host(host: Host, files: Sequence[Where], folders: Sequence[Path]) -> Sequence[FileUser]:
    """What the host itself knows."""
    return host.file_users(files, folders)
