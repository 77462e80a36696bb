"""The end of a VM's QEMU, seen as that of a process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmferry.hosts.libvirt.qemu_process import QemuProcess

UUID = "7f9a5b0e-2f7e-4a36-9a63-3f1d8f0d0a11"
WAITS = ("-c", "import sys; print('runs', flush=True); sys.stdin.read()")


@pytest.fixture
def started(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Something that runs with this UUID, as libvirt writes it down, until its input ends."""
    command = [sys.executable, *WAITS, f"uuid {UUID}"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"runs\n"  # its command line can be read by now
    (tmp_path / "my vm.pid").write_text(str(process.pid))
    yield process
    process.kill()
    process.communicate()


def test_the_end_is_seen_and_not_before(tmp_path: Path, started: subprocess.Popen[bytes]) -> None:
    qemu = QemuProcess("my vm", UUID, tmp_path)
    assert qemu.ends_within(0.0) is False
    started.communicate(b"")
    assert qemu.ends_within(0.0) is True
    assert qemu.ends_within(0.0) is True
    qemu.close()


def test_an_end_wakes_who_waits(tmp_path: Path, started: subprocess.Popen[bytes]) -> None:
    qemu = QemuProcess("my vm", UUID, tmp_path)
    started.kill()
    assert qemu.ends_within(60.0) is True
    qemu.close()


def test_another_process_with_that_number_is_not_taken_for_it(tmp_path: Path, started: subprocess.Popen[bytes]) -> None:
    assert started.poll() is None
    assert QemuProcess("my vm", UUID.replace("7", "8"), tmp_path).ends_within(60.0) is None


def test_a_process_that_ends_before_it_is_known_whose_it_was_is_not_taken_for_it(
    tmp_path: Path, started: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pidfd would tell an end at once, while the VM's own QEMU may run."""

    def gone(path: Path) -> bytes:
        started.communicate(b"")
        raise ProcessLookupError(path)

    monkeypatch.setattr(Path, "read_bytes", gone)
    assert QemuProcess("my vm", UUID, tmp_path).ends_within(60.0) is None


@pytest.mark.parametrize("content", [None, "", "no number", "0", "-1", "4194305"])
def test_what_cannot_be_known_is_not_waited_for(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "my vm.pid").write_text(content)
    qemu = QemuProcess("my vm", UUID, tmp_path)
    assert qemu.ends_within(60.0) is None
    qemu.close()
