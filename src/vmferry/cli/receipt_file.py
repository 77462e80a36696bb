"""Reads receipts from files: any of those that vmferry prints, and none that was damaged since."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from vmferry.errors import BadReceipt, OldReceipt
from vmferry.errors.system import in_words
from vmferry.model import Seal, checksum

LARGEST = 256 << 20
_SEAL = TypeAdapter(Seal)


def read_receipt(path: Path) -> Mapping[str, object]:
    """Return the receipt in a file: alone, or in the last line of a command's JSON lines. Raises BadReceipt."""
    try:
        if path.stat().st_size > LARGEST:
            raise BadReceipt(receipt=path, reason="it is too large for one")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadReceipt(receipt=path, reason=in_words(error)) from None
    found = _record(text) or _record((text.strip().splitlines() or [""])[-1])
    if found is None:
        raise BadReceipt(receipt=path, reason="it is not JSON")
    inside = found.get("receipt")
    return inside if isinstance(inside, dict) else found


def seals_of(receipt: Mapping[str, object], name: str) -> list[Seal]:
    """Return a receipt's seals, at least one. Raises BadReceipt if it was changed, OldReceipt if it has none."""
    if not receipt.get("checksum"):
        raise OldReceipt(receipt=name)
    try:
        if checksum(receipt) != receipt["checksum"]:
            raise BadReceipt(receipt=name, reason="it was changed since it was written")
        seals = [_SEAL.validate_python(seal) for seal in _sealed(receipt)]
    except (ValidationError, RecursionError, UnicodeError) as error:
        reason = f"its seal is damaged: {type(error).__name__}"
        raise BadReceipt(receipt=name, reason=reason) from None
    if not seals:
        raise OldReceipt(receipt=name)
    return seals


def _sealed(receipt: Mapping[str, object]) -> Iterator[object]:
    """Yield the seals in a receipt. If one disk has none, yield nothing: that disk would pass unread."""
    disks = receipt.get("disks")
    if not isinstance(disks, list):
        yield from [receipt["seal"]] if receipt.get("seal") else []
        return
    seals = [disk.get("seal") if isinstance(disk, dict) else None for disk in disks]
    if all(seals):
        yield from seals


def _record(text: str) -> dict[str, object] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
