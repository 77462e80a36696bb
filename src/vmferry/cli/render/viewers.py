"""Viewers of a watched job: plain lines and JSON lines; live.py has the one for terminals."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from rich.text import Text

from vmferry.api.codec import Event, to_json
from vmferry.cli.render.job_pages import figures_text, percent_text
from vmferry.cli.render.receipt_page import receipt_page
from vmferry.cli.render.screen import print_json, show, shown
from vmferry.cli.render.words import STATE, STUCK, ended_in_words, exit_code
from vmferry.model import FINAL, JobState, JobView, Receipt

BETWEEN_LINES_S = 5.0


class Viewer(Protocol):
    """Shows a watched job from begin to end. `rest` is called before anything else uses the terminal."""

    def begin(self, job: JobView) -> None: ...

    def show(self, event: Event) -> None: ...

    def say(self, text: str) -> None: ...

    def rest(self) -> None: ...

    def end(self, job: JobView, receipt: Receipt | None) -> None: ...


class JsonLines:
    """Prints one JSON object a line, of the events submitted, progress, message and end."""

    def begin(self, job: JobView) -> None:
        technology = str(job.plan.technology)
        print_json({"event": "submitted", "job": job.id, "vm": job.plan.vm, "technology": technology})

    def show(self, event: Event) -> None:
        print_json({"event": "progress", **to_json(event)})

    def say(self, text: str) -> None:
        print_json({"event": "message", "text": text})

    def rest(self) -> None:
        pass

    def end(self, job: JobView, receipt: Receipt | None) -> None:
        print_json(
            {
                "event": "end",
                "job": job.id,
                "state": str(job.state),
                "exit_code": exit_code(job),
                "kind": job.kind,
                "sentence": job.sentence,
                "receipt": to_json(receipt) if receipt else None,
            }
        )


class PlainLines:
    """Prints a line when what happens changes, and one with figures every few seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._shown: tuple[str, ...] = ()
        self._last = clock()

    def begin(self, job: JobView) -> None:
        self._line(f"{job.plan.vm}: {job.plan.technology.console_name}, job {job.id}")

    def show(self, event: Event) -> None:
        if event.state in FINAL:
            return  # `end` says it
        progress = event.progress
        waits = progress.held if event.state is JobState.QUEUED else ""  # else it changes each second, as figures do
        happens = (str(event.state), event.sentence, progress.now, waits)
        if happens != self._shown:
            self._shown, self._last = happens, self._clock()
            self._line(happens_text(event))
        elif self._clock() - self._last >= BETWEEN_LINES_S:
            self._last = self._clock()
            figures = f"{percent_text(progress)}  {figures_text(progress)}".strip()
            if told := "  ".join(filter(None, (figures, progress.held))):
                self._line(f"  {told}")

    def say(self, text: str) -> None:
        self._line(text)

    def rest(self) -> None:
        pass

    def end(self, job: JobView, receipt: Receipt | None) -> None:
        print_end(job, receipt)

    def _line(self, text: str) -> None:
        print(shown(text), flush=True)


def happens_text(event: Event) -> str:
    """Return what happens, "copying the base (step 4 of 12)", or the state and why if that matters more."""
    progress = event.progress
    step = f" (step {progress.step} of {progress.steps})" if progress.steps else ""
    now = f"{progress.now}{step}" if progress.now else ""
    if event.state is JobState.RUNNING and not event.sentence:
        return now or STATE[event.state]
    waits = progress.held if event.state is JobState.QUEUED else ""
    return ": ".join(part for part in (STATE[event.state], event.sentence or now or waits) if part)


def print_end(job: JobView, receipt: Receipt | None) -> None:
    """Print the receipt, or what became of the job and what to do."""
    if receipt:
        print()
        show(receipt_page(receipt))
        return
    style = "bold red" if exit_code(job) == STUCK else "yellow"
    show(Text(shown(ended_in_words(job)), style=style), errors=True)
    if job.clock:
        show(Text(f"the guest's clock: {shown(job.clock)}"), errors=True)
