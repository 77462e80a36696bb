"""The command on a terminal: what is drawn there, and what Ctrl-C means."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator

import pytest
from tests.support.simulated_site import COMMAND, DEADLINE_S, NAME, Site

pytestmark = pytest.mark.slow


CTRL_C = "\x03"
QUESTION = "go on watching (w)?"


class Terminal:
    """The command with a terminal of its own, as wide as asked."""

    def __init__(self, site: Site, *args: str, columns: int = 80) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.said = ""
        self.process = subprocess.Popen(
            [*COMMAND, *args],
            env=site.env | {"TERM": "xterm"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_at_the_terminal,
        )
        os.close(theirs)

    def until(self, text: str, since: int = 0) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while text not in self.said[since:]:
            if time.monotonic() > deadline or not self._read():
                raise AssertionError(f"it never said {text!r}:\n{self.said}")

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def ended(self) -> int:
        while self._read():
            pass
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.hang_up()

    def hang_up(self) -> None:
        """Tear the terminal away."""
        if self._ours >= 0:
            os.close(self._ours)
            self._ours = -1

    def _read(self) -> bool:
        if not select.select([self._ours], [], [], DEADLINE_S)[0]:
            return False
        try:
            got = os.read(self._ours, 65536)
        except OSError:  # EIO: nobody has the other end any more
            return False
        self.said += got.decode(errors="replace")
        return bool(got)


def _at_the_terminal() -> None:
    """As a shell starts a command: it hears Ctrl-C, even if whoever runs the tests does not."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def held(site: Site) -> Iterator[Terminal]:
    """A move on a terminal, standing still in the copy."""
    hold = site.hold("copy")
    terminal = Terminal(site, "migrate-storage", NAME, "--path", "/san2")
    site.until_held("copy")
    terminal.until("copying the base")
    yield terminal
    hold.unlink(missing_ok=True)
    terminal.close()


def release(site: Site) -> None:
    (site.folder / "hold-copy").unlink()


def test_a_move_is_drawn_with_a_bar_for_each_disk_and_ends_with_the_receipt(site: Site, held: Terminal) -> None:
    for drawn in ("vda", "vdb", "comparing every byte"):  # the last one is what comes next
        held.until(drawn)
    release(site)
    assert held.ended() == 0
    assert f"{NAME} was moved" in held.said


def test_ctrl_c_and_c_cancels_and_undoes(site: Site, held: Terminal) -> None:
    held.type(CTRL_C)
    held.until(QUESTION)
    held.type("c\n")
    held.until("cancel was asked for")
    release(site)
    assert held.ended() == 5
    assert "cancelled and undone" in held.said
    assert site.lies_on() == {"san1"}


def test_ctrl_c_and_l_leaves_the_job_running(site: Site, held: Terminal) -> None:
    held.type(CTRL_C)
    held.until(QUESTION)
    held.type("l\n")
    assert held.ended() == 130
    assert "goes on in the background" in held.said
    release(site)
    [job] = site.json("jobs")
    site.run("job", "watch", job["id"])
    assert site.lies_on() == {"san2"}


def test_ctrl_c_and_enter_goes_on_watching(site: Site, held: Terminal) -> None:
    held.type(CTRL_C)
    held.until(QUESTION)
    since = len(held.said)
    held.type("\n")
    held.until("copying the base", since)
    release(site)
    assert held.ended() == 0


def test_a_second_ctrl_c_leaves(site: Site, held: Terminal) -> None:
    held.type(CTRL_C)
    held.until(QUESTION)
    held.type(CTRL_C)
    assert held.ended() == 130
    assert "goes on in the background" in held.said
    release(site)


def test_a_terminal_that_is_torn_away_harms_nothing(site: Site, held: Terminal) -> None:
    held.hang_up()
    held.process.wait(DEADLINE_S)
    release(site)
    [job] = site.json("jobs")
    assert site.run("job", "watch", job["id"])
    assert site.lies_on() == {"san2"}
