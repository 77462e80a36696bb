"""The saved state goes to the other host while it is written."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from tests.support.crash_matrix import Recorder, assert_kept, new
from tests.support.worlds import Scenario, at, kill

from vmferry.errors import DestinationFull
from vmferry.hosts.libvirt.saved_state import settled_bytes
from vmferry.hosts.simulator.driver import Moment, World
from vmferry.model import JobState, Power, Technology
from vmferry.transfer import CHUNK

AWAY = Scenario(Technology.QUICK_RELOCATION, Power.RUNNING)
HEADER = "=16sIIII"


def calls(recorder: Recorder) -> list[Moment]:
    return [moment for moment in recorder.moments if moment.when == "before"]


def saving(found: list[Moment]) -> list[Moment]:
    """Those between the first byte of the saved state and the last."""
    names = [moment.call for moment in found]
    return found[names.index("save begin") + 1 : names.index("save")]


def test_memory_is_brought_and_compared_before_the_guest_stops() -> None:
    bench = new(AWAY, hook=(recorder := Recorder()))
    assert bench.run() is JobState.DONE
    during = [moment.call for moment in saving(calls(recorder))]
    assert during == ["serve_growing", "copy", "copy part", "copy part", "copy end", "compare"]


def test_what_an_attempt_that_was_cut_off_has_brought_is_not_taken_for_the_next_ones() -> None:
    """Seen: the next attempt served what the first one had left, before its own save had begun."""
    new(AWAY, hook=(recorder := Recorder())).run()
    for moment in saving(recorder.moments):
        bench = new(AWAY, hook=at(moment.number, moment.when, kill))
        assert assert_kept(bench, moment) is JobState.DONE


def test_a_destination_that_is_full_is_found_while_the_guest_still_runs() -> None:
    saved: list[str] = []

    def hook(moment: Moment, world: World) -> None:
        if "save begin" in saved and moment.call == "serve_growing":
            raise DestinationFull(path="/slow")
        saved.append(moment.call)

    bench = new(AWAY, hook=hook)
    assert assert_kept(bench, "full") is JobState.UNDONE
    assert "save begin" in saved
    assert "save" not in saved
    assert "restore" not in saved


@pytest.mark.parametrize(
    ("content", "settled"),
    [
        (struct.pack(HEADER, b"LibvirtQemudPart", 2, 400, 1, 0) + bytes(3 * CHUNK), 3 * CHUNK),
        (struct.pack(HEADER, b"LibvirtQemudPart", 2, 400, 1, 4) + bytes(2 * CHUNK - 32), 2 * CHUNK),
        (struct.pack(HEADER, b"LibvirtQemudPart", 2, 400, 1, 6) + bytes(3 * CHUNK), 0),  # pages in places of their own
        (struct.pack(HEADER, b"LibvirtQemudPart", 2, 400, 1, 0), 0),
        (b"Libvirt", 0),
        (b"", 0),
    ],
)
def test_whole_chunks_of_what_is_only_appended_to_stay_as_they_are(
    content: bytes, settled: int, tmp_path: Path
) -> None:
    memory = tmp_path / "memory"
    memory.write_bytes(content)
    assert settled_bytes(memory) == settled


def test_a_saved_state_that_is_not_there_has_no_beginning(tmp_path: Path) -> None:
    assert settled_bytes(tmp_path / "memory") == 0
