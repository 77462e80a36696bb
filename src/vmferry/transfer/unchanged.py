"""Asks whether a source is still what was copied, without reading it again."""

from __future__ import annotations

from pathlib import Path

from vmferry.qemu.places import Where
from vmferry.transfer.bookmarks import read
from vmferry.transfer.contract import Transfer
from vmferry.transfer.endpoints.file import identity
from vmferry.transfer.endpoints.source import opened_source


def unchanged(transfer: Transfer[Where, Where]) -> bool:
    """Is the source still what the bookmarks were made of, as far as that can be told without reading it?

    Files are compared by inode, size and modification time; a device or URL by name and size. False when
    there are no bookmarks. Raises SourceUnreadable, SourceInUse, ExportFailed.
    """
    found = read(transfer.bookmarks)
    if found is None:
        return False
    if isinstance(transfer.source, Path):
        return found.source == identity(transfer.source)
    with opened_source(transfer.source, transfer.destination, 1) as now:
        return found.source == now.identity
