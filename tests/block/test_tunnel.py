"""Tunnels between two ends on loopback: what passes, who is let in, and what no peer can do to the other."""

from __future__ import annotations

import random
import socket
import ssl
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard
from tests.support.nbd_servers import certificates, until
from tests.support.tunnels import ANSWER_S, QUICK, Pair, admitted, call, context, pair, read_all, sending, stranger

from vmferry.tunnel import TunnelClient, TunnelPeer, TunnelServer, TunnelTimeouts
from vmferry.tunnel.compression import CompressionChoice
from vmferry.tunnel.frames import HEAD, MOST, FrameKind, Squeezer
from vmferry.tunnel.handshake import MAGIC, VERSION, Answer
from vmferry.tunnel.sender import LEAST_AHEAD

MIB = 1024 * 1024
NOISE = random.Random(25).randbytes(3 * MIB + 17)
TEXT = b"one and the same sentence, again and again. " * 5000
HELD_UP_S = 2.0
"""Whoever cannot send for so long is held back."""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates(tmp_path_factory.mktemp("tls") / "keys")


def frame(kind: int, content: bytes = b"", plain: int | None = None) -> bytes:
    return HEAD.pack(kind, len(content), len(content) if plain is None else plain) + content


def works(at: Pair) -> None:
    """A new connection carries bytes there and back."""
    near, far = at.connect()
    with near, far:
        near.sendall(b"hello")
        assert far.recv(5) == b"hello"
        far.sendall(b"there")
        assert near.recv(5) == b"there"


# -- what passes


@pytest.mark.parametrize(("slow", "smaller"), [(False, False), (None, True)])
def test_over_a_fast_link_nothing_is_compressed_however_well_it_would_pay(
    tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch, *, slow: bool | None, smaller: bool
) -> None:
    monkeypatch.setattr(CompressionChoice, "squeeze", lambda *_: True)
    with pair(tmp_path, keys, slow=slow) as at:
        near, far = at.connect()
        with near, far, sending(near, TEXT), sending(far, TEXT):
            assert (read_all(far), read_all(near)) == (TEXT, TEXT)
        ending = at.ended()
        for count in (ending.sent, ending.received):
            assert count.plain == len(TEXT)
            assert (count.wire < count.plain) is smaller


def test_over_a_link_that_is_known_to_be_slow_the_first_byte_is_compressed(tmp_path: Path, keys: Path) -> None:
    with pair(tmp_path, keys, slow=True) as at:
        near, far = at.connect()
        with near, far, sending(near, TEXT), sending(far, TEXT):
            assert (read_all(far), read_all(near)) == (TEXT, TEXT)
        ending = at.ended()
        assert max(ending.sent.wire, ending.received.wire) < len(TEXT) / 10


def test_both_directions_at_once_arrive_whole(tmp_path: Path, keys: Path) -> None:
    with pair(tmp_path, keys) as at:
        near, far = at.connect()
        with near, far, sending(near, NOISE), sending(far, TEXT + NOISE):
            threads = [threading.Thread(target=lambda: got.append(read_all(far)))]
            got: list[bytes] = []
            threads[0].start()
            assert read_all(near) == TEXT + NOISE
            threads[0].join(ANSWER_S)
            assert got == [NOISE]
        ending = at.ended()
        assert (ending.whole, ending.sent.plain, ending.received.plain) == (True, len(NOISE), len(TEXT + NOISE))
        assert at.at_server.get(timeout=ANSWER_S).whole


def test_an_answer_may_come_long_after_the_question_was_ended(tmp_path: Path, keys: Path) -> None:
    with pair(tmp_path, keys) as at:
        near, far = at.connect()
        with near, far:
            near.sendall(b"how many?")
            near.shutdown(socket.SHUT_WR)
            assert read_all(far) == b"how many?"
            far.sendall(b"42")
            far.shutdown(socket.SHUT_WR)
            assert read_all(near) == b"42"
        assert at.ended().whole


def test_the_last_bytes_of_a_program_that_leaves_at_once_arrive(tmp_path: Path, keys: Path) -> None:
    with pair(tmp_path, keys) as at:
        for _ in range(20):
            near, far = at.connect()
            with far:
                near.sendall(NOISE[:100_000])
                near.close()
                assert read_all(far) == NOISE[:100_000]
            assert at.ended().whole


def test_compressed_frames_are_expanded(tmp_path: Path, keys: Path) -> None:
    squeezed = Squeezer().frame(memoryview(TEXT))
    assert squeezed is not None
    with pair(tmp_path, keys) as at:
        caller, far = admitted(at, keys)
        with caller, far:
            caller.sendall(bytes(squeezed) + frame(FrameKind.RAW, b"and so on") + frame(FrameKind.END))
            assert read_all(far) == TEXT + b"and so on"


def test_raw_bytes_are_passed_on_before_their_frame_is_complete(tmp_path: Path, keys: Path) -> None:
    with pair(tmp_path, keys) as at:
        caller, far = admitted(at, keys)
        with caller, far:
            caller.sendall(HEAD.pack(FrameKind.RAW, MOST, MOST) + b"soon")
            assert far.recv(MOST) == b"soon"


def test_only_its_owner_can_use_the_local_socket(tmp_path: Path, keys: Path) -> None:
    with pair(tmp_path, keys) as at:
        assert at.here.stat().st_mode & 0o777 == 0o600
    assert not at.here.exists()


def test_a_socket_that_a_killed_process_left_is_replaced_but_one_in_use_is_not(tmp_path: Path, keys: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "here"))
    with pair(tmp_path, keys) as at:
        works(at)
        with pytest.raises(OSError, match="in use"):
            TunnelClient(at.here, at.peer, context(keys, "client"))
        works(at)


# -- who is let in


def test_a_ticket_for_one_use_is_good_for_one(tmp_path: Path, keys: Path) -> None:
    with pair(tmp_path, keys, uses=1) as at:
        works(at)
        with call(at.here) as late:
            assert read_all(late) == b""
        reasons = {str(at.ended().error) for _ in range(2)}
        assert any("ticket is unknown there, was used up" in reason for reason in reasons)


def test_a_ticket_that_leads_to_nobody_says_so_and_is_not_used(tmp_path: Path, keys: Path) -> None:
    with pair(tmp_path, keys, uses=1) as at:
        at.there.rename(tmp_path / "away")
        with call(at.here) as near:
            assert read_all(near) == b""
        assert "nothing listens there" in str(at.ended().error)
        (tmp_path / "away").rename(at.there)
        works(at)


def test_a_caller_without_a_certificate_is_refused(tmp_path: Path, keys: Path) -> None:
    with pair(tmp_path, keys) as at:
        with pytest.raises(OSError):  # TLS 1.3 tells a client only when it reads
            stranger(at, keys, known=False).recv(1)
        works(at)


def test_a_caller_of_another_authority_is_refused_and_refuses(tmp_path: Path, keys: Path) -> None:
    others = certificates(tmp_path / "others")
    with pair(tmp_path, keys) as at:
        mixed = context(keys, "client", known=False)
        mixed.load_cert_chain(others / "client-cert.pem", others / "client-key.pem")
        for number, theirs in enumerate((mixed, context(others, "client"))):
            with TunnelClient(tmp_path / f"other{number}", at.peer, theirs, at.endings.put) as client:
                with call(client.at) as near:
                    assert read_all(near) == b""
                assert "there is no tunnel with" in str(at.ended().error)
        works(at)


def test_a_peer_with_another_name_is_not_trusted(tmp_path: Path, keys: Path) -> None:
    with pair(tmp_path, keys) as at:
        wrong = TunnelPeer(at.peer.host, at.peer.port, at.ticket, named="host2")
        with TunnelClient(tmp_path / "other", wrong, context(keys, "client"), at.endings.put) as client:
            with call(client.at) as near:
                assert read_all(near) == b""
            assert "host2" in str(at.ended().error)


def test_contexts_that_would_trust_anybody_are_not_taken(tmp_path: Path, keys: Path) -> None:
    with pair(tmp_path, keys) as at:
        trusting = context(keys, "server")
        trusting.verify_mode = ssl.CERT_NONE
        old = context(keys, "client")
        old.minimum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ValueError, match="certificate"):
            TunnelServer(("127.0.0.1", 0), trusting, at.tickets)
        with pytest.raises(ValueError, match="certificate"):
            TunnelClient(tmp_path / "other", at.peer, old)


def test_a_caller_of_another_version_is_told_so(tmp_path: Path, keys: Path) -> None:
    with pair(tmp_path, keys) as at, stranger(at, keys) as caller:
        caller.sendall(MAGIC + bytes([VERSION + 1]) + bytes(4) + bytes([1]) + b"t")
        answer = caller.recv(100)
        assert answer.startswith(MAGIC)
        assert answer[-1] == Answer.VERSION
        assert caller.recv(1) == b""


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (MAGIC + bytes([VERSION + 1, 0, 0, 0, 1, Answer.WELCOME]), "another version"),
        (MAGIC + bytes([VERSION, 0, 0, 0, 1, 77]), "its answer was 77"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no tunnel of vmferry"),
        (b"", "hung up"),
    ],
)
def test_a_peer_that_answers_something_else_is_told_of(tmp_path: Path, keys: Path, said: bytes, told: str) -> None:
    with pair(tmp_path, keys) as at, socket.create_server(("127.0.0.1", 0)) as listener:
        odd = TunnelPeer("127.0.0.1", listener.getsockname()[1], at.ticket)
        with TunnelClient(tmp_path / "odd", odd, context(keys, "client"), at.endings.put) as client:
            with call(client.at) as near, listener.accept()[0] as plain:
                with context(keys, "server").wrap_socket(plain, server_side=True) as answering:
                    answering.recv(100)
                    answering.sendall(said)
                assert read_all(near) == b""
            assert told in str(at.ended().error)


@pytest.mark.slow
@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + bytes(500)])
def test_who_speaks_no_tls_or_nothing_is_sent_away(tmp_path: Path, keys: Path, said: bytes) -> None:
    with pair(tmp_path, keys, patience=QUICK) as at:
        with socket.create_connection((at.peer.host, at.peer.port), timeout=ANSWER_S) as caller:
            caller.sendall(said)
            with suppress(ConnectionResetError):
                while caller.recv(1000):
                    pass
        until(lambda: len(at.server) == 0, "the caller to be forgotten")
        works(at)


@pytest.mark.slow
def test_a_hello_that_drips_is_cut_off(tmp_path: Path, keys: Path) -> None:
    """A byte comes more often than each single wait would last; the deadline is for all of it."""
    with pair(tmp_path, keys, patience=QUICK) as at, stranger(at, keys) as caller:
        caller.settimeout(QUICK.hello_s * 0.4)
        dripped = 0
        with suppress(ConnectionError):
            while dripped < len(MAGIC):
                caller.sendall(MAGIC[dripped : dripped + 1])
                dripped += 1
                with suppress(TimeoutError):
                    assert caller.recv(1) == b""
                    break
        assert dripped < len(MAGIC)
        works(at)


# -- what no peer can do


BOMB = zstandard.ZstdCompressor().compress(bytes(64 * MIB))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"\xff" * 100, "unknown kind 255"),
        (HEAD.pack(FrameKind.RAW, 0xFFFFFFFF, 0xFFFFFFFF), "RAW of 4294967295 bytes"),
        (HEAD.pack(FrameKind.ZSTD, 100, 0xFFFFFFFF), "ZSTD of 100 bytes for 4294967295"),
        (frame(FrameKind.ZSTD, BOMB, MOST), "67108864 bytes that was to have 262144"),
        (frame(FrameKind.ZSTD, NOISE[:100], 1000), "cannot be expanded"),
        (frame(FrameKind.END) + frame(FrameKind.RAW, b"x"), "more after the end"),
        (frame(FrameKind.END) + frame(FrameKind.END), "more after the end"),
        (frame(FrameKind.DONE), "while more is to come"),
        (frame(FrameKind.GOT, plain=1), "got more than was sent"),
        (frame(FrameKind.GOT, b"x", 1), "GOT of 1 bytes for 1"),
        (frame(FrameKind.RAW, b"x" * 50)[:-1], "ended it in the middle"),
        (frame(FrameKind.RAW, b"x" * 50)[:5], "ended it in the middle"),
        (b"", "ended it in the middle"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_stream_is_cut_and_the_server_lives_on(tmp_path: Path, keys: Path, said: bytes, reason: str) -> None:
    with pair(tmp_path, keys) as at:
        caller, far = admitted(at, keys)
        with caller, far:
            caller.sendall(said)
            if "ended it" in reason:
                caller.close()
            read_all(far)
            ending = at.at_server.get(timeout=ANSWER_S)
        assert reason in str(ending.error)
        assert not ending.whole
        works(at)


def test_a_stream_is_not_whole_until_the_peer_says_that_it_was_delivered(tmp_path: Path, keys: Path) -> None:
    with pair(tmp_path, keys) as at:
        caller, far = admitted(at, keys)
        with caller, far:
            caller.sendall(frame(FrameKind.END))
            assert read_all(far) == b""
            far.sendall(b"the end")
            far.shutdown(socket.SHUT_WR)
            got = b""
            while not got.endswith(frame(FrameKind.END)):
                got += caller.recv(1000)
            caller.close()
            assert not at.at_server.get(timeout=ANSWER_S).whole


@pytest.mark.slow
def test_a_peer_that_falls_silent_is_given_up(tmp_path: Path, keys: Path) -> None:
    with pair(tmp_path, keys, patience=QUICK) as at:
        caller, far = admitted(at, keys)
        with caller, far:
            caller.sendall(frame(FrameKind.RAW, b"last words"))
            assert read_all(far) == b"last words"
            assert "nothing was heard of the other host for 1 s" in str(at.at_server.get(timeout=ANSWER_S).error)


@pytest.mark.slow
def test_a_silent_peer_is_given_up_also_while_it_takes_nothing(tmp_path: Path, keys: Path) -> None:
    with pair(tmp_path, keys, patience=QUICK) as at:
        caller, far = admitted(at, keys)
        with caller, far:
            with pytest.raises(OSError):
                far.sendall(bytes(256 * MIB))
            assert "nothing was heard" in str(at.at_server.get(timeout=ANSWER_S).error)


@pytest.mark.slow
def test_a_tunnel_without_traffic_is_kept_by_its_pings(tmp_path: Path, keys: Path) -> None:
    """The peer pings as often as it is pinged, four times in the time after which it would be given up."""
    with pair(tmp_path, keys, patience=QUICK) as at:
        caller, far = admitted(at, keys, quiet_s=QUICK.quiet_s)
        with caller, far:
            for _ in range(12):
                assert caller.recv(HEAD.size) == frame(FrameKind.PING)
                caller.sendall(frame(FrameKind.PING))
            caller.sendall(frame(FrameKind.RAW, b"still here"))
            assert far.recv(100) == b"still here"


@pytest.mark.slow
def test_a_reader_that_takes_its_time_holds_the_sender_back_and_loses_nothing(tmp_path: Path, keys: Path) -> None:
    """It does not read for longer than the silence after which a peer is given up: twice the time of one that is."""
    with pair(tmp_path, keys, patience=QUICK) as at:
        near, far = at.connect()
        with near, far:
            near.setblocking(False)
            sent = 0
            for _ in range(2):
                mute, reached = admitted(at, keys)
                with mute, reached:
                    while at.at_server.empty():
                        try:
                            sent += near.send(NOISE[sent % len(NOISE) :])
                        except BlockingIOError:
                            time.sleep(0.01)  # or the tunnel's threads, which are in this process, hardly get a turn
                    at.at_server.get()
            assert sent < 32 * MIB
            near.shutdown(socket.SHUT_WR)
            assert read_all(far) == (NOISE * (sent // len(NOISE) + 1))[:sent]
            far.close()
            assert at.ended().whole


def test_a_reader_that_takes_nothing_holds_back_also_what_hardly_takes_room_on_the_link(
    tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CompressionChoice, "squeeze", lambda *_: True)
    most = LEAST_AHEAD + 2 * MIB  # what the local sockets and a frame at each end hold
    with pair(tmp_path, keys) as at:
        near, far = at.connect()
        with near, far:
            near.settimeout(HELD_UP_S)
            sent = 0
            while sent <= most:
                try:
                    sent += near.send(TEXT)
                except TimeoutError:
                    if sent >= LEAST_AHEAD:  # below that a busy machine is slow, nobody is held back
                        break
            assert LEAST_AHEAD <= sent <= most
            near.settimeout(ANSWER_S)
            with sending(near, TEXT):
                assert len(read_all(far)) == sent + len(TEXT)
            far.close()
            ending = at.ended()
            assert ending.whole
            assert ending.sent.wire < ending.sent.plain / 10


def test_a_withdrawn_ticket_ends_its_streams_in_mid_sentence(tmp_path: Path, keys: Path) -> None:
    with pair(tmp_path, keys) as at:
        near, far = at.connect()
        with near, far:
            sender = threading.Thread(target=_send_until_it_fails, args=(near,))
            sender.start()
            assert far.recv(1)
            at.tickets.withdraw(at.ticket)
            read_all(far)
            sender.join(ANSWER_S)
            assert not sender.is_alive()
        assert not at.ended().whole
        assert "withdrawn" in str(at.at_server.get(timeout=ANSWER_S).error)
        with call(at.here) as again:
            assert read_all(again) == b""


def test_a_program_that_leaves_in_mid_stream_ends_the_others_too(tmp_path: Path, keys: Path) -> None:
    with pair(tmp_path, keys) as at:
        near, far = at.connect()
        with near:
            sender = threading.Thread(target=_send_until_it_fails, args=(near,))
            sender.start()
            assert far.recv(1)
            far.close()
            sender.join(ANSWER_S)
            assert not sender.is_alive()
        assert "the program at the socket left" in str(at.at_server.get(timeout=ANSWER_S).error)
        assert not at.ended().whole


@pytest.mark.slow
def test_hundreds_of_connections_of_all_kinds_leave_nothing_behind(tmp_path: Path, keys: Path) -> None:
    with pair(tmp_path, keys, patience=TunnelTimeouts(hello_s=30.0)) as at:
        works(at)
        until(lambda: len(at.server) == len(at.client) == 0, "the first to end")
        before = _held()
        for number in range(300):
            if number % 5 == 0:
                works(at)
            elif number % 5 == 1:
                near, far = at.connect()
                near.sendall(NOISE[:50_000])
                far.close()
                near.close()
            elif number % 5 == 2:
                stranger(at, keys).close()
            elif number % 5 == 3:
                caller, far = admitted(at, keys)
                caller.sendall(b"\xff" * 100)
                far.close()
                caller.close()
            else:
                socket.create_connection((at.peer.host, at.peer.port)).close()
        until(lambda: len(at.server) == len(at.client) == 0, "all to end")
        assert _held() == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tunnel")]


def test_closing_ends_what_runs_and_what_has_not_said_who_it_is(tmp_path: Path, keys: Path) -> None:
    with pair(tmp_path, keys, patience=TunnelTimeouts(hello_s=300.0)) as at:
        near, far = at.connect()
        mute = socket.create_connection((at.peer.host, at.peer.port))
        until(lambda: len(at.server) == 2, "both to be there")
    with near, far, mute:
        assert (read_all(near), read_all(far)) == (b"", b"")
        assert not at.ended().whole


def _send_until_it_fails(end: socket.socket) -> None:
    with suppress(OSError):
        while True:
            end.sendall(NOISE)


def _held() -> tuple[int, int]:
    """Descriptors and threads of this process."""
    return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
