"""Delivers notices: to each receiver one at a time, again and again for a day, without delaying anything else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Condition, Event, Thread

import structlog

from vmferry.errors import NotTold, StoreAway, UsageError
from vmferry.errors.system import in_words
from vmferry.manager.notify import command, webhook
from vmferry.manager.store.notices import TEST, Notice, NoticeStore
from vmferry.model import NOBODY, Channel, NoticeState, NoticeView, Notifying, Receivers
from vmferry.model.notices import told_as
from vmferry.process.state import ManagerIdentity

log = structlog.get_logger()

NOTICE_POLL_S = 1.0
"""So long after a change its notice may set out."""
AT_ONCE = 8
"""Receivers that are told at a time."""
LEAVE_S = 10.0
SHOWN = 10


@dataclass(frozen=True, slots=True)
class DeliveryTimeouts:
    """How long delivery to a receiver that does not answer is tried."""

    first_s: float = 5.0
    """Doubled with each try."""
    longest_s: float = 900.0
    bound: timedelta = timedelta(days=1)
    """A try that fails so long after the event was the last one."""

    def delay_s(self, tries: int) -> float:
        return min(self.longest_s, self.first_s * 2.0 ** min(tries, 30))


PATIENCE = DeliveryTimeouts()


class Delivery:
    """Delivers the notices of one manager's records. All but `start` and `close` may be called from any thread."""

    def __init__(self, at: Path | ManagerIdentity, patience: DeliveryTimeouts = PATIENCE) -> None:
        identity = ManagerIdentity.at(at) if isinstance(at, Path) else at
        self._identity = identity
        self._patience = patience
        self._store = NoticeStore(identity.records, identity.manager)
        self._busy: set[tuple[Channel, str]] = set()
        self._not_before: dict[int, float] = {}  # on the monotonic clock, so that setting the time moves nothing
        self._lock = Condition()
        self._wake = Event()
        self._closing = Event()
        self._dispatcher = Thread(target=self._dispatch, name="notices", daemon=True)

    # -- life

    def start(self) -> None:
        """Go on with all that is not delivered, at once. The caller holds the state folder's lock."""
        self._store.tidy()
        self._dispatcher.start()

    def close(self) -> None:
        """Stop, leaving all notices to the next worker; a command that runs is ended, and run again by that one."""
        self._closing.set()
        self._wake.set()
        self._dispatcher.join()
        with self._lock:
            gone = self._lock.wait_for(lambda: not self._busy, LEAVE_S)
        if gone:
            self._store.close()

    def in_flight(self) -> int:
        """Count the notices that need this worker, or another manager's that may be gone; 1 while the store is away."""
        try:
            return self._store.count_waiting()
        except StoreAway:
            return 1  # nobody knows: stay

    # -- asking

    def look(self) -> Notifying:
        """Return the receivers of all events in this state folder, and the newest notices, newest first."""
        to = self._store.receivers()
        shown = replace(to, url=told_as(Channel.URL, to.url) if to.url else "")
        return Notifying(shown, tuple(self._store.last(SHOWN)))

    def set_receivers(self, to: Receivers) -> Notifying:
        """Replace the receivers of all events in this state folder, from the next event on. Raises UsageError."""
        check(to)
        self._store.set_receivers(to)
        return self.look()

    def test(self) -> Sequence[NoticeView]:
        """Send a test notice to the state folder's receivers. Raises UsageError if there are none."""
        if self._store.receivers() == NOBODY:
            raise UsageError(reason="nobody is told of anything: name a receiver with `vmferry notify set`")
        event_id = self._store.add_test()
        self._wake.set()
        return self.of_event(event_id)

    def of_event(self, event_id: str) -> Sequence[NoticeView]:
        return self._store.of_event(event_id)

    # -- delivering

    def _dispatch(self) -> None:
        while not self._closing.is_set():
            self._wake.clear()
            try:
                self._give_out()
            except StoreAway as away:
                log.warning("notices could not be looked up; trying again", reason=str(away))
            except Exception:
                log.exception("notices could not be given out; trying again")  # a thread's own border
            self._wake.wait(NOTICE_POLL_S)

    def _give_out(self) -> None:
        now_s = time.monotonic()
        with self._lock:
            busy = set(self._busy)  # before the look: what one of them delivers meanwhile still looks undelivered in it
        for notice in self._store.waiting():
            receiver = (notice.way, notice.receiver)
            due = self._not_before.get(notice.number, 0.0) <= now_s
            if not due or receiver in busy or len(busy) >= AT_ONCE or self._closing.is_set():
                continue
            busy.add(receiver)
            with self._lock:
                self._busy.add(receiver)
            Thread(target=self._take, args=(notice,), name=f"notice {notice.number}", daemon=True).start()

    def _take(self, notice: Notice) -> None:
        try:
            taken = self._store.take(notice.number)
            if taken is not None:
                self._deliver(taken)
        except StoreAway as away:
            log.warning("how a notice went could not be recorded; it is told again", reason=str(away))
        except Exception:  # a thread's own border
            log.exception("a notice failed in a way nobody foresaw", about=notice.about, subject=notice.subject)
            self._again(notice, "an error that nobody foresaw: see the worker's log")
        finally:
            with self._lock:
                self._busy.discard((notice.way, notice.receiver))
                self._lock.notify_all()
            self._wake.set()

    def _deliver(self, notice: Notice) -> None:
        named = {"notice": notice.event, notice.about: notice.subject, "to": notice.to, "id": notice.event_id}
        try:
            if notice.way is Channel.COMMAND:
                command.run(notice, self._identity.environment, self._closing)
            else:
                webhook.post(notice, self._closing)
        except NotTold as error:
            if self._closing.is_set():
                return
            log.warning("a notice was not delivered", sentence=str(error), tries=notice.tries + 1, **named)
            self._again(notice, str(error.fields["reason"]))
        else:
            self._store.tried(notice, NoticeState.DELIVERED)
            self._not_before.pop(notice.number, None)
            log.info("a notice was delivered", **named)

    def _again(self, notice: Notice, reason: str) -> None:
        """Have a notice tried again later, unless it is too old, or a test, whose result somebody waits for."""
        age = datetime.now(UTC) - datetime.fromisoformat(notice.created)
        delay_s = self._patience.delay_s(notice.tries)
        with self._lock:
            self._not_before[notice.number] = time.monotonic() + delay_s
        given_up = notice.about == TEST or age >= self._patience.bound
        self._store.tried(notice, NoticeState.GIVEN_UP if given_up else NoticeState.WAITING, reason, delay_s)


def check(to: Receivers) -> None:
    """Raise UsageError for a receiver that could never be reached."""
    wrong = command.program(to.command) if to.command else None
    if wrong:
        raise UsageError(reason=f"the command cannot be run: {wrong}")
    wrong = webhook.url(to.url) if to.url else None
    if wrong:
        raise UsageError(reason=f"the URL cannot be told anything: {wrong}")
    if to.secret is None:
        return
    if not to.url:
        raise UsageError(reason="a secret signs what a URL gets: name the URL too")
    try:
        webhook.key(to.secret)
    except (OSError, ValueError) as error:
        raise UsageError(reason=f"the secret cannot be used: {in_words(error)}") from error
