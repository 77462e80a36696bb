"""Headers that somebody made up: each ends in a sentence, and none in an error that nobody foresaw."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmferry.hosts.libvirt.headers import BadHeader, read

NAME = b"json:" + b"[" * 900
HOSTILE = {
    "a saved state that is all magic": b"LibvirtQemudSave",
    "a vmdk whose description lies nowhere": b"KDMV" + bytes(24) + struct.pack("<QQ", 1 << 60, 1 << 60),
    "a file url that is none": b"QFI\xfb" + struct.pack(">IQI", 2, 512, 9) + bytes(492) + b"file://[x",
    "json without an end": b"QFI\xfb" + struct.pack(">IQI", 2, 512, len(NAME)) + bytes(492) + NAME,
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_header_that_makes_no_sense_is_told_as_that(content: bytes, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(content)
    with pytest.raises(BadHeader):
        read(image)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(magic=st.sampled_from([b"QFI\xfb", b"QED\0", b"KDMV", b"LibvirtQemudSave", b""]), rest=st.binary(max_size=600))
def test_whatever_a_guest_has_written_there_is_read_or_told(magic: bytes, rest: bytes, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(magic + rest)
    try:
        found = read(image)
    except BadHeader:
        return
    assert isinstance(found.names, tuple)
