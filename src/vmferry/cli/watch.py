"""Watches a job to its end, whatever happens to the worker and the keyboard meanwhile."""

from __future__ import annotations

import select
import sys

from vmferry.api.client.client import Client
from vmferry.api.client.errors import ServerError
from vmferry.cli.render.screen import answered, print_error, seen
from vmferry.cli.render.viewers import JsonLines, PlainLines, Viewer
from vmferry.cli.render.words import LEFT, STUCK, exit_code
from vmferry.errors import WorkerUnreachable
from vmferry.model import JobState, JobView, Receipt

HEARS_S = 0.5
"""How long a Ctrl-C may go unheard while a question stands."""
QUESTION = "\nCancel and undo (c), leave it running in the background (l), or go on watching (w)? [w] "


def viewer(*, json: bool) -> Viewer:
    """Return the viewer that fits: JSON lines, a live view on a terminal, plain lines otherwise."""
    if json:
        return JsonLines()
    if seen():
        from vmferry.cli.render.live import LiveView

        return LiveView()
    return PlainLines()


def watch(client: Client, job: JobView, view: Viewer) -> int:
    """Show the job until it has ended or is left alone. Return the command's exit code."""
    client.says = view.say
    view.begin(job)
    asks = answered() and not isinstance(view, JsonLines)
    try:
        while not _watched(client, job, view):
            if not asks or not _goes_on_watching(client, job):
                return _left(job)
        return _end(client, job, view)
    except WorkerUnreachable as gone:
        view.rest()
        print_error(f"{gone}; job {job.id} waits: `vmferry recover` goes on with it")
        return STUCK
    finally:
        view.rest()


def _watched(client: Client, job: JobView, view: Viewer) -> bool:
    """Show events until the job has ended. Return False if Ctrl-C interrupted it."""
    try:
        for event in client.watch(job.id):
            view.show(event)
    except KeyboardInterrupt:
        view.rest()
        return False
    return True


def _goes_on_watching(client: Client, job: JobView) -> bool:
    """Ask what Ctrl-C meant. Return True to go on watching; a second Ctrl-C, or no answer, means to leave."""
    try:
        answer = _answer(QUESTION)
        if answer.strip().startswith("c"):
            _cancel(client, job)
    except KeyboardInterrupt:
        answer = ""
    if not answer:
        print()
    return bool(answer) and not answer.strip().startswith("l")


def _answer(question: str) -> str:
    """Return the person's answer in small letters; empty only at the end of input.

    It does not use input(), nor an unbounded wait: a Ctrl-C just before the wait would be noticed only after it.
    """
    print(question, end="", flush=True)
    while not select.select([sys.stdin], [], [], HEARS_S)[0]:
        pass
    return sys.stdin.readline().lower()


def _cancel(client: Client, job: JobView) -> None:
    try:
        client.cancel(job.id)
    except ServerError as error:  # it may have ended meanwhile, or be past the point of no return
        print_error(str(error))


def _left(job: JobView) -> int:
    print(in_background(job), file=sys.stderr)
    return LEFT


def in_background(job: JobView) -> str:
    return (
        f"job {job.id} goes on in the background: `vmferry job watch {job.id}` shows it, "
        f"`vmferry job cancel {job.id}` undoes it"
    )


def _end(client: Client, job: JobView, view: Viewer) -> int:
    ended = client.job(job.id)
    view.end(ended, _receipt(client, ended))
    return exit_code(ended)


def _receipt(client: Client, ended: JobView) -> Receipt | None:
    return client.receipt(ended.id) if ended.state is JobState.DONE else None
