"""Files of the host: folders, copies, names, and who needs one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from vmferry.hosts.interface.query import query
from vmferry.hosts.interface.transfers import DiskTransfer
from vmferry.hosts.records import Fold
from vmferry.model import Finding, Folder, Placed, Where
from vmferry.model.files import FileEntry, FileUser
from vmferry.model.vms import FolderUse
from vmferry.transfer import Compared, Copied, Watch


class Files(Protocol):
    """Files of the host: folders, copies, names, and who needs one."""

    @query
    def folder(self, path: Path) -> Folder: ...

    @query
    def probe(self, folder: Path, use: FolderUse) -> Sequence[Finding]:
        """What stands against such files there, tried as QEMU's user with a file that is gone at once."""

    @query
    def allocated(self, path: Path) -> int:
        """Bytes that a file takes on its storage; 0 when it is not there."""

    @query
    def exists(self, path: Path) -> bool: ...

    @query
    def entry(self, path: Path) -> FileEntry | None:
        """What the path leads to; None where no file is."""

    @query
    def file_users(self, files: Sequence[Where], folders: Sequence[Path]) -> Sequence[FileUser]:
        """All who need one of these files, as far as this host knows; who cannot be asked counts as one.

        `folders`: where images may lie that no VM names, besides the files' own folders and those of libvirt's pools.
        The job's own VM is among them.
        """

    @query
    def leftovers(self, folders: Sequence[Path]) -> Sequence[Path]:
        """Files there that carry a job's id."""

    @query
    def mark_of(self, path: Path) -> str:
        """Changes with every write to the file; empty when it is not there."""

    @query
    def content_of(self, path: Path) -> str:
        """A hash of what a guest reads of a raw file, in whole sectors; empty when it is not there."""

    @query
    def unchanged_since(self, transfer: DiskTransfer) -> bool:
        """Is the source still, by size and time of change, what was copied?"""

    def copy(self, transfer: DiskTransfer, watch: Watch) -> Copied:
        """Copy a file that does not change; resumes from its bookmarks. Raises what transfer.copy raises."""

    def compare(self, transfer: DiskTransfer, watch: Watch) -> Compared:
        """Compare every byte of a copy by hash with its source."""

    def bring(self, transfers: Sequence[DiskTransfer], watch: Watch) -> Sequence[Copied]:
        """Copy and compare files that do not change, all at once; each resumes from its bookmarks."""

    def drop(self, transfer: DiskTransfer) -> None:
        """Remove an unfinished copy and its bookmarks."""

    def forget(self, transfer: DiskTransfer) -> None:
        """Remove a finished copy's bookmarks."""

    def small_copy(self, source: Path, destination: Path) -> None:
        """Copy a small file (NVRAM) whole and durably, mode and owner with it, replacing only our own."""

    def rebase(self, path: Path, backing: Placed) -> None:
        """Write another backing file into the header; data stays (qemu-img rebase -u)."""

    def fold(self, folds: Sequence[Fold]) -> None:
        """Merge overlays that no QEMU has open into their bases, all at once; a `top` that is gone is fine.

        Removes no files. May be cut off and done again: the overlays stay as they are, and write all they hold anew.
        """

    def promote(self, part: Path, final: Path) -> None:
        """Give a finished copy its real name, or take it back; done already is fine.

        Raises DestinationExists, never overwrites.
        """

    def remove(self, path: Path) -> None:
        """Remove a file; gone already is fine."""

    def rename(self, path: Path, to: Path) -> None:
        """Rename a file that nobody uses; done already is fine. Raises DestinationExists."""

    def refresh_pools(self, folders: Sequence[Path]) -> None:
        """Let libvirt's storage pools over these folders look again what is there."""
