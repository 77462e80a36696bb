"""Transfers in a service of their own, on real files."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.nbd_servers import until

from vmferry.errors import BadPlace, DestinationExists, DestinationTaken, TransferWrongState
from vmferry.hosts.fence import Fence
from vmferry.hosts.libvirt.driver import LibvirtHosts
from vmferry.manager.limits.shared import Limits
from vmferry.manager.store import Store
from vmferry.manager.store.codec import load
from vmferry.manager.transfers.service import Transfers
from vmferry.model import Priority, Scope, Seal, SharedLimit, Window
from vmferry.model.transfers import TransferRequest, TransferState, TransferView
from vmferry.transfer import CHUNK, Unwatched
from vmferry.transfer.verification.verify import VerifyOutcome, verify

S = TransferState
HERE = "test:///default"
BYTES = random.Random(4).randbytes(8 * CHUNK)
SLOW = 8 * CHUNK  # a second for copying, and one for comparing


class Service:
    """Transfers of a folder, that can be closed and started again as a new worker would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.most = 10
        (folder / "state").mkdir()
        (folder / "disk.img").write_bytes(BYTES)
        self._store = Store(f"sqlite:///{folder / 'state' / 'vmferry.db'}")
        self._hosts = LibvirtHosts(Fence(folder / "state"))
        self.limits = Limits(self._store, self._hosts)
        self.open()

    def open(self) -> None:
        self.all = Transfers(self.folder / "state", self._hosts, self.limits, lambda _: self.most)
        self.all.start()

    def close(self) -> None:
        self.all.close()

    def end(self) -> None:
        self.close()
        self.limits.close()
        self._store.close()

    def request(self, to: str = "new.img", **more: Any) -> TransferRequest:
        made = TransferRequest(str(self.folder / "disk.img"), str(self.folder / to), HERE, streams=1)
        return replace(made, **more)

    def submit(self, id: str, to: str = "new.img", **more: Any) -> TransferView:
        return self.all.submit(id, self.request(to, **more))

    def reach(self, id: str, *states: TransferState) -> TransferView:
        until(lambda: self.all.get(id).state in states, f"{id} to be {states}, it is {self.all.get(id)}")
        return self.all.get(id)

    def bookmarked(self, id: str) -> int:
        return sum((p.stat().st_size - 64) // 48 for p in (self.folder / "state/transfers" / id).glob("*/bookmarks"))

    def until_bookmarked(self, id: str, count: int) -> None:
        until(lambda: self.bookmarked(id) > count, f"{count} chunks of {id}")

    def files(self) -> list[str]:
        return sorted(p.name for p in self.folder.iterdir() if p.name not in ("state", "disk.img"))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    yield made
    made.end()


def test_a_transfer_gets_its_name_when_it_is_acknowledged(service: Service) -> None:
    service.submit("aaaa")
    done = service.reach("aaaa", S.TRANSFERRED)
    assert [name.startswith(".vmferry-copy-") for name in service.files()] == [True]
    assert (done.done_bytes, done.failures) == (done.total_bytes, 0)
    assert service.all.acknowledge("aaaa").state is S.ACKNOWLEDGED
    assert service.files() == ["new.img"]
    assert (service.folder / "new.img").read_bytes() == BYTES
    assert list((service.folder / "state/transfers").iterdir()) == []


def test_its_receipt_can_be_verified(service: Service) -> None:
    service.submit("aaaa", hand_over=True)
    service.reach("aaaa", S.ACKNOWLEDGED)
    seal = load(Seal, json.dumps(service.all.receipt("aaaa")["seal"]))
    assert (seal.at, verify(seal, Unwatched()).outcome) == (str(service.folder / "new.img"), VerifyOutcome.SAME)


@pytest.mark.slow
def test_the_states_come_in_the_order_of_bits(service: Service) -> None:
    seen = [service.submit("aaaa", limit_bytes_s=SLOW).state]
    version = 0
    while seen[-1] is not S.TRANSFERRED:
        version, view = service.all.changed("aaaa", version, 10)
        if view.state is not seen[-1]:
            seen.append(view.state)
    order = [S.QUEUED, S.CONNECTING, S.TRANSFERRING, S.TRANSFERRED]
    assert seen == [state for state in order if state in seen]  # a quick one may pass unseen
    assert {S.QUEUED, S.TRANSFERRING, S.TRANSFERRED} <= set(seen)


@pytest.mark.slow
def test_a_suspended_one_stands_still_and_goes_on_where_it_was(service: Service) -> None:
    service.submit("aaaa", limit_bytes_s=SLOW)
    service.until_bookmarked("aaaa", 2)
    assert service.all.suspend("aaaa").state is S.SUSPENDED
    assert service.all.suspend("aaaa").state is S.SUSPENDED
    assert service.all.in_flight() == 0
    service.close()  # so that nothing is at work any more
    stood = service.bookmarked("aaaa")
    service.open()
    assert service.all.get("aaaa").state is S.SUSPENDED
    service.all.limit("aaaa", None)
    service.all.resume("aaaa")
    service.reach("aaaa", S.TRANSFERRED)
    service.all.acknowledge("aaaa")
    told = service.all.receipt("aaaa")
    assert told["reused_bytes"] == (stood - 1) * CHUNK  # one record is that of the file
    assert told["copied_bytes"] + told["reused_bytes"] == len(BYTES)


def at_work(service: Service) -> None:
    service.submit("aaaa", limit_bytes_s=SLOW)
    service.until_bookmarked("aaaa", 2)


def suspended(service: Service) -> None:
    at_work(service)
    service.all.suspend("aaaa")


def transferred(service: Service) -> None:
    service.submit("aaaa")
    service.reach("aaaa", S.TRANSFERRED)


def queued(service: Service) -> None:
    service.most = 0
    service.submit("aaaa")


def in_error(service: Service) -> None:
    at_work(service)
    (service.folder / "disk.img").write_bytes(b"x" + BYTES[1:])
    service.reach("aaaa", S.ERROR)


@pytest.mark.slow
@pytest.mark.parametrize("before", [queued, at_work, suspended, transferred, in_error])
def test_cancel_leaves_nothing(service: Service, before: Callable[[Service], None]) -> None:
    before(service)
    service.all.cancel("aaaa")
    service.reach("aaaa", S.CANCELLED)
    assert service.files() == []
    service.close()
    service.open()
    assert not list((service.folder / "state/transfers").rglob("*"))
    service.submit("bbbb")  # the destination is free again


def test_a_cancel_that_its_worker_did_not_live_to_do_is_done_by_the_next(service: Service) -> None:
    suspended(service)
    service.close()
    service.all._store.ask("aaaa", cancel_asked=True)
    service.open()
    service.reach("aaaa", S.CANCELLED)
    assert service.files() == []


def ended_in_order(service: Service, *ids: str) -> list[str]:
    views = [service.reach(id, S.ACKNOWLEDGED) for id in ids]
    return [view.id for view in sorted(views, key=lambda view: view.ended or "")]


@pytest.mark.slow
def test_a_higher_one_takes_the_only_place_and_the_lower_goes_on_afterwards(service: Service) -> None:
    service.most = 1
    service.submit("lowest", "1.img", priority="low", limit_bytes_s=SLOW, hand_over=True)
    service.until_bookmarked("lowest", 2)
    service.submit("higher", "2.img", priority="high", limit_bytes_s=SLOW, hand_over=True)
    service.until_bookmarked("higher", 1)
    assert service.all.get("lowest").state is S.QUEUED
    service.all.limit("lowest", None)
    assert ended_in_order(service, "lowest", "higher") == ["higher", "lowest"]
    assert service.all.receipt("lowest")["reused_bytes"] >= 2 * CHUNK


@pytest.mark.slow
def test_a_higher_one_goes_first_where_the_budget_is_shared(service: Service) -> None:
    service.limits.set(SharedLimit(Scope.HOST, HERE, "", SLOW))
    service.submit("lowest", "1.img", priority="low", hand_over=True)
    service.until_bookmarked("lowest", 1)
    service.submit("higher", "2.img", priority="high", hand_over=True)
    assert ended_in_order(service, "lowest", "higher") == ["higher", "lowest"]


@pytest.mark.slow
def test_one_that_is_raised_overtakes(service: Service) -> None:
    service.limits.set(SharedLimit(Scope.HOST, HERE, "", SLOW))
    service.submit("first", "1.img", hand_over=True)
    service.until_bookmarked("first", 1)
    service.submit("second", "2.img", hand_over=True)
    assert service.all.prefer("second", Priority.FOREGROUND).priority == "foreground"
    assert ended_in_order(service, "first", "second") == ["second", "first"]


@pytest.mark.slow
def test_equals_take_turns_so_that_a_small_one_is_not_held_up(service: Service) -> None:
    service.limits.set(SharedLimit(Scope.HOST, HERE, "", SLOW))
    (service.folder / "small").mkdir()
    (service.folder / "small/disk").write_bytes(BYTES[:CHUNK])
    service.submit("large", "1.img", hand_over=True)
    service.until_bookmarked("large", 1)
    service.submit("small", "2.img", hand_over=True, source=str(service.folder / "small/disk"))
    assert ended_in_order(service, "large", "small") == ["small", "large"]


def test_what_may_pass_is_tried_again(service: Service) -> None:
    service.submit("aaaa", "there/new.img", retry_delay_s=0.05)
    until(lambda: service.all.get("aaaa").failures >= 2, "two failures")
    assert service.all.get("aaaa").kind in ("DestinationUnwritable", "")  # "" while it tries again
    (service.folder / "there").mkdir()
    assert service.reach("aaaa", S.TRANSFERRED).sentence == ""


def test_a_long_delay_can_be_cut_short(service: Service) -> None:
    service.submit("aaaa", "there/new.img")
    waiting = service.reach("aaaa", S.TRANSIENT)
    assert (waiting.kind, waiting.failures, waiting.retry_at is not None) == ("DestinationUnwritable", 1, True)
    assert service.all.in_flight() == 1
    (service.folder / "there").mkdir()
    service.all.resume("aaaa")
    service.reach("aaaa", S.TRANSFERRED)


@pytest.mark.parametrize("patience", [{"no_progress_s": 0.0}, {"retry_delay_s": 9.0, "no_progress_s": 8.0}])
def test_without_patience_the_first_failure_is_an_error(service: Service, patience: dict[str, Any]) -> None:
    service.submit("aaaa", "there/new.img", **patience)
    assert service.reach("aaaa", S.ERROR, S.TRANSIENT).state is S.ERROR


@pytest.mark.slow
def test_after_too_long_without_progress_it_is_given_up(service: Service) -> None:
    service.submit("aaaa", "there/new.img", retry_delay_s=0.01, no_progress_s=0.3)
    assert service.reach("aaaa", S.ERROR).failures > 1


def test_one_whose_end_could_not_be_recorded_is_taken_up_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same worker: nothing else would ever look at it."""
    store = service.all._store
    change, fails = store.change, [S.TRANSFERRED]

    def full(transfer: str, to: TransferState, *args: Any, **columns: Any) -> bool:
        if fails and to is fails[0]:
            raise OSError(fails.pop(), "the disk with the records is full")
        return change(transfer, to, *args, **columns)

    monkeypatch.setattr("vmferry.manager.transfers.runner.QUEUE_POLL_S", 0.05)
    monkeypatch.setattr(store, "change", full)
    service.submit("aaaa")
    assert service.reach("aaaa", S.TRANSFERRED).done_bytes > 0
    assert fails == []


@pytest.mark.slow
def test_a_source_that_changed_is_an_error_and_is_not_tried_again(service: Service) -> None:
    in_error(service)
    assert (service.all.get("aaaa").kind, service.all.get("aaaa").failures) == ("SourceChanged", 1)


def test_only_one_goes_to_a_destination(service: Service) -> None:
    suspended(service)
    with pytest.raises(DestinationTaken, match="transfer aaaa goes there already"):
        service.submit("bbbb")
    assert service.submit("aaaa").id == "aaaa"  # asked again, as a client does whose worker died
    assert len(service.all.list()) == 1


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"source": "/nothing"}, BadPlace),
        ({"destination_format": "vmdk"}, BadPlace),
        ({"destination": "ftp://host/x"}, BadPlace),
    ],
)
def test_what_can_never_be_is_refused_at_once(service: Service, more: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        service.submit("aaaa", **more)
    assert service.all.list() == []


def test_what_exists_is_refused_at_once(service: Service) -> None:
    (service.folder / "new.img").write_bytes(b"somebody's")
    with pytest.raises(DestinationExists):
        service.submit("aaaa")
    assert service.all.list() == []


def test_what_came_there_meanwhile_stays(service: Service) -> None:
    transferred(service)
    (service.folder / "new.img").write_bytes(b"somebody's")
    with pytest.raises(DestinationExists):
        service.all.acknowledge("aaaa")
    assert service.all.get("aaaa").state is S.TRANSFERRED
    service.all.cancel("aaaa")
    service.reach("aaaa", S.CANCELLED)
    assert service.files() == ["new.img"]
    assert (service.folder / "new.img").read_bytes() == b"somebody's"


def test_an_acknowledgement_cut_off_after_the_name_is_done_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    transferred(service)
    with monkeypatch.context() as patch:
        patch.setattr(service.all._store, "change", broken)
        with pytest.raises(OSError, match="power"):
            service.all.acknowledge("aaaa")
    assert service.files() == ["new.img"]
    service.close()
    service.open()
    assert service.all.get("aaaa").state is S.TRANSFERRED
    assert service.all.acknowledge("aaaa").state is S.ACKNOWLEDGED
    assert service.all.acknowledge("aaaa").state is S.ACKNOWLEDGED
    assert (service.folder / "new.img").read_bytes() == BYTES


def test_one_that_was_named_but_not_acknowledged_can_still_be_cancelled(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    transferred(service)
    with monkeypatch.context() as patch:
        patch.setattr(service.all._store, "change", broken)
        with pytest.raises(OSError, match="power"):
            service.all.acknowledge("aaaa")
    service.all.cancel("aaaa")
    service.reach("aaaa", S.CANCELLED)
    assert service.files() == []


def broken(*_: object, **__: object) -> bool:
    raise OSError("the power is gone")


@pytest.mark.parametrize("order", ["suspend", "resume", "acknowledge", "cancel"])
def test_an_order_that_makes_no_sense_is_refused(service: Service, order: str) -> None:
    service.submit("aaaa", hand_over=True)
    service.reach("aaaa", S.ACKNOWLEDGED)
    if order == "acknowledge":
        service.submit("bbbb", "2.img", limit_bytes_s=SLOW)
    with pytest.raises(TransferWrongState, match="is possible only while it is"):
        getattr(service.all, order)("bbbb" if order == "acknowledge" else "aaaa")


@pytest.mark.slow
def test_a_transfer_waits_while_a_calendar_lets_nothing_move_says_so_and_goes_on(service: Service) -> None:
    hour = {"now": time.gmtime(12 * 3600)}
    service.limits.local = lambda _: hour["now"]
    lunch = Window(tuple(range(7)), 12 * 60, 13 * 60, 0)
    service.submit("aaaa", limit_bytes_s=SLOW)
    service.until_bookmarked("aaaa", 2)
    service.limits.set(SharedLimit(Scope.HOST, HERE, "", None, (lunch,)))
    until(lambda: "the calendar of host" in service.all.get("aaaa").held, "it to say that it waits")
    service.submit("bbbb", "other.img")
    until(lambda: "the calendar of host" in service.all.get("bbbb").held, "the next one to say that it waits")
    assert service.all.get("aaaa").state is S.TRANSFERRING
    assert service.all.get("bbbb").state is S.QUEUED
    stood = service.all.get("aaaa").done_bytes
    hour["now"] = time.gmtime(13 * 3600)
    service.limits.start()
    service.reach("aaaa", S.TRANSFERRED)
    done = service.reach("bbbb", S.TRANSFERRED)
    assert (done.held, stood < len(BYTES)) == ("", True)
    service.limits.close()
