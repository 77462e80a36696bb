"""What libvirt tells of a VM, and what there is of it: libvirtd's note and perhaps a process. The VM is a mock."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import libvirt
import pytest

from vmferry.errors import VmHalfStarted, VmHeld, VmRunningUnseen
from vmferry.hosts.libvirt import stale_state

UUID = "7f9a5b0e-2f7e-4a36-9a63-3f1d8f0d0a11"
NOTE = "<domstatus state='paused' reason='starting up' pid='{}'>\n  <domain type='kvm' id='7'/>\n</domstatus>\n"


class MockOfDomain:
    """Says of its state what a test wants: libvirt says so for milliseconds."""

    def __init__(
        self, state: int = libvirt.VIR_DOMAIN_PAUSED, reason: int = libvirt.VIR_DOMAIN_PAUSED_STARTING_UP
    ) -> None:
        self._state = [state, reason]

    def state(self, flags: int = 0) -> list[int]:
        return self._state

    def name(self) -> str:
        return "my vm"

    def UUIDString(self) -> str:
        return UUID


def noted(notes: Path, pid: int, age_s: float = 60) -> Path:
    note = notes / "my vm.xml"
    note.write_text(NOTE.format(pid))
    os.utime(note, (time.time() - age_s,) * 2)
    return note


@contextmanager
def running(notes: Path) -> Iterator[int]:
    """What stands for its QEMU, as libvirt notes it. Gives its process id."""
    waits = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", UUID]
    with subprocess.Popen(waits, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as qemu:
        assert qemu.stdout is not None
        qemu.stdout.readline()
        (notes / "my vm.pid").write_text(str(qemu.pid))
        try:
            yield qemu.pid
        finally:
            qemu.communicate(b"")


def test_one_without_a_process_is_told_and_the_note_of_it_goes(tmp_path: Path) -> None:
    note = noted(tmp_path, 0)
    for _ in range(2):
        with pytest.raises(VmHalfStarted, match="restart libvirtd there"):
            stale_state.check("h", MockOfDomain(), tmp_path)
        assert not note.exists()


def test_a_process_that_never_became_its_qemu_is_none(tmp_path: Path) -> None:
    """libvirt notes the number of a process that waits to become QEMU, and ends with libvirtd."""
    note = noted(tmp_path, 0)
    (tmp_path / "my vm.pid").write_text(str(os.getpid()))
    with pytest.raises(VmHalfStarted):
        stale_state.check("h", MockOfDomain(), tmp_path)
    assert not note.exists()


def test_one_that_may_yet_start_is_waited_for(tmp_path: Path) -> None:
    note = noted(tmp_path, 0, age_s=0)
    with pytest.raises(VmHeld, match="is starting it") as raised:
        stale_state.check("h", MockOfDomain(), tmp_path)
    assert type(raised.value) is VmHeld
    assert note.exists()


def test_one_that_has_a_process_by_libvirts_note_is_libvirts_to_judge(tmp_path: Path) -> None:
    note = noted(tmp_path, 4711)
    stale_state.check("h", MockOfDomain(), tmp_path)
    assert note.exists()


def test_one_whose_qemu_runs_is_never_forgotten(tmp_path: Path) -> None:
    note = noted(tmp_path, 0)
    with running(tmp_path):
        stale_state.check("h", MockOfDomain(), tmp_path)
    assert note.exists()


def test_one_that_counts_as_off_is_not_as_long_as_its_qemu_runs(tmp_path: Path) -> None:
    off = MockOfDomain(libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_UNKNOWN)
    stale_state.check("h", off, tmp_path)
    with running(tmp_path) as pid, pytest.raises(VmRunningUnseen, match=f"process {pid}"):
        stale_state.check("h", off, tmp_path)
    stale_state.check("h", off, tmp_path)


def test_one_that_is_paused_for_another_reason_is_let_be(tmp_path: Path) -> None:
    note = noted(tmp_path, 0)
    stale_state.check("h", MockOfDomain(reason=libvirt.VIR_DOMAIN_PAUSED_USER), tmp_path)
    assert note.exists()
