"""What a host copies."""

from __future__ import annotations

from pathlib import Path

from vmferry.transfer import Place, Transfer

DiskTransfer = Transfer[Path | Place, Path | Place]
"""Of files byte for byte, of anything else by what a guest sees of it."""
