"""The fence: an old epoch of a job never acts after a newer one."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from vmferry.errors import Superseded
from vmferry.hosts.fence import KEPT_JOBS, Fence
from vmferry.model import FencingToken


def test_an_older_epoch_is_refused_once_a_newer_one_has_acted(tmp_path: Path) -> None:
    fence = Fence(tmp_path)
    fence.admit(FencingToken("abc", 1))
    fence.admit(FencingToken("abc", 3))
    with pytest.raises(Superseded, match="epoch 2 is older than 3"):
        fence.admit(FencingToken("abc", 2))
    fence.admit(FencingToken("abc", 3))
    fence.admit(FencingToken("other", 1))


def test_what_it_has_seen_outlives_the_process(tmp_path: Path) -> None:
    Fence(tmp_path).admit(FencingToken("abc", 7))
    with pytest.raises(Superseded):
        Fence(tmp_path).admit(FencingToken("abc", 6))


def test_a_file_half_written_by_a_crash_changes_nothing(tmp_path: Path) -> None:
    Fence(tmp_path).admit(FencingToken("abc", 7))
    (tmp_path / "epochs.new").write_text('{"abc"')
    with pytest.raises(Superseded):
        Fence(tmp_path).admit(FencingToken("abc", 6))


def test_many_at_once_lose_no_epoch(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=Fence(tmp_path).admit, args=(FencingToken(f"job{number}", 5),)) for number in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(20):
        with pytest.raises(Superseded):
            Fence(tmp_path).admit(FencingToken(f"job{number}", 4))


def test_it_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmferry.hosts.fence.KEPT_JOBS", 3)
    fence = Fence(tmp_path)
    for number in range(5):
        fence.admit(FencingToken(f"job{number}", 2))
    fence.admit(FencingToken("job0", 1))
    with pytest.raises(Superseded):
        fence.admit(FencingToken("job4", 1))
    assert KEPT_JOBS >= 100
