"""The receipt of a finished copy, for programs and for `vmferry verify`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vmferry.model.seals import Seal, checksum
from vmferry.qemu.places import Place
from vmferry.transfer.standalone import CopyResult

CopyReceipt = dict[str, Any]


def receipt(source: Place, destination: Place, done: CopyResult) -> CopyReceipt:
    """Return a copy's receipt; figures of an earlier call that this one does not know are None. Pure."""
    copied = done.copied
    plain = {
        "event": "end",
        "source": source.shown,
        "source_format": source.format,
        "destination": destination.shown,
        "destination_format": destination.format,
        "method": copied.method if copied else None,
        "virtual_bytes": copied.virtual_bytes if copied else None,
        "data_bytes": copied.data_bytes if copied else None,
        "copied_bytes": copied.copied_bytes if copied else 0,
        "reused_bytes": copied.reused_bytes if copied else None,
        "compared_bytes": done.compared.bytes,
        "recopied_chunks": done.compared.recopied_chunks,
        "root_hash": done.compared.root_hash,
        "copy_seconds": round(copied.seconds, 3) if copied else 0.0,
        "compare_seconds": round(done.compared.seconds, 3),
    }
    return resealed(plain, done.seal)


def resealed(counted: CopyReceipt, seal: Seal | None) -> CopyReceipt:
    """Return the receipt with this seal and a new checksum over all of it. Pure."""
    counted = {**counted, "seal": asdict(seal) if seal else None}
    return {**counted, "checksum": checksum(counted)}
