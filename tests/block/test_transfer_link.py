"""A link that goes down in the middle of a copy, for longer than TCP has patience, and comes up again."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.support.copy_command import VMFERRY
from tests.support.nbd_servers import Link, answers, iscsi_server, link, running, until
from tests.support.places import image

from vmferry.lab.programs import wait_for
from vmferry.transfer import CHUNK, Place
from vmferry.transfer.endpoints import nbd_connection
from vmferry.transfer.endpoints.nbd import nbd_link
from vmferry.transfer.endpoints.nbd_connect import connecting

pytestmark = pytest.mark.slow

CHUNKS, STREAMS = 12, 2
SIZE = CHUNKS * CHUNK
RATE = 2 * CHUNK
"""Bytes a second: six seconds for the copy, so that it can be met in its middle."""
PORT = 10809
GIVE_UP_S = 120

CHILD = """
import json, sys
from pathlib import Path
from vmferry.errors import VmferryError
from vmferry.transfer import Place, Transfer, Unwatched, compare, copy
from vmferry.transfer.endpoints import nbd_connection

source, place, bookmarks, limit, quiet = sys.argv[1:]
nbd_connection.QUIET_S = float(quiet) or nbd_connection.QUIET_S
transfer = Transfer(Path(source), Place(place), Path(bookmarks))
try:
    copied = copy(transfer, Unwatched(int(limit) or None), streams=2)
    same = compare(transfer, Unwatched()).root_hash == copied.root_hash
    print(json.dumps({"same": same, "reused": copied.reused_bytes}))
except VmferryError as error:
    print(json.dumps({"error": str(error), "passing": error.passing}))
"""


class Server:
    """nbdkit at the far end of a link, on a raw file; it logs what it is asked to write."""

    def __init__(self, folder: Path, cable: Link) -> None:
        self.cable = cable
        self.behind = image(folder, b"\xaa" * SIZE)
        self.url = f"nbd://{cable.address}:{PORT}/"
        self._folder = folder

    @contextmanager
    def up(self) -> Iterator[None]:
        words = ["nbdkit", "-f", "-i", self.cable.address, "-p", str(PORT), "--filter=log", "file", str(self.behind)]
        log = self._folder / "writes"
        with running(*self.cable.there, *words, f"logfile={log}", log=self._folder / "nbdkit.log"):
            until(self._answers, "nbdkit")
            yield

    def written(self) -> int:
        """Bytes of all write requests that came to it."""
        log = (self._folder / "writes").read_text()
        return sum(int(count, 16) for count in re.findall(r" Write id=\d+ offset=\S+ count=(0x[0-9a-f]+)", log))

    def _answers(self) -> bool:
        look = [*self.cable.here, "nbdinfo", "--size", self.url]
        return subprocess.run(look, capture_output=True, check=False).returncode == 0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with link(tmp_path) as cable:
        made = Server(tmp_path, cable)
        with made.up():
            yield made


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    made = tmp_path / "disk.img"
    made.write_bytes(random.Random(3).randbytes(SIZE))
    return made


def bookmarked(folder: Path) -> int:
    return sum((p.stat().st_size - 64) // 48 for p in folder.rglob("bookmarks") if p.is_file())


def begin(server: Server, disk: Path, limit: int = 0, quiet_s: float = 0) -> subprocess.Popen[bytes]:
    words = [str(disk), server.url, str(disk.parent / "memory/bookmarks"), str(limit), str(quiet_s)]
    (disk.parent / "memory").mkdir(exist_ok=True)
    return subprocess.Popen([*server.cable.here, sys.executable, "-c", CHILD, *words], stdout=subprocess.PIPE)


def ended(copying: subprocess.Popen[bytes]) -> Any:
    try:
        said, _ = copying.communicate(timeout=GIVE_UP_S)
    finally:
        copying.kill()
        copying.wait()
    return json.loads(said)


@pytest.mark.parametrize("who", ["tcp gives up", "tcp does not give up"])
def test_a_copy_over_a_link_that_is_down_ends_and_goes_on_later(server: Server, disk: Path, who: str) -> None:
    """TCP's own end comes after 3 s here; where it would come in a quarter of an hour, ours does (30 s, here 4)."""
    if who == "tcp gives up":
        server.cable.lower_patience(3)
    copying = begin(server, disk, RATE, 60 if who == "tcp gives up" else 4)
    until(lambda: bookmarked(disk.parent / "memory") > CHUNKS // 3, "a third of the copy")
    server.cable.down()
    told = ended(copying)
    assert told["passing"], told
    assert ("did not answer" in told["error"]) == (who == "tcp does not give up"), told
    server.cable.up()
    told = ended(begin(server, disk))
    assert told["same"]
    assert told["reused"] >= (CHUNKS // 3 - STREAMS) * CHUNK
    assert server.behind.read_bytes() == disk.read_bytes()
    assert SIZE <= server.written() <= SIZE + STREAMS * CHUNK


def test_a_server_that_stands_still_at_the_end_holds_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nbd_shutdown(3) of libnbd waits for the server's end of the connection, which never comes."""
    monkeypatch.setattr(nbd_connection, "GOODBYE_S", 1.0)
    at = tmp_path / "server"
    with running("nbdkit", "-f", "-U", str(at), "memory", "1M", log=tmp_path / "nbdkit.log") as nbdkit:
        until(lambda: answers(at), "nbdkit's socket")
        with nbd_link(connecting(Place(f"nbd+unix:///?socket={at}")), 2) as open_:
            open_.flush()
            os.kill(nbdkit.pid, signal.SIGSTOP)
        os.kill(nbdkit.pid, signal.SIGCONT)


class Ferry:
    """The real command and its worker, at the near end of a link."""

    def __init__(self, folder: Path, cable: Link) -> None:
        self.state = folder / "state"
        self._words = [*cable.here, *VMFERRY]
        self._env = os.environ | {"VMFERRY_STATE": str(self.state)}

    def json(self, *words: str) -> Any:
        ran = subprocess.run([*self._words, *words, "--json"], env=self._env, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return json.loads(ran.stdout.splitlines()[-1])

    def leave(self) -> None:
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((self.state / "worker.pid").read_text()), signal.SIGKILL)


@pytest.fixture
def ferry(tmp_path: Path, server: Server) -> Iterator[Ferry]:
    made = Ferry(tmp_path, server.cable)
    yield made
    made.leave()


def test_a_transfer_over_a_link_that_is_down_waits_and_goes_on_by_itself(
    server: Server, disk: Path, ferry: Ferry
) -> None:
    server.cable.lower_patience(3)
    told = ferry.json("copy", "--detach", "--retry-delay", "5s", "--limit", "8MiB", str(disk), server.url)
    id = told["id"]

    def state() -> str:
        return str(ferry.json("transfer", "show", id)["state"])

    until(lambda: bookmarked(ferry.state / "transfers") > CHUNKS // 3, "a third of the copy")
    server.cable.down()
    wait_for(lambda: state() == "transient error", "the link to be missed", GIVE_UP_S)
    wait_for(lambda: ferry.json("transfer", "show", id)["failures"] > 1, "a second try in vain", GIVE_UP_S)
    server.cable.up()
    ferry.json("transfer", "limit", id, "none")
    wait_for(lambda: state() == "transferred", "the end of the copy", GIVE_UP_S)
    assert server.behind.read_bytes() == disk.read_bytes()
    assert server.written() <= SIZE + 4 * CHUNK  # four streams


def test_an_iscsi_target_that_stands_still_ends_the_copy_which_goes_on_later(disk: Path, tmp_path: Path) -> None:
    """libiscsi would wait for ever behind qemu-nbd; what we started to reach it is gone, too."""
    (tmp_path / "memory").mkdir()
    lun = image(tmp_path, b"\xaa" * SIZE)
    with iscsi_server(lun, tmp_path) as (url, tgtd):

        def begin_here(limit: int, quiet_s: float) -> subprocess.Popen[bytes]:
            words = [str(disk), url, str(tmp_path / "memory/bookmarks"), str(limit), str(quiet_s)]
            return subprocess.Popen([sys.executable, "-c", CHILD, *words], stdout=subprocess.PIPE)

        copying = begin_here(RATE, 3)
        until(lambda: bookmarked(tmp_path / "memory") > CHUNKS // 3, "a third of the copy")
        os.kill(tgtd, signal.SIGSTOP)
        try:
            told = ended(copying)
        finally:
            os.kill(tgtd, signal.SIGCONT)
        assert told["passing"], told
        assert ended(begin_here(0, 0))["same"]
    assert lun.read_bytes() == disk.read_bytes()
