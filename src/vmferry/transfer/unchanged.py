"""Asks whether a source is still what was copied, without reading it again."""

from __future__ import annotations

from vmferry.transfer.bookmarks import read
from vmferry.transfer.contract import Transfer
from vmferry.transfer.file import identity


def unchanged(transfer: Transfer) -> bool:
    """Is the source, by inode, size and time of change, what the bookmarks were taken of?

    False when there are no bookmarks. Raises SourceUnreadable.
    """
    found = read(transfer.bookmarks)
    return found is not None and found.source == identity(transfer.source)
