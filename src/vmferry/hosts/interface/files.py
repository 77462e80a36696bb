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
        """Return what keeps such files from lying there, tried as QEMU's user with a file that is removed at once."""

    @query
    def allocated(self, path: Path) -> int:
        """Return the bytes that a file takes on its storage; 0 when it is not there."""

    @query
    def exists(self, path: Path) -> bool: ...

    @query
    def entry(self, path: Path) -> FileEntry | None:
        """Return the file that the path leads to, with the links on the way; None where there is no file."""

    @query
    def file_users(self, files: Sequence[Where], folders: Sequence[Path]) -> Sequence[FileUser]:
        """Return all users of these files that this host knows, the job's own VM too; one that cannot be asked counts.

        `folders`: where images may lie that no VM names, besides the files' own folders and those of libvirt's pools.
        """

    @query
    def leftovers(self, folders: Sequence[Path]) -> Sequence[Path]:
        """Return the files in these folders that carry a job's id in their names."""

    @query
    def mark_of(self, path: Path) -> str:
        """Return a mark that changes with every write to the file; empty when the file is not there."""

    @query
    def content_of(self, path: Path) -> str:
        """Return a hash of what a guest reads of a raw file, in whole sectors; empty when the file is not there."""

    @query
    def unchanged_since(self, transfer: DiskTransfer) -> bool:
        """Is the transfer's source still, by size and time of change, what was copied?"""

    def copy(self, transfer: DiskTransfer, watch: Watch) -> Copied:
        """Copy a source that does not change, resuming from the bookmarks. Raises what transfer.copy raises."""

    def compare(self, transfer: DiskTransfer, watch: Watch) -> Compared:
        """Compare every byte of a copy by hash with its source."""

    def bring(self, transfers: Sequence[DiskTransfer], watch: Watch) -> Sequence[Copied]:
        """Copy and compare files that do not change, all at once; each resumes from its bookmarks."""

    def drop(self, transfer: DiskTransfer) -> None:
        """Remove an unfinished copy and its bookmarks."""

    def forget(self, transfer: DiskTransfer) -> None:
        """Remove a finished copy's bookmarks."""

    def small_copy(self, source: Path, destination: Path) -> None:
        """Copy a small file (NVRAM) whole and durably, with mode and owner. It may replace only vmferry's own file."""

    def rebase(self, path: Path, backing: Placed) -> None:
        """Write another backing file into the image's header; its data stays as it is (qemu-img rebase -u)."""

    def fold(self, folds: Sequence[Fold]) -> None:
        """Merge overlays that no QEMU has open into their bases, all at once; a `top` that is gone is fine.

        Removes no files. May be cut off and done again: the overlays stay as they are, and all of it is merged anew.
        """

    def promote(self, part: Path, final: Path) -> None:
        """Rename a finished copy to its real name, or back; done already is fine.

        Raises DestinationExists, never overwrites.
        """

    def remove(self, path: Path) -> None:
        """Remove a file; gone already is fine."""

    def rename(self, path: Path, to: Path) -> None:
        """Rename a file that nobody uses; done already is fine. Raises DestinationExists."""

    def refresh_pools(self, folders: Sequence[Path]) -> None:
        """Make libvirt's storage pools over these folders list anew what is there."""
