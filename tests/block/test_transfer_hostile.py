"""Servers that lie, damaged images and damaged bookmarks: never a crash, never a hang, never passed for good."""

import os
import random
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.places import image

from vmferry.errors import VmferryError
from vmferry.transfer import CHUNK, Place, Transfer, Unwatched, compare, copy, root_hash_of
from vmferry.transfer.endpoints import nbd_connection
from vmferry.transfer.endpoints.nbd import nbd_link
from vmferry.transfer.endpoints.nbd_connect import connecting

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

DISK = random.Random(6).randbytes(3 * 65536) + bytes(CHUNK) + random.Random(7).randbytes(65536)
few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

NEW_STYLE = b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3)
OPTION_REPLY = 0x3E889045565A9
SIMPLE_REPLY = 0x67446698
HAS_FLAGS, SEND_FLUSH, SEND_ZEROES = 1, 4, 64


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd_connection, "QUIET_S", 0.5)
    monkeypatch.setattr(nbd_connection, "LONGEST_S", 5.0)
    monkeypatch.setattr(nbd_connection, "_SILENCE_POLL_MS", 100)


@contextmanager
def serving(talk: Callable[[socket.socket], None]) -> Iterator[Place]:
    """A server that talks so to each caller."""
    with TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{folder}/s")
        listening.listen(8)

        def serve() -> None:
            with suppress(OSError):
                while True:
                    caller, _ = listening.accept()
                    Thread(target=answer, args=(caller,), daemon=True).start()

        def answer(caller: socket.socket) -> None:
            with caller, suppress(OSError):
                talk(caller)

        Thread(target=serve, daemon=True).start()
        yield Place(f"nbd+unix:///?socket={folder}/s")
        listening.shutdown(socket.SHUT_RDWR)


def received(caller: socket.socket, count: int) -> bytes:
    got = caller.recv(count, socket.MSG_WAITALL)
    if len(got) < count:
        raise OSError("gone")
    return got


def greet(caller: socket.socket, size: int) -> None:
    """The whole handshake, without structured replies: each option but the last is refused."""
    caller.sendall(NEW_STYLE)
    received(caller, 4)
    while True:
        _, option, length = struct.unpack(">8sII", received(caller, 16))
        received(caller, length)
        if option != 7:  # NBD_OPT_GO
            caller.sendall(struct.pack(">QIII", OPTION_REPLY, option, 2**31 + 1, 0))
            continue
        info = struct.pack(">HQH", 0, size, HAS_FLAGS | SEND_FLUSH | SEND_ZEROES)
        caller.sendall(struct.pack(">QIII", OPTION_REPLY, option, 3, len(info)) + info)
        caller.sendall(struct.pack(">QIII", OPTION_REPLY, option, 1, 0))
        return


def request(caller: socket.socket) -> tuple[int, bytes, int]:
    """Kind, cookie, length; the payload of a write is read and forgotten."""
    _, _, kind, cookie, _, length = struct.unpack(">IHH8sQI", received(caller, 28))
    if kind == 1:
        received(caller, length)
    return kind, cookie, length


def refused(place: Place, folder: Path) -> None:
    """Neither reading nor writing it ends well."""
    source = folder / "source"
    source.write_bytes(b"x" * 4096)
    for number, (here, there) in enumerate([(place, Place(str(folder / "copy"))), (Place(str(source)), place)]):
        (folder / f"bookmarks{number}").unlink(missing_ok=True)
        (folder / "copy").unlink(missing_ok=True)
        transfer = Transfer(here, there, folder / f"bookmarks{number}")
        with pytest.raises(VmferryError):
            copy(transfer, Unwatched())
            compare(transfer, Unwatched())


@few
@given(st.binary(max_size=200))
def test_a_server_that_greets_with_garbage(tmp_path: Path, noise: bytes) -> None:
    with serving(lambda caller: caller.sendall(noise)) as place:
        refused(place, tmp_path)


@few
@given(st.binary(min_size=1, max_size=200))
def test_a_server_that_answers_options_with_garbage(tmp_path: Path, noise: bytes) -> None:
    with serving(lambda caller: caller.sendall(NEW_STYLE + noise)) as place:
        refused(place, tmp_path)


@few
@given(st.binary(min_size=1, max_size=100))
def test_a_server_that_answers_requests_with_garbage(tmp_path: Path, noise: bytes) -> None:
    def talk(caller: socket.socket) -> None:
        greet(caller, 4096)
        request(caller)
        caller.sendall(noise)

    with serving(talk) as place:
        refused(place, tmp_path)


def silent_at_once(caller: socket.socket) -> None:
    received(caller, 1 << 20)


def silent_after_greeting(caller: socket.socket) -> None:
    greet(caller, 4096)
    received(caller, 1 << 20)


def trickling(caller: socket.socket) -> None:
    """A byte now and then, of a reply that never ends."""
    greet(caller, 1 << 40)
    _, cookie, _ = request(caller)
    caller.sendall(struct.pack(">II8s", SIMPLE_REPLY, 0, cookie))
    while True:
        caller.sendall(b"x")
        with suppress(TimeoutError):
            caller.settimeout(0.2)
            caller.recv(1)


def wrong_cookie(caller: socket.socket) -> None:
    greet(caller, 4096)
    while True:
        kind, _, length = request(caller)
        caller.sendall(struct.pack(">II8s", SIMPLE_REPLY, 0, b"nonsense") + bytes(length if kind == 0 else 0))


def full(caller: socket.socket) -> None:
    greet(caller, 4096)
    while True:
        _, cookie, _ = request(caller)
        caller.sendall(struct.pack(">II8s", SIMPLE_REPLY, 28, cookie))


def forgetful(caller: socket.socket) -> None:
    """All is well, it says, and gives something else each time."""
    greet(caller, 4096)
    while True:
        kind, cookie, length = request(caller)
        caller.sendall(struct.pack(">II8s", SIMPLE_REPLY, 0, cookie) + (os.urandom(length) if kind == 0 else b""))


@pytest.mark.parametrize("talk", [silent_at_once, silent_after_greeting, trickling, wrong_cookie, full])
def test_a_server_that_misbehaves_in_this_way(talk: Callable[[socket.socket], None], tmp_path: Path) -> None:
    with serving(talk) as place:
        refused(place, tmp_path)


def test_a_server_on_tcp_that_falls_silent_is_left_at_once() -> None:
    left = Event()

    def serve(listening: socket.socket) -> None:
        caller, _ = listening.accept()
        with caller:
            greet(caller, 4096)
            request(caller)
            while caller.recv(1024):
                pass
            left.set()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        Thread(target=serve, args=(listening,), daemon=True).start()
        place = Place(f"nbd://127.0.0.1:{listening.getsockname()[1]}/")
        with nbd_link(connecting(place), 1) as link:
            with suppress(TimeoutError):  # pytest.raises would keep the traceback, and with it libnbd's handle
                link.read(0, memoryview(bytearray(4096)))
            assert left.wait(10)


def test_a_server_that_loses_what_was_written_does_not_pass(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 4096)
    with serving(forgetful) as place:
        transfer = Transfer(source, place, tmp_path / "bookmarks")
        copy(transfer, Unwatched())
        with pytest.raises(VmferryError, match="do not trust that storage"):
            compare(transfer, Unwatched())


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("disk")
    path = image(folder, DISK)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", path, folder / "disk.qcow2"], check=True)
    return path


flips = st.lists(st.tuples(st.integers(0, 2**20), st.integers(1, 255)), min_size=1, max_size=8)


def damage(content: bytes, harm: list[tuple[int, int]], within: int) -> bytes:
    made = bytearray(content)
    for at, bits in harm:
        made[at % min(within, len(made))] ^= bits
    return bytes(made)


@few
@given(flips, st.sampled_from([104, 4096, 1 << 20]))
def test_a_damaged_image_is_refused_or_copied_as_qemu_reads_it(
    disk: Path, tmp_path: Path, harm: list[tuple[int, int]], within: int
) -> None:
    broken, there, theirs = tmp_path / "broken.qcow2", tmp_path / "copy", tmp_path / "theirs"
    for path in (there, tmp_path / "bookmarks", theirs):
        path.unlink(missing_ok=True)
    broken.write_bytes(damage(disk.with_name("disk.qcow2").read_bytes(), harm, within))
    transfer = Transfer(Place(str(broken), "qcow2"), Place(str(there)), tmp_path / "bookmarks")
    try:
        copy(transfer, Unwatched())
        compare(transfer, Unwatched())
    except VmferryError:
        return
    words = ["qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(broken), str(there)]
    assert subprocess.run(words, capture_output=True, check=False).returncode == 0


@few
@given(flips)
def test_a_damaged_destination_is_mended_or_refused(disk: Path, tmp_path: Path, harm: list[tuple[int, int]]) -> None:
    there = tmp_path / "new.qcow2"
    for path in (there, tmp_path / "bookmarks"):
        path.unlink(missing_ok=True)
    transfer = Transfer(Place(str(disk)), Place(str(there), "qcow2"), tmp_path / "bookmarks")
    copy(transfer, Unwatched())
    there_bytes = damage(there.read_bytes(), harm, 1 << 20)
    with there.open("r+b") as file:
        file.write(there_bytes)
    try:
        compare(transfer, Unwatched())
    except VmferryError:
        return
    words = ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(disk), str(there)]
    assert subprocess.run(words, capture_output=True, check=False).returncode == 0


@few
@given(flips, st.integers(0, 400), st.booleans())
def test_damaged_bookmarks_never_pass_for_good(
    disk: Path,
    tmp_path: Path,
    harm: list[tuple[int, int]],
    length: int,
    goes_on: bool,  # noqa: FBT001
) -> None:
    for path in (tmp_path / "new", tmp_path / "bookmarks"):
        path.unlink(missing_ok=True)
    transfer = Transfer(disk, tmp_path / "new", tmp_path / "bookmarks")
    copy(transfer, Unwatched())
    with (tmp_path / "new").open("r+b") as file:
        file.write(b"not what was copied")
    transfer.bookmarks.write_bytes(damage(transfer.bookmarks.read_bytes()[:length] or b"?", harm, 1 << 20))
    try:
        if goes_on:
            copy(transfer, Unwatched())
        compare(transfer, Unwatched())
    except VmferryError:
        return
    assert root_hash_of(tmp_path / "new", Unwatched()) == root_hash_of(disk, Unwatched())
