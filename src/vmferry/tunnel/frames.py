"""The frames of a tunnel: a head of nine bytes, and content as it is or compressed.

    kind (1 byte) | length on the wire (4) | length when expanded (4) | content

All numbers are big endian. Nothing in a head is believed before it was checked: a peer that proved who it is may
still be broken.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

import zstandard

HEAD = struct.Struct("!BII")
MOST = 256 * 1024
"""Bytes of content in a frame, at most, on the wire and expanded: what a connection holds in memory each way."""
LEVEL = 1
"""Of zstd. Level 3 gave 5 to 8 % less on the wire at 0.55 to 0.7 of the speed, on programs and on text."""


class FrameKind(IntEnum):
    """The kind of a frame."""

    RAW = 0  # bytes as they are
    ZSTD = 1  # bytes as one zstd frame that tells its size
    PING = 2  # nothing to say, but alive
    END = 3  # no more bytes will come
    DONE = 4  # all bytes up to the END were delivered
    GOT = 5  # so many more bytes that came compressed were delivered: the length when expanded tells


_BARE = (FrameKind.PING, FrameKind.END, FrameKind.DONE)


class BadFrame(Exception):
    """The peer sent something that is no frame; nothing that follows can be understood."""


class Head(NamedTuple):
    """The head of a frame, checked: its kind, its length on the wire and its length when expanded, in bytes."""

    kind: FrameKind
    wire: int
    plain: int


def head_of(packed: memoryview) -> Head:
    """Unpack and check the head of a frame. Raises BadFrame."""
    number, wire, plain = HEAD.unpack(packed)
    try:
        kind = FrameKind(number)
    except ValueError:
        raise BadFrame(f"a frame of the unknown kind {number}") from None
    if kind in _BARE:
        fits = wire == plain == 0
    elif kind is FrameKind.GOT:
        fits = wire == 0 < plain
    elif kind is FrameKind.RAW:
        fits = 0 < wire == plain <= MOST
    else:
        fits = 0 < wire < plain <= MOST
    if not fits:
        raise BadFrame(f"a frame {kind.name} of {wire} bytes for {plain}")
    return Head(kind, wire, plain)


def bare(kind: FrameKind, plain: int = 0) -> memoryview:
    """Return a frame without content; `plain` is the number of bytes in a GOT frame."""
    return memoryview(HEAD.pack(kind, 0, plain))


class Squeezer:
    """Compresses content into zstd frames; for use by one thread."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True, write_checksum=False)

    def frame(self, content: memoryview) -> memoryview | None:
        """Return the whole frame of compressed content; None if compression saves less than a twentieth."""
        squeezed = self._zstd.compress(content)
        if len(squeezed) * 20 > len(content) * 19:
            return None
        return memoryview(HEAD.pack(FrameKind.ZSTD, len(squeezed), len(content)) + squeezed)


class Expander:
    """Expands zstd frames; for use by one thread."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdDecompressor(max_window_size=MOST)

    def expand(self, squeezed: memoryview, plain: int) -> memoryview:
        """Expand a frame to exactly `plain` bytes. Raises BadFrame.

        The size is checked first: zstandard allocates what the frame says of itself, whatever max_output_size is (seen:
        32 KiB that said 1 GiB became 1 GiB).
        """
        try:
            said = zstandard.get_frame_parameters(squeezed)
            if said.content_size != plain:
                raise BadFrame(f"a compressed frame of {said.content_size} bytes that was to have {plain}")
            whole = self._zstd.decompress(squeezed, max_output_size=plain, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise BadFrame(f"a frame that cannot be expanded: {error}") from error
        if len(whole) != plain:
            raise BadFrame(f"a frame of {len(whole)} bytes that was to have {plain}")
        return memoryview(whole)
