"""The API's client over the worker's socket; starts the worker when it is needed. No engine, no libvirt."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from vmferry.api.client.errors import ServerError
from vmferry.api.client.spawn import start
from vmferry.api.codec import Event, Health, LeaveAnswer, Preview, Problem, from_json, to_json
from vmferry.errors import WorkerUnreachable
from vmferry.model import FINAL, JobState, JobView, LimitView, MoveRequest, Receipt, Scope, Vm
from vmferry.process.state import StateLocation
from vmferry.process.version import VERSION

T = TypeVar("T")

TRIES = 5
ANSWER_S = 600.0
"""libvirt may be slow on a busy host; a worker that is alive and silent for longer is given up."""
SILENCE_S = 60.0
"""A stream pings every 15 s."""
SETTLED_S = 10.0
"""A worker that lived so long did not die of what killed the one before."""
ENDED = FINAL | {JobState.STUCK}


class WorkerLost(Exception):
    """The worker was gone before it answered. `sent`: it may have received the request."""

    def __init__(self, *, sent: bool) -> None:
        super().__init__("the worker is gone")
        self.sent = sent


class Client:
    """A client of the worker of one state folder. `says` is called with messages for a watching person.

    Every method may raise ServerError, WorkerUnreachable and StateUnusable.
    """

    def __init__(self, place: StateLocation, says: Callable[[str], None]) -> None:
        self._place = place
        self._place.make()
        self.says = says
        transport = httpx.HTTPTransport(uds=self._place.address(), verify=False)
        self._http = httpx.Client(transport=transport, base_url="http://worker/v1/", timeout=ANSWER_S)
        self._met = False

    # -- looking

    def vms(self, connect: str) -> list[Vm]:
        return [from_json(Vm, vm) for vm in self._call("GET", "vms", params={"connect": connect})]

    def vm(self, name: str, connect: str) -> Vm:
        return from_json(Vm, self._call("GET", f"vms/{_part(name)}", params={"connect": connect}))

    def plan(self, request: MoveRequest) -> Preview:
        return from_json(Preview, self._call("POST", "plans", json=to_json(request)))

    # -- jobs

    def submit(self, request: MoveRequest) -> JobView:
        """Submit a job once, even if the worker dies between receiving the request and answering it."""
        since = datetime.now(UTC) - timedelta(seconds=1)
        self._meet()
        for _ in range(TRIES):
            try:
                return from_json(JobView, self._once("POST", "jobs", json=to_json(request)))
            except WorkerLost as lost:
                self._start()
                if lost.sent and (heard := self._submitted(request, since)):
                    return heard
        raise self._unreachable("it was gone again and again")

    def jobs(self) -> list[JobView]:
        return [from_json(JobView, job) for job in self._call("GET", "jobs")]

    def job(self, job: str) -> JobView:
        return from_json(JobView, self._call("GET", f"jobs/{_part(job)}"))

    def cancel(self, job: str) -> JobView:
        return from_json(JobView, self._call("POST", f"jobs/{_part(job)}/cancel"))

    def suspend(self, job: str) -> JobView:
        return from_json(JobView, self._call("POST", f"jobs/{_part(job)}/suspend"))

    def resume(self, job: str) -> JobView:
        return from_json(JobView, self._call("POST", f"jobs/{_part(job)}/resume"))

    def limit(self, job: str, limit_bytes_s: int | None, max_pause_s: float | None) -> JobView:
        """Change a job's limit in bytes per second, None for no limit, and its longest pause in seconds unless None."""
        body: dict[str, object] = {"limit_bytes_s": limit_bytes_s}
        if max_pause_s is not None:
            body["max_pause_s"] = max_pause_s
        return from_json(JobView, self._call("POST", f"jobs/{_part(job)}/limit", json=body))

    def prefer(self, job: str, priority: str) -> JobView:
        return from_json(JobView, self._call("POST", f"jobs/{_part(job)}/priority", json={"priority": priority}))

    def retry(self, job: str) -> JobView:
        return from_json(JobView, self._call("POST", f"jobs/{_part(job)}/retry"))

    def resolve(self, job: str, vm_is_at: str, vm: str) -> JobView:
        body = {"vm_is_at": vm_is_at, "vm": vm}
        return from_json(JobView, self._call("POST", f"jobs/{_part(job)}/resolve", json=body))

    def receipt(self, job: str) -> Receipt:
        return from_json(Receipt, self._call("GET", f"jobs/{_part(job)}/receipt"))

    def recover(self) -> list[JobView]:
        """Return the jobs in flight, which a worker goes on with now."""
        return [from_json(JobView, job) for job in self._call("POST", "recover")]

    def leftovers(self, connect: str) -> list[str]:
        return [str(left) for left in self._call("GET", "leftovers", params={"connect": connect})]

    def reap(self, connect: str) -> list[str]:
        return [str(left) for left in self._call("DELETE", "leftovers", params={"connect": connect})]

    def limits(self) -> list[LimitView]:
        return [from_json(LimitView, limit) for limit in self._call("GET", "limits")]

    def set_shared_limit(self, scope: Scope, connect: str, place: str, change: Mapping[str, object]) -> LimitView:
        """Change a limit's `limit_bytes_s` (None: no limit) and `during`, its windows; what `change` omits stays."""
        body = {"scope": scope, "connect": connect, "place": place, **change}
        return from_json(LimitView, self._call("PUT", "limits", json=body))

    def watch(self, job: str) -> Iterator[Event]:
        """Yield every change until the job is final or stuck; if the worker dies, start another and go on."""
        deaths = 0
        while True:
            begun = time.monotonic()
            try:
                for event in self._stream(job):
                    yield event
                    if event.state in ENDED:
                        return
            except WorkerLost:
                pass
            deaths = 0 if time.monotonic() - begun > SETTLED_S else deaths + 1
            time.sleep(min(10.0, 0.1 * 2**deaths) if deaths > 1 else 0)
            self._start()
            self.says("the worker died and was started again: the job goes on")

    # -- below

    def _call(self, method: str, path: str, **what: Any) -> Any:
        """Send a request until it is answered; only for requests that may be sent twice. Return the answer's record."""
        self._meet()
        return self._insist(method, path, **what)

    def _insist(self, method: str, path: str, **what: Any) -> Any:
        for _ in range(TRIES):
            try:
                return self._once(method, path, **what)
            except WorkerLost:
                self._start()
        raise self._unreachable("it was gone again and again")

    def _once(self, method: str, path: str, **what: Any) -> Any:
        """Send a request once. Return the answer's record. Raises WorkerLost, ServerError, WorkerUnreachable."""
        try:
            reply = self._http.request(method, path, **what)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise WorkerLost(sent=False) from error
        except httpx.TimeoutException as error:
            raise self._unreachable(f"no answer in {ANSWER_S:.0f} s") from error
        except httpx.TransportError as error:
            raise WorkerLost(sent=True) from error
        return _answer(reply)

    def _stream(self, job: str) -> Iterator[Event]:
        timeout = httpx.Timeout(ANSWER_S, read=SILENCE_S)
        try:
            with self._http.stream("GET", f"jobs/{_part(job)}/events", timeout=timeout) as reply:
                if reply.is_error:
                    reply.read()
                    _answer(reply)
                for line in reply.iter_lines():
                    if line.startswith("data:"):
                        yield from_json(Event, json.loads(line.removeprefix("data:")))
        except httpx.TransportError as error:
            raise WorkerLost(sent=True) from error

    def _submitted(self, request: MoveRequest, since: datetime) -> JobView | None:
        """Return the job of a request whose answer was lost, None if the worker did not receive it."""
        for job in reversed(self.jobs()):
            if request.vm in (job.plan.vm, job.plan.uuid) and datetime.fromisoformat(job.created) >= since:
                return job
        return None

    def _meet(self) -> None:
        """Before the first request, see that a worker answers; replace one of another version, or warn if it stays."""
        if self._met:
            return
        health = from_json(Health, self._insist("GET", "health"))
        if health.version != VERSION:
            if from_json(LeaveAnswer, self._insist("POST", "leave")).leaving:
                self._start()
            else:
                self.says(f"a worker of vmferry {health.version} is at work, this is {VERSION}")
        self._met = True

    def _start(self) -> None:
        start(self._place, self._answers)

    def _answers(self) -> bool:
        try:
            return self._http.get("health", timeout=5.0).is_success
        except httpx.TransportError:
            return False

    def _unreachable(self, reason: str) -> WorkerUnreachable:
        return WorkerUnreachable(state=self._place.state, reason=reason, log=self._place.log)


def _part(text: str) -> str:
    return quote(text, safe="")


def _answer(reply: httpx.Response) -> Any:
    """Return the reply's record. Raises ServerError, or WorkerLost if the worker is leaving."""
    if reply.is_success:
        return reply.json()
    try:
        problem = from_json(Problem, reply.json())
    except ValueError:
        problem = Problem("Unforeseen", f"the worker answered {reply.status_code}: {reply.text[:200]}", 1, {})
    if problem.kind == "Leaving":
        raise WorkerLost(sent=False)
    raise ServerError(problem.kind, problem.sentence, problem.exit_code)
