"""Long calls on an agent: followed, steered, left alone, found again, taken over; never two of a job at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from tests.support.realm import Realm, Served
from tests.support.worlds import DESTINATION, SOURCE, UUID, make_world

from vmferry.agent.operation import Operation
from vmferry.errors import (
    AgentFailed,
    AgentUnreachable,
    Cancelled,
    HostUnreachable,
    SourceFilling,
    SourceUnreadable,
    Superseded,
)
from vmferry.hosts.interface import DiskTransfer, Host
from vmferry.hosts.remote.client import AgentLink
from vmferry.hosts.remote.driver import RemoteHost
from vmferry.hosts.simulator.driver import InMemory, SimulatedHost
from vmferry.lab.programs import wait_for
from vmferry.model import FencingToken
from vmferry.transfer import Copied, Place, Throttle, Transfer, Watch

JOB = "abcd2345"
PIECE = 1 << 20
PIECES = 40
DEADLINE_S = 30


class Scripted(SimulatedHost):
    """A toy whose copy does what the test says, and tells what became of it."""

    script: Script

    def copy(self, transfer: DiskTransfer, watch: Watch) -> Copied:
        return self.script.copy(transfer, watch)

    def compare(self, transfer: DiskTransfer, watch: Watch) -> Any:
        raise RuntimeError("nobody foresaw this")


class Script:
    """What the copy does: moves pieces until it is told to end; one at a time, or the test fails."""

    def __init__(self) -> None:
        self.begun = 0
        self.moved = 0
        self.at_once = 0
        self.most_at_once = 0
        self.ended: list[str] = []
        self.go_on = Event()
        self.fail: Exception | None = None
        self.lock = threading.Lock()

    def copy(self, transfer: DiskTransfer, watch: Watch) -> Copied:
        with self.lock:
            self.begun += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            while not self.go_on.wait(0.005):
                watch.check()
                if self.moved < PIECES * PIECE:
                    watch.throttle.take(PIECE, watch.check)
                    self.moved += PIECE
                    watch.moved(self.moved, PIECES * PIECE, 1e6)
            if self.fail is not None:
                raise self.fail
            self.ended.append("done")
            return Copied("direct", 1, 1, self.moved, 0, "root", 0.1)
        except Exception as error:
            self.ended.append(type(error).__name__)
            raise
        finally:
            with self.lock:
                self.at_once -= 1


class ScriptedHosts:
    def __init__(self) -> None:
        self.script = Script()
        self.world = make_world()

    def open(self, connect: str, token: FencingToken | None = None) -> Host:
        host = Scripted(InMemory(self.world), token)
        host.script = self.script
        return host


class Follower:
    """A watch that the test steers."""

    def __init__(self, limit_bytes_s: int | None = None) -> None:
        self.throttle = Throttle(limit_bytes_s)
        self.raises: BaseException | None = None
        self.done = 0

    def moved(self, done_bytes: int, total_bytes: int, rate_bytes_s: float) -> None:
        self.done = done_bytes

    def check(self) -> None:
        if self.raises is not None:
            raise self.raises


class Counted(Throttle):
    """Counts what has passed."""

    taken = 0

    def take(self, wanted: int, check: Callable[[], None]) -> None:
        super().take(wanted, check)
        self.taken += wanted


class Calling:
    """A call in a thread, and how it ended."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._future = self._pool.submit(act)
        self._pool.shutdown(wait=False)

    def end(self) -> object:
        return self._future.result(DEADLINE_S)


class Site:
    def __init__(self, folder: Path) -> None:
        self.hosts = ScriptedHosts()
        self.script = self.hosts.script
        self.realm = Realm(folder)
        self.served: Served = self.realm.serve("host1", self.hosts)
        self.links: list[AgentLink] = []
        self.link()

    def link(self) -> None:
        """As a manager that has just been started."""
        self.links.append(self.realm.link(self.served))

    def host(self, epoch: int = 1, job: str = JOB) -> Host:
        return RemoteHost(self.links[-1], FencingToken(job, epoch))

    def copy(self, watch: Watch, epoch: int = 1, name: str = "vda") -> Calling:
        host = self.host(epoch)
        return Calling(lambda: host.copy(transfer(name), watch))

    def cut(self) -> None:
        """The manager's connections end, as when it is killed."""
        self.links[-1].close()

    def until_begun(self, times: int = 1) -> None:
        wait_for(lambda: self.script.begun >= times, f"{times} copies to begin", DEADLINE_S)

    def until_moved(self, more_than: int) -> None:
        wait_for(lambda: self.script.moved > more_than, f"more than {more_than} bytes", DEADLINE_S)

    @property
    def running(self) -> int:
        return self.served.agent.operations.count

    def close(self) -> None:
        self.script.go_on.set()
        for link in self.links:
            link.close()
        self.realm.close()


def transfer(name: str = "vda") -> Transfer[Path | Place, Path | Place]:
    return Transfer(SOURCE / name, DESTINATION / name, Path(f"/state/bookmarks/{JOB}/{name}"))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


def test_progress_is_seen_while_it_runs_and_the_answer_at_its_end(site: Site) -> None:
    watch = Follower()
    calling = site.copy(watch)
    wait_for(lambda: watch.done == PIECES * PIECE, "the progress to arrive", DEADLINE_S)
    site.script.go_on.set()
    assert calling.end() == Copied("direct", 1, 1, PIECES * PIECE, 0, "root", 0.1)


def test_a_cancel_stops_it_there_before_it_is_raised_here(site: Site) -> None:
    watch = Follower()
    calling = site.copy(watch)
    site.until_begun()
    watch.raises = Cancelled()
    with pytest.raises(Cancelled):
        calling.end()
    assert site.script.ended == ["Cancelled"]


def test_any_error_of_a_watch_stops_it(site: Site) -> None:
    watch = Follower()
    calling = site.copy(watch)
    site.until_begun()
    watch.raises = SourceFilling(path="/fast", free=1)
    with pytest.raises(SourceFilling):
        calling.end()
    assert site.script.ended == ["Cancelled"]


def test_an_error_there_is_raised_here_as_the_same_class_with_its_fields(site: Site) -> None:
    site.script.fail = SourceUnreadable(path=SOURCE / "vda", offset=4096, reason="EIO")
    calling = site.copy(Follower())
    site.until_begun()
    site.script.go_on.set()
    with pytest.raises(SourceUnreadable, match="at byte 4096") as raised:
        calling.end()
    assert raised.value.fields == {"path": SOURCE / "vda", "offset": 4096, "reason": "EIO"}


def test_what_nobody_foresaw_there_is_told_here_and_the_agent_lives_on(site: Site) -> None:
    with pytest.raises(AgentFailed, match="RuntimeError: nobody foresaw this"):
        site.host().compare(transfer(), Follower())
    assert site.host().exists(SOURCE / "guest-a.img")


@pytest.mark.slow
def test_a_limit_here_holds_there_and_changes_while_it_runs(site: Site) -> None:
    watch = Follower(limit_bytes_s=PIECE)
    calling = site.copy(watch)
    site.until_moved(PIECE)
    assert site.script.moved < PIECES * PIECE, "nothing held it back"
    watch.throttle.set_limit(None)
    wait_for(lambda: site.script.moved == PIECES * PIECE, "the limit to be lifted", DEADLINE_S)
    site.script.go_on.set()
    calling.end()


@pytest.mark.slow
def test_two_copies_share_the_budget_of_the_manager(site: Site) -> None:
    """Grants are taken from one throttle: neither copy gets the whole of it for itself."""
    shared = Counted(PIECE * 4)
    first, second = Follower(), Follower()
    first.throttle, second.throttle = Throttle(above=[shared]), Throttle(above=[shared])
    calls = [site.copy(first), site.copy(second, name="vdb")]
    site.until_moved(4 * PIECE)
    assert shared.taken + 2 * PIECE >= site.script.moved
    site.script.go_on.set()
    for calling in calls:
        calling.end()


def test_a_manager_that_vanishes_leaves_it_running_and_the_next_one_finds_it(site: Site) -> None:
    first = site.copy(Follower())
    site.until_begun()
    site.cut()
    with suppress(Exception):
        first.end()
    site.link()
    watch = Follower()
    second = site.copy(watch, epoch=2)
    wait_for(lambda: watch.done > 0, "the new manager to follow", DEADLINE_S)
    site.script.go_on.set()
    assert isinstance(second.end(), Copied)
    assert site.script.begun == 1


def test_another_manager_whose_state_lies_elsewhere_finds_it_too(site: Site) -> None:
    first = site.copy(Follower())
    site.until_begun()
    site.cut()
    with suppress(Exception):
        first.end()
    site.link()
    there = replace(transfer(), bookmarks=Path(f"/managers/b/bookmarks/{JOB}/vda"))
    second = Calling(lambda: site.host(epoch=2).copy(there, Follower()))
    wait_for(lambda: any(o.epoch == 2 for o in site.served.agent.operations.running()), "the take-over", DEADLINE_S)
    site.script.go_on.set()
    second.end()
    assert site.script.begun == 1


def test_an_answer_that_nobody_heard_waits_for_who_asks_again(site: Site) -> None:
    first = site.copy(Follower())
    site.until_begun()
    site.cut()
    with suppress(Exception):
        first.end()
    site.script.go_on.set()
    wait_for(lambda: site.script.ended == ["done"], "the copy to end by itself", DEADLINE_S)
    site.link()
    assert isinstance(site.host(epoch=2).copy(transfer(), Follower()), Copied)
    assert site.script.begun == 1
    assert isinstance(site.host(epoch=2).copy(transfer(), Follower()), Copied)
    assert site.script.begun == 2, "an answer that was heard is not given twice"


def test_an_answer_is_forgotten_once_the_job_does_something_else(site: Site) -> None:
    first = site.copy(Follower())
    site.until_begun()
    site.cut()
    with suppress(Exception):
        first.end()
    site.script.go_on.set()
    wait_for(lambda: site.script.ended == ["done"], "the copy to end by itself", DEADLINE_S)
    site.link()
    site.host(epoch=2).drop(transfer())
    site.host(epoch=2).copy(transfer(), Follower())
    assert site.script.begun == 2


def test_a_newer_epoch_that_does_something_else_stops_it_first(site: Site) -> None:
    first = site.copy(Follower())
    site.until_begun()
    site.host(epoch=2).drop(transfer())
    assert site.script.ended == ["AgentUnreachable"]
    assert site.script.most_at_once == 1
    with pytest.raises(AgentUnreachable, match="took its place"):
        first.end()


def test_what_nobody_follows_is_stopped_by_any_other_act_of_its_job(site: Site) -> None:
    first = site.copy(Follower())
    site.until_begun()
    site.cut()
    with suppress(Exception):
        first.end()
    site.link()
    wait_for(lambda: not any(o.followed for o in site.served.agent.operations.running()), "the end", DEADLINE_S)
    site.host().drop(transfer())
    assert site.script.ended == ["AgentUnreachable"]


def test_another_job_is_left_alone(site: Site) -> None:
    calling = site.copy(Follower())
    site.until_begun()
    site.host(epoch=9, job="other234").forget(transfer("vdb"))
    assert site.script.ended == []
    site.script.go_on.set()
    calling.end()


def test_an_older_epoch_neither_follows_nor_stops_it(site: Site) -> None:
    calling = site.copy(Follower(), epoch=2)
    site.until_begun()
    for act in (lambda: site.host(epoch=1).copy(transfer(), Follower()), lambda: site.host(epoch=1).drop(transfer())):
        with pytest.raises(Superseded):
            act()
    assert site.script.ended == []
    site.script.go_on.set()
    calling.end()


@pytest.mark.slow
def test_an_agent_that_leaves_stops_it_and_says_so(site: Site) -> None:
    calling = site.copy(Follower())
    site.until_begun()
    site.served.stop()
    with pytest.raises(AgentUnreachable):
        calling.end()
    assert site.script.ended == ["AgentUnreachable"]
    with pytest.raises(HostUnreachable):
        site.host().exists(SOURCE)


def test_an_agent_that_is_away_is_unreachable_and_comes_back(site: Site) -> None:
    port = int(site.served.address.rpartition(":")[2])
    site.served.stop()
    with pytest.raises(HostUnreachable, match="host1 does not answer"):
        site.host().power(UUID)
    site.served = site.realm.serve("host1", site.hosts, port=port)
    assert site.host().exists(SOURCE / "guest-a.img")


@pytest.mark.slow
def test_epochs_outlive_the_agent(site: Site) -> None:
    site.host(epoch=5).forget(transfer())
    port = int(site.served.address.rpartition(":")[2])
    site.served.stop()
    site.hosts.world.epochs.clear()
    site.served = site.realm.serve("host1", site.hosts, port=port)
    with pytest.raises(Superseded):
        site.host(epoch=4).forget(transfer())


def test_nobody_hears_the_end_before_the_answer_is_kept() -> None:
    """Else whoever heard it, and says so at once, would be given it again for the next call of the same words."""
    at_the_end: list[tuple[bool, bool]] = []
    operation = Operation("host", "key", "call", FencingToken("other234", 1), lambda _: 7)
    operation.run((), lambda it: at_the_end.append((it.over, it.succeeded)))
    assert operation.wait(DEADLINE_S)
    assert at_the_end == [(False, True)]
    assert operation.said() == {"answer": 7}
