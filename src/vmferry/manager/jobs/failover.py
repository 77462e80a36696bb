"""Runs one of several managers: holds its lock, takes over from those that are gone, hears of orders elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from threading import Event, Thread

import structlog

from vmferry.errors import StoreAway
from vmferry.manager.jobs.active import ActiveJobs, waits
from vmferry.manager.jobs.engine import Engine
from vmferry.manager.store import Store
from vmferry.manager.store.leases import Leases
from vmferry.manager.store.records import JobHeartbeat
from vmferry.model import JobState
from vmferry.process.state import ManagerIdentity

log = structlog.get_logger()

LEASE_POLL_S = 1.0
"""Between two looks at the leases of managers and jobs; a lease lasts many times longer."""
IDLE_S = 5.0
"""A job of this manager that nobody has walked for so long is resumed."""
PATIENCE_S = 20.0
LOOKS_GONE = 2
"""So often in a row a lock must be found free: after a restart of PostgreSQL all are, for a moment."""


class Failover:
    """Looks every second, has the engine resume what shall go on here, and has `wake` start what waits."""

    def __init__(
        self, identity: ManagerIdentity, store: Store, active: ActiveJobs, engine: Engine, wake: Callable[[], None]
    ) -> None:
        self._identity = identity
        self._store = store
        self._leases = Leases(identity.records, identity.manager)
        self._active = active
        self._engine = engine
        self._wake = wake
        self._term = 0
        self._gone: Counter[str] = Counter()
        self._idle_since: dict[str, float] = {}
        self._closing = Event()
        self._thread = Thread(target=self._watch, name="managers", daemon=True)

    @property
    def standing(self) -> bool:
        """True while this manager holds its lock, as far as it knows.

        Epochs and fences guard what it does not know.
        """
        return self._term > 0

    def start(self) -> None:
        """Start the thread. The first look is over when this returns."""
        self._look_safely()
        self._thread.start()

    def close(self) -> None:
        """Stop looking; the lock stays, until `release`."""
        self._closing.set()
        self._thread.join(PATIENCE_S)

    def release(self) -> None:
        """Release the lock: from now on other managers take over."""
        self._leases.release()

    def _watch(self) -> None:
        while not self._closing.wait(LEASE_POLL_S):
            self._look_safely()

    def _look_safely(self) -> None:
        try:
            self._look()
        except StoreAway as away:
            log.warning("the records cannot be reached; trying again", reason=str(away))
        except Exception:
            log.exception("other managers could not be looked after; trying again")  # a thread's own border

    def _look(self) -> None:
        term = self._leases.hold()
        if term != self._term:
            self._begin_term(term)
        if term:
            self._take_over()
            self._pass_on()

    def _begin_term(self, term: int) -> None:
        """Act for no job without the lock; when it is held again, for those that nobody took over meanwhile."""
        self._term = 0
        self._gone.clear()
        self._active.stop_all()
        log.info("the manager's lock is held" if term else "the manager's lock is lost", manager=self._identity.manager)
        if term:
            mine = self._store.take_over(of=self._identity.manager)  # their epochs rise: what still runs here is old
            self._term = term
            self._go_on(mine)

    def _take_over(self) -> None:
        absent = self._leases.absent(self._store.others())
        self._gone = Counter({manager: self._gone[manager] + 1 for manager in absent})
        for manager, looks in list(self._gone.items()):
            if looks >= LOOKS_GONE:
                taken = self._store.take_over(of=manager)
                log.info("took over from a manager that is gone", manager=manager, jobs=sorted(taken))
                self._go_on(taken)

    def _go_on(self, jobs: Iterable[str]) -> None:
        self._engine.halt(jobs)
        self._wake()

    def _pass_on(self) -> None:
        for token, progress in self._active.unsaved_progress():
            self._store.put_progress(token, progress)
        pulses = self._store.pulses()
        self._active.sync(pulses, self._identity.manager)
        self._revive(pulses)
        if waits(pulses):
            self._wake()

    def _revive(self, pulses: Iterable[JobHeartbeat]) -> None:
        """Resume this manager's jobs that nobody here has walked for IDLE_S.

        A manager that woke up may have resumed or begun their workflow before it knew that the job was another's.
        """
        mine = {p.id for p in pulses if p.manager == self._identity.manager and p.state != JobState.QUEUED}
        now_s = time.monotonic()
        self._idle_since = {job: self._idle_since.get(job, now_s) for job in mine - self._engine.running()}
        idle = [job for job, since in self._idle_since.items() if now_s - since > IDLE_S]
        for job in idle:
            del self._idle_since[job]
        if idle:
            self._go_on(idle)
