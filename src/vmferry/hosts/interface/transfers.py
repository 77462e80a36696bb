"""The transfers that a host carries out."""

from __future__ import annotations

from pathlib import Path

from vmferry.transfer import Place, Transfer

DiskTransfer = Transfer[Path | Place, Path | Place]
"""A transfer between two ends: a path is copied byte for byte, a Place by what a guest sees of it."""
