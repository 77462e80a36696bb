"""The process that runs jobs: `python -m vmferry.server.worker --state DIR`, started on demand by a command.

One for each state folder: the lock that Jobs.start takes keeps a second out. It answers on a unix socket in
that folder, survives the terminal it was started from, and leaves when it has been idle for a while.
With its records in PostgreSQL it is one manager among others, each with a folder of its own.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

import structlog
import uvicorn
from fastapi import FastAPI

from vmferry.api.app import make_app
from vmferry.api.idle_exit import IdleExit
from vmferry.errors import VmferryError, WorkerRunning
from vmferry.hosts.interface import Hosts
from vmferry.manager.fleet.service import Fleet
from vmferry.manager.jobs.service import Jobs
from vmferry.manager.notify.delivery import Delivery
from vmferry.manager.transfers.service import Transfers
from vmferry.process import log as worker_log
from vmferry.process.state import ALREADY_RUNNING, StateLocation

log = structlog.get_logger()

LAST_WORDS_S = 3
"""Streams end by themselves within a second; a request that takes longer is cut off."""


class WorkerServer(uvicorn.Server):
    """A uvicorn server that ends its streams when it is asked to exit; their readers would keep it otherwise."""

    life: IdleExit

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        log.info("asked to leave", signal=signal.Signals(sig).name)
        self.life.leave()
        super().handle_exit(sig, frame)

    def stop(self) -> None:
        self.should_exit = True


def main(argv: Sequence[str] | None = None, hosts_for: Callable[[Path], Hosts] | None = None) -> int:
    """Run until idle or asked to leave. Return the exit code, ALREADY_RUNNING if another worker holds the lock."""
    options = _options(argv)
    try:
        place = StateLocation.of(options.state, options.runtime)
        place.make()
        os.chdir("/")  # keep no file system busy
        worker_log.start(place.log, foreground=options.foreground)
        _serve(place, options.idle_minutes * 60, (hosts_for or _libvirt_hosts)(place.shared_folder or place.state))
    except WorkerRunning as error:
        print(error, file=sys.stderr)
        return ALREADY_RUNNING
    except VmferryError as error:
        log.error("the worker could not start", sentence=str(error))
        print(error, file=sys.stderr)
        return error.exit_code
    except Exception as error:
        log.exception("the worker ended in a way nobody foresaw")
        print(f"{type(error).__name__}: {error}".splitlines()[0], file=sys.stderr)
        return 1
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m vmferry.server.worker", description=__doc__)
    state, runtime = os.environ.get("VMFERRY_STATE"), os.environ.get("VMFERRY_RUNTIME")
    parser.add_argument("--state", default=state, help="folder of jobs, log and socket; or a database [VMFERRY_STATE]")
    parser.add_argument("--runtime", type=Path, default=runtime, help="with a database: folder of log and socket")
    parser.add_argument("--idle-minutes", type=float, default=10.0, help="leave after so long without work")
    parser.add_argument("--foreground", action="store_true", help="log to the terminal")
    options = parser.parse_args(argv)
    if not options.state:
        parser.error("--state or VMFERRY_STATE is needed")
    return options


def _libvirt_hosts(shared_folder: Path) -> Hosts:
    from vmferry.hosts.fence import Fence
    from vmferry.hosts.libvirt.driver import LibvirtHosts

    return LibvirtHosts(Fence(shared_folder))


def _serve(place: StateLocation, idle_s: float, hosts: Hosts) -> None:
    identity = place.identity()
    fleet = Fleet(identity.folder, identity.records)
    fleet.check()
    hosts = fleet.over(hosts)
    jobs = Jobs(identity, hosts, storages=fleet.storages)
    jobs.start()
    fleet.start()
    transfers = Transfers(identity, hosts, jobs.limits)
    delivery = Delivery(identity)
    try:
        transfers.start()
        delivery.start()
        with _own_socket(place) as socket_:
            life = IdleExit(idle_s, lambda: _in_flight(jobs, transfers, delivery), lambda: server.stop())
            app = make_app(jobs, transfers, delivery, hosts, fleet, life, place.log)
            server = WorkerServer(_config(app))
            server.life = life
            _ignore_echoes()
            worker_log.take_over()
            log.info("ready", pid=os.getpid(), state=str(place.state), manager=identity.manager)
            server.run([socket_])
    finally:
        transfers.close()
        delivery.close()
        jobs.close()
        fleet.close()
        log.info("left", pid=os.getpid())


def _in_flight(jobs: Jobs, transfers: Transfers, delivery: Delivery) -> int:
    return jobs.in_flight() + transfers.in_flight() + delivery.in_flight()


def _config(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=LAST_WORDS_S,
    )


@contextmanager
def _own_socket(place: StateLocation) -> Iterator[socket.socket]:
    """Listen on the worker's socket, only for this user. A context manager.

    Only the lock's holder may replace a stale socket.
    """
    place.socket.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        listener.bind(place.address())
    finally:
        os.umask(mask)
    listener.listen(128)
    try:
        yield listener
    finally:
        listener.close()
        place.socket.unlink(missing_ok=True)


def _ignore_echoes() -> None:
    """Ignore the signal that uvicorn raises again at its end; by a handler, since children inherit SIG_IGN."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)


def run(argv: Sequence[str] | None = None, hosts_for: Callable[[Path], Hosts] | None = None) -> NoReturn:
    """Call `main`, then end the process at once: a thread that hangs in a call to a host must not keep the lock."""
    code = main(argv, hosts_for)
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
