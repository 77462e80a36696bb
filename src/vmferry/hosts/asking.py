"""How the steps and preflight ask who needs a file: a host alone, or with it the other jobs and hosts of a manager."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vmferry.hosts.interface import Host
from vmferry.model import FileUser, Where

AskUsers = Callable[[Host, Sequence[Where], Sequence[Path]], Sequence[FileUser]]
"""Given a host, files and folders where images may lie: returns all users of these files that anybody knows of."""


def ask_host(host: Host, files: Sequence[Where], folders: Sequence[Path]) -> Sequence[FileUser]:
    """Return the users of these files that the host itself knows; `folders`: where images may lie that no VM names."""
    return host.file_users(files, folders)
