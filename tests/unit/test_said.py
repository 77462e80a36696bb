"""Errors of the operating system in words."""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmferry.errors.system import said, said_of_file


@given(st.sampled_from(sorted(errno.errorcode)))
def test_no_number_in_brackets_reaches_a_person(code: int) -> None:
    told = said(OSError(code, os.strerror(code), "/a/file"))
    assert told
    assert "Errno" not in told
    assert "/a/file" not in told


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "x", "/a"), "/a: no space left"),
        (OSError(errno.EXDEV, "x", "/a", None, "/b"), "/a and /b: on another file system"),
        (OSError(errno.EROFS, "x"), "mounted read-only"),
        (OSError("own words"), "own words"),
    ],
)
def test_the_files_are_named_where_it_was_about_files(error: OSError, sentence: str) -> None:
    assert said_of_file(error) == sentence
