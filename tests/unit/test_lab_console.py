"""What the guest says on its console, read from a file that grows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmferry.lab.guests.console import Ack, Console, Edge, longest_jump_s


def console(tmp_path: Path, said: str) -> Console:
    file = tmp_path / "console.log"
    file.write_text(said)
    return Console(file).read()


def test_an_acknowledgement_cut_off_counts_only_once_it_is_whole(tmp_path: Path) -> None:
    heard = console(tmp_path, "up 5 1\nack vda 6 100 2000 1\nack vda 7 10")
    assert heard.acks == [Ack("vda", 6, 100, 2000, 1)]
    with heard.file.open("a") as file:
        file.write("1 3000 16\n")
    assert heard.read().acks[1:] == [Ack("vda", 7, 101, 3000, 16)]


def test_what_the_agents_hook_was_called_for_is_heard_in_its_order(tmp_path: Path) -> None:
    heard = console(tmp_path, "noted 7 100\nfreezing 200\nthawed 300\nnoted 8 400\nfreezing 5")
    assert heard.hooks == ["freezing", "thawed"]
    assert heard.noted == 8


def test_a_line_broken_by_a_restart_is_no_acknowledgement(tmp_path: Path) -> None:
    assert console(tmp_path, "ack vda 7 10SeaBIOS\n\nup 5 1\nack vdb x\n").acks == []


def test_the_longest_stall_is_the_longest_gap_on_one_disk(tmp_path: Path) -> None:
    said = "ack vda 1 1 1000 1\nack vdb 1 1 400000 1\nack vda 2 1 501000 1\nack vda 3 1 502000 1\n"
    assert console(tmp_path, said).longest_gap_us == 500_000


@pytest.mark.parametrize("between", ["stopped 2000\ngoing 900000", "bye 2000\nup 5 100"])
def test_a_guest_told_to_stop_does_not_stall(tmp_path: Path, between: str) -> None:
    said = f"ack vda 1 1 1000 1\n{between}\nack vda 2 1 901000 1\nack vda 3 1 902000 1\n"
    assert console(tmp_path, said).longest_gap_us == 1000


def test_a_reboot_is_no_pause(tmp_path: Path) -> None:
    said = "up 5 1\nedge 100 1000000 0\nedge 101 2000000 0\nup 6 1\nedge 200 1000000 0\nedge 201 2000000 0\n"
    assert console(tmp_path, said).longest_pause_s == 0


def test_errors_and_answers_are_heard(tmp_path: Path) -> None:
    heard = console(tmp_path, "error write vda 100 5 1000\ndone ab12\n")
    assert (heard.errors, heard.done) == (["error write vda 100 5 1000"], {"ab12"})


# -- a guest that moves between hosts: one file on each


def two_hosts(tmp_path: Path, on_one: str, on_two: str) -> Console:
    """Written in this order, which their times of change tell."""
    heard = Console(tmp_path / "two.log", (tmp_path / "one.log",))
    say(tmp_path / "one.log", on_one)
    say(tmp_path / "two.log", on_two)
    return heard


def say(file: Path, words: str) -> None:
    """Add to a file, at a time later than all that was said before."""
    with file.open("a") as out:
        out.write(words)
    newest_ns = max(other.stat().st_mtime_ns for other in file.parent.iterdir())
    os.utime(file, ns=(newest_ns + 1000, newest_ns + 1000))


def test_what_a_guest_said_on_two_hosts_is_heard_in_the_order_in_which_it_was_said(tmp_path: Path) -> None:
    heard = two_hosts(tmp_path, "up 5 1\nack vda 1 1 1000 1\n", "ack vda 2 1 3000 1\n")
    assert [ack.number for ack in heard.read().acks] == [1, 2]
    say(tmp_path / "one.log", "ack vda 3 1 4000 1\n")
    assert [ack.number for ack in heard.read().acks] == [1, 2, 3]
    assert (heard.ups, heard.longest_gap_us) == (1, 2000)


def test_a_line_begun_on_one_host_and_ended_on_another_is_one_line(tmp_path: Path) -> None:
    heard = two_hosts(tmp_path, "ack vda 1 1 1000 1\nack vda 2 1", "00 3000 1\nack vda 3 1 40")
    assert heard.read().acks[1:] == [Ack("vda", 2, 100, 3000, 1)]
    say(tmp_path / "one.log", "00 1\nack vda 4 1 5000 1\n")
    assert heard.read().acks[2:] == [Ack("vda", 3, 1, 4000, 1), Ack("vda", 4, 1, 5000, 1)]


def test_two_copies_that_speak_at_once_do_not_spoil_each_others_lines(tmp_path: Path) -> None:
    heard = two_hosts(tmp_path, "ack vda 1 1 1000 1\nack vda 2 1", "ack vda 2 1 2000 1\n")
    assert heard.read().acks[1:] == [Ack("vda", 2, 1, 2000, 1)]
    say(tmp_path / "one.log", " 2100 1\n")
    assert heard.read().acks[2:] == [Ack("vda", 2, 1, 2100, 1)]


def test_one_second_of_the_hosts_clock_seen_on_two_hosts_means_two_copies(tmp_path: Path) -> None:
    heard = two_hosts(tmp_path, "edge 100 1000000 0\nedge 101 2000000 0\n", "edge 102 3000000 0\n")
    assert heard.read().second_writers == []
    say(tmp_path / "one.log", "edge 102 3000100 0\n")
    assert len(heard.read().second_writers) == 1
    assert "102" in heard.second_writers[0]


def test_what_the_lease_tells_is_heard(tmp_path: Path) -> None:
    said = "second-writer 7 1000 8 1100"
    assert console(tmp_path, f"{said}\n").second_writers == [said]


# -- the clock


def edges(*seen: tuple[int, int]) -> list[Edge]:
    return [Edge(second, mono_us, 0) for second, mono_us in seen]


def test_the_pause_is_the_jump_of_the_hosts_clock() -> None:
    assert longest_jump_s(edges((10, 0), (11, 1_000_000), (14, 2_500_000), (15, 3_500_000))) == pytest.approx(1.5)


def test_an_edge_that_fell_into_the_pause_does_not_shorten_it() -> None:
    """Stopped for 1.007 s from 0.016 s after an edge: the next is seen on waking, the rest at the one after."""
    seen = edges((64, 10_742_081), (65, 10_758_601), (66, 11_734_427))
    assert longest_jump_s(seen) == pytest.approx(1.0077, abs=0.001)


def test_a_steady_clock_shows_no_pause() -> None:
    assert longest_jump_s(edges((1, 0), (2, 1_000_000), (3, 2_000_000))) == 0
    assert longest_jump_s([]) == 0


def test_how_long_a_write_took_is_heard_and_a_guest_that_does_not_tell_is_fine(tmp_path: Path) -> None:
    heard = console(tmp_path, "ack vda 1 1 1000 1 734\nack vda 2 1 2000 1\n")
    assert [ack.took_us for ack in heard.acks] == [734, 0]
