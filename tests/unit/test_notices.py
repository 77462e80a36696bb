"""Whoever asked to be told is told: by a command, by a webhook, after a kill, and in nobody's way."""

from __future__ import annotations

import base64
import json
import os
import shlex
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from tests.support.records import job
from tests.support.simulated_site import NAME, Site, until

from vmferry.errors import NotTold, UsageError
from vmferry.manager.notify import command, webhook
from vmferry.manager.notify.delivery import Delivery, DeliveryTimeouts, check
from vmferry.manager.store import Store
from vmferry.manager.store.notices import Notice, NoticeStore
from vmferry.manager.store.transfers import TransferStore
from vmferry.model import Channel, FencingToken, JobState, NoticeState, Receivers
from vmferry.model.transfers import TransferRequest, TransferState

S, T = JobState, TransferState
EVER = Event()
WHOSE = {"VMFERRY_STATE": "/state"}
"""Never set: nobody leaves."""

SCRIPT = """
import json, os, sys, time
from pathlib import Path
here = Path(__file__).parent
told = json.load(sys.stdin)
told["env"] = {k: v for k, v in os.environ.items() if k.startswith("VMFERRY_")}
told["words"] = sys.argv[1:]
down = (here / "down").exists()
with (here / "told").open("a") as file:
    file.write(json.dumps(told) + "\\n")
while (here / "hold").exists():
    time.sleep(0.02)
if down:
    sys.exit("the pager is down")
"""


class Pager:
    """A command that writes down what it is told, stands still while `hold` exists, and fails if `down` did."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        (folder / "pager.py").write_text(SCRIPT)
        self.command = shlex.join([sys.executable, str(folder / "pager.py"), "two words"])

    def told(self) -> list[dict[str, Any]]:
        with suppress(FileNotFoundError):
            return [json.loads(line) for line in (self.folder / "told").read_text().splitlines()]
        return []

    def events(self) -> list[str]:
        return [told["event"] for told in self.told()]


@dataclass
class Hook:
    """A web server that answers each POST with the next of `codes`, the last one for ever."""

    codes: list[int] = field(default_factory=lambda: [204])
    heard: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""

    @contextmanager
    def up(self, tls: ssl.SSLContext | None = None) -> Iterator[Hook]:
        hook = self

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                hook.heard.append(({name.lower(): word for name, word in self.headers.items()}, body))
                self.send_response(hook.codes.pop(0) if len(hook.codes) > 1 else hook.codes[0])
                self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
            if tls is not None:
                server.socket = tls.wrap_socket(server.socket, server_side=True)
            scheme = "https" if tls else "http"
            self.url = f"{scheme}://user:password@127.0.0.1:{server.server_address[1]}/a-secret-path"
            thread = Thread(target=server.serve_forever, daemon=True)
            thread.start()
            yield self
            server.shutdown()
            thread.join()

    def events(self) -> list[str]:
        return [json.loads(body)["event"] for _, body in self.heard]


@pytest.fixture
def pager(tmp_path: Path) -> Pager:
    return Pager(tmp_path / "pager")


def notice(way: Channel, receiver: str, secret: Path | None = None) -> Notice:
    body = json.dumps({"id": "n1", "time": "now", "event": "done", "job": "abcd2345", "sentence": "all is\0well"})
    wanted = (1, "n1", "done", "job", "abcd2345", body, way, receiver, str(secret) if secret else None)
    return Notice(*wanted, created="now", state=NoticeState.WAITING, tries=0, sentence="")


# -- the whole way, through the command


@pytest.mark.slow
def test_a_command_is_told_of_a_jobs_end(site: Site, pager: Pager) -> None:
    id = site.submit("--notify-command", pager.command)
    until(lambda: pager.told())
    (told,) = pager.told()
    assert (told["event"], told["job"], told["vm"], told["state"]) == ("done", id, NAME, "done")
    assert told["receipt"]["verified"] is True
    assert [disk["target"] for disk in told["receipt"]["disks"]] == ["vda", "vdb"]
    assert told["words"] == ["two words"]
    env = told["env"]
    assert (env["VMFERRY_EVENT"], env["VMFERRY_JOB"], env["VMFERRY_VM"]) == ("done", id, NAME)
    assert (env["VMFERRY_STATE"], env["VMFERRY_EVENT_ID"]) == (str(site.state), told["id"])
    until(lambda: [n["state"] for n in site.json("job", "show", id)["notices"]] == ["delivered"])


@pytest.mark.slow
def test_a_job_that_is_undone_is_told_of_with_the_reason(site: Site, pager: Pager) -> None:
    site.run("notify", "set", "--command", pager.command)
    site.steer("fail-promote")
    id = site.submit()
    until(lambda: pager.events() == ["undone"])
    assert pager.told()[0]["sentence"] == site.json("job", "show", id)["sentence"] != ""


@pytest.mark.slow
def test_the_folders_receivers_and_the_jobs_own_are_told_each_once(site: Site, pager: Pager) -> None:
    mine = Pager(pager.folder / "mine")
    with Hook().up() as hook:
        site.run("notify", "set", "--command", pager.command, "--url", hook.url)
        site.run("migrate-storage", NAME, "--path", "/san2", "--notify-command", mine.command)
        site.run("migrate-storage", NAME, "--path", "/san1", "--notify-command", pager.command)
        until(lambda: hook.events() == ["done"] * 2 == pager.events())
    assert mine.events() == ["done"]
    assert [told["id"] for told in pager.told()] == [json.loads(body)["id"] for _, body in hook.heard]
    assert mine.told()[0]["id"] == pager.told()[0]["id"]


@pytest.mark.slow
def test_a_kill_while_a_command_is_told_has_it_told_again_under_the_same_id(site: Site, pager: Pager) -> None:
    (pager.folder / "hold").touch()
    site.submit("--notify-command", pager.command)
    until(lambda: pager.told())
    site.kill_worker()
    (pager.folder / "hold").unlink()
    site.run("jobs")
    until(lambda: len(pager.told()) == 2)
    first, again = pager.told()
    assert first["id"] == again["id"]
    assert first["env"] == again["env"]


@pytest.mark.slow
def test_an_idle_worker_stays_until_all_are_told(site: Site, pager: Pager) -> None:
    site.env["TEST_IDLE_MINUTES"] = "0.01"
    (pager.folder / "down").touch()
    site.submit("--notify-command", pager.command)
    until(lambda: len(pager.told()) == 2)  # five seconds lie between two tries
    worker = site.worker()
    assert Path(f"/proc/{worker}").exists()
    (pager.folder / "down").unlink()
    until(lambda: not Path(f"/proc/{worker}").exists(), "the worker stays for ever")
    assert len(pager.told()) == 3


@pytest.mark.slow
def test_what_could_not_be_delivered_is_shown_and_fails_nothing(site: Site, pager: Pager) -> None:
    (pager.folder / "down").touch()
    site.run("migrate-storage", NAME, "--path", "/san2", "--notify-command", pager.command)
    id = site.json("jobs")[0]["id"]
    until(lambda: "it ended with 1: the pager is down" in site.run("job", "show", id).stdout)
    assert site.json("job", "show", id)["state"] == "done"
    assert "it ended with 1: the pager is down" in site.log()
    assert "waiting, tried" in site.run("notify", "show").stdout


@pytest.mark.slow
def test_no_secret_is_logged_or_shown(site: Site, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the-key-itself\n")
    with Hook([500]).up() as hook:
        site.run("notify", "set", "--url", hook.url, "--secret", str(tmp_path / "secret"))
        site.run("notify", "test", code=1)
        site.run("migrate-storage", NAME, "--path", "/san2")
        until(lambda: hook.events() == ["test", "done"])
        until(lambda: "it answered 500" in site.run("notify", "show").stdout)
    id = site.json("jobs")[0]["id"]
    shown = [site.run(*words).stdout for words in (("notify", "show"), ("notify", "show", "--json"))]
    shown += [site.run("job", "show", id).stdout, site.run("job", "show", id, "--json").stdout, site.log()]
    for text in shown:
        assert not [word for word in ("password", "a-secret-path", "the-key-itself") if word in text]
        assert "127.0.0.1" in text


@pytest.mark.slow
def test_a_test_tells_whether_it_arrives(site: Site, pager: Pager) -> None:
    site.run("notify", "test", code=2)
    site.run("notify", "set", "--command", pager.command)
    assert [n["state"] for n in site.json("notify", "test")] == ["delivered"]
    (pager.folder / "down").touch()
    assert [n["state"] for n in site.json("notify", "test", code=1)] == ["given up"]
    site.run("notify", "clear")
    site.run("notify", "test", code=2)
    assert pager.events() == ["test", "test"]


@pytest.mark.slow
def test_a_transfer_tells_when_it_is_transferred_acknowledged_and_in_error(site: Site, pager: Pager) -> None:
    (site.folder / "disk.img").write_bytes(b"x" * 8192)
    words = ("--detach", "--notify-command", pager.command)
    copied = site.json("copy", *words, "--acknowledge", str(site.folder / "disk.img"), str(site.folder / "new.img"))
    until(lambda: pager.events() == ["transferred", "acknowledged"])
    assert {told["transfer"] for told in pager.told()} == {copied["id"]}
    assert pager.told()[0]["root_hash"] == site.json("transfer", "show", copied["id"])["root_hash"] != ""
    nowhere = f"nbd+unix:///?socket={site.folder / 'none'}"
    site.run("copy", *words, nowhere, str(site.folder / "other.img"), "--no-progress", "0")
    until(lambda: pager.events()[2:] == ["error"])
    assert nowhere in pager.told()[2]["sentence"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--notify-command", "no-such-program"), "no program"),
        (("--notify-command", "./here.sh"), "whole path"),
        (("--notify-command", "sh 'open"), "cannot be split"),
        (("--notify-url", "ftp://host/"), "neither http"),
        (("--notify-url", "https://"), "no host"),
        (("--notify-secret", "/etc/passwd"), "name the URL"),
        (("--notify-url", "https://host/", "--notify-secret", "/none"), "no such file"),
    ],
)
def test_a_receiver_that_could_never_be_told_is_refused_with_nothing_done(
    site: Site, words: tuple[str, ...], why: str
) -> None:
    ended = site.run("migrate-storage", NAME, "--path", "/san2", *words, code=2)
    assert why in ended.stderr
    assert site.json("jobs") == []


# -- recorded with the change


@pytest.fixture
def told(tmp_path: Path) -> Iterator[NoticeStore]:
    store = NoticeStore(f"sqlite:///{tmp_path / 'vmferry.db'}")
    store.set_receivers(Receivers("true"))
    yield store
    store.close()


def test_a_change_and_its_notice_are_one_record(told: NoticeStore, tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'vmferry.db'}")
    store.add(job("abcd2345"))
    with pytest.raises(ValueError, match="cannot go"):
        store.change("abcd2345", S.DONE)
    assert told.waiting() == []
    store.change("abcd2345", S.FAILED, "cancelled", "Cancelled")
    (found,) = told.waiting()
    assert (found.event, json.loads(found.body)["kind"]) == ("failed", "Cancelled")
    store.close()


def test_a_stuck_job_is_told_of_again_only_when_something_is_new(told: NoticeStore, tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'vmferry.db'}")
    store.add(job("abcd2345"))
    token = FencingToken("abcd2345", 1)
    for state, why in (
        (S.RUNNING, ""),
        (S.STUCK, "mend it"),
        (S.STUCK, "mend it"),  # another worker has found it so
        (S.STUCK, "mend that"),
        (S.RUNNING, ""),
        (S.STUCK, "mend that"),
    ):
        store.advance(token, state, why)
    assert [json.loads(n.body)["sentence"] for n in told.waiting()] == ["mend it", "mend that", "mend that"]
    store.close()


def test_a_cancelled_transfer_is_told_of_without_passwords(told: NoticeStore, tmp_path: Path) -> None:
    store = TransferStore(f"sqlite:///{tmp_path / 'vmferry.db'}")
    store.add("abcd2345", TransferRequest("iscsi://me:pass@host/iqn:x/1", "/new.img", "test:///"), ())
    store.change("abcd2345", T.CANCELLED, {T.QUEUED})
    (found,) = told.waiting()
    about = json.loads(found.body)
    assert (about["event"], about["source"]) == ("cancelled", "iscsi://me@host/iqn:x/1")
    store.close()


# -- the courier


@contextmanager
def delivery(folder: Path, patience: DeliveryTimeouts = DeliveryTimeouts(0.05, 0.1)) -> Iterator[Delivery]:  # noqa: B008 - frozen
    made = Delivery(folder, patience)
    made.start()
    try:
        yield made
    finally:
        made.close()


def states(found: Delivery) -> list[str]:
    return [n.state.value for n in reversed(found.look().notices)]


@pytest.mark.slow
def test_a_receiver_that_comes_back_is_told_once_more_and_no_more(told: NoticeStore, tmp_path: Path) -> None:
    hook = Hook([500, 301, 503, 200])
    with hook.up(), delivery(tmp_path) as running:
        _job_failed(tmp_path, Receivers(url=hook.url))
        until(lambda: states(running) == ["delivered"] * 2)
    assert hook.events() == ["failed"] * 4
    assert len({headers["webhook-id"] for headers, _ in hook.heard}) == 1


@pytest.mark.slow
def test_a_receiver_that_never_comes_back_is_given_up(told: NoticeStore, tmp_path: Path) -> None:
    told.set_receivers(Receivers("sh -c 'echo no >&2; exit 7'"))
    _job_failed(tmp_path, Receivers())
    with delivery(tmp_path) as running:
        until(lambda: running.look().notices[0].tries > 1)
        assert (states(running), running.in_flight()) == (["waiting"], 1)
    with delivery(tmp_path, DeliveryTimeouts(bound=timedelta(0))) as running:
        until(lambda: states(running) == ["given up"])
        assert (running.look().notices[0].sentence, running.in_flight()) == ("it ended with 7: no", 0)


@pytest.mark.slow
def test_a_receiver_that_hangs_does_not_keep_another_waiting(told: NoticeStore, tmp_path: Path, pager: Pager) -> None:
    (pager.folder / "hold").touch()
    told.set_receivers(Receivers(pager.command))
    with Hook().up() as hook, delivery(tmp_path) as running:
        for _ in range(3):
            _job_failed(tmp_path, Receivers(url=hook.url))
        until(lambda: hook.events() == ["failed"] * 3)
        assert pager.events() in ([], ["failed"])
        until(lambda: states(running).count("waiting") == 3)


@pytest.mark.slow
def test_a_worker_that_leaves_takes_a_command_with_it_and_the_next_one_tells(
    told: NoticeStore, tmp_path: Path, pager: Pager
) -> None:
    (pager.folder / "hold").touch()
    told.set_receivers(Receivers(pager.command))
    with delivery(tmp_path):
        _job_failed(tmp_path, Receivers())
        until(lambda: pager.told())
    assert not _runs(str(pager.folder))
    (pager.folder / "hold").unlink()
    with delivery(tmp_path) as running:
        until(lambda: states(running) == ["delivered"])
    assert len(pager.told()) == 2


def _job_failed(folder: Path, own: Receivers) -> None:
    store = Store(f"sqlite:///{folder / 'vmferry.db'}")
    id = f"abcd{len(store.rows()):04}"
    new = job(id)
    store.add(replace(new, request=replace(new.request, notify=own)))
    store.change(id, S.FAILED)
    store.close()


def _runs(word: str) -> bool:
    """Is there a process with this word in its command line?"""
    for lines in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if word in lines.read_text():
                return True
    return False


# -- commands


def test_a_command_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    mark = f"{tmp_path}/mark"
    words = f'sh -c \'tail -f /dev/null --pid={os.getpid()} "$0" & trap "" TERM; touch "$0"; wait; wait\' {mark}'
    Path(mark).touch()
    with pytest.raises(NotTold, match=r"did not end within 0.5 s"):
        command.run(notice(Channel.COMMAND, words), WHOSE, EVER, deadline_s=0.5)
    until(lambda: not _runs(mark), "something of it still runs")


def test_what_a_command_leaves_in_the_background_does_not_hold_its_notice(tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    os.mkfifo(stop)
    try:
        command.run(notice(Channel.COMMAND, f"sh -c 'cat {stop} >&2 & exit 0'"), WHOSE, EVER)
    finally:
        os.close(os.open(stop, os.O_WRONLY))  # cat ends


def test_no_shell_takes_part(tmp_path: Path) -> None:
    words = f"{sys.executable} -c 'import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])'"
    command.run(notice(Channel.COMMAND, f"{words} {tmp_path / 'out'} '$HOME; `id`'"), WHOSE, EVER)
    assert (tmp_path / "out").read_text() == "$HOME; `id`"


def test_a_command_that_reads_nothing_is_told_all_the_same() -> None:
    large = replace(notice(Channel.COMMAND, "true"), body=json.dumps({"time": "now", "sentence": "x" * (1 << 20)}))
    command.run(large, WHOSE, EVER)


def test_a_command_that_cannot_be_started_says_so() -> None:
    with pytest.raises(NotTold, match="no-such-program"):
        command.run(notice(Channel.COMMAND, "no-such-program"), WHOSE, EVER)


# -- webhooks


def test_a_signature_is_that_of_the_standard() -> None:
    """The example of github.com/standard-webhooks."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = webhook.signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.slow
def test_what_is_posted_can_be_verified(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n")
    with Hook().up() as hook:
        webhook.post(notice(Channel.URL, hook.url, secret), EVER)
        webhook.post(notice(Channel.URL, hook.url), EVER)
    (headers, body), (unsigned, _) = hook.heard
    signed = webhook.signature(webhook.key(secret), "n1", headers["webhook-timestamp"], body)
    assert (headers["webhook-signature"], headers["content-type"]) == (signed, "application/json")
    assert webhook.signature(b"another key", "n1", headers["webhook-timestamp"], body) != signed
    assert "webhook-signature" not in unsigned


def test_a_redirect_is_not_followed() -> None:
    with Hook([302]).up() as hook:
        with pytest.raises(NotTold, match="redirect is not followed"):
            webhook.post(notice(Channel.URL, hook.url), EVER)
        assert len(hook.heard) == 1


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that does with its first caller what it wants."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(20)

        def serve() -> None:
            with suppress(OSError):
                caller, _ = listening.accept()
                with caller:
                    answer(caller)

        thread = Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    thread.join()


def _dribble(caller: socket.socket) -> None:
    """A header that never ends; each byte alone comes in time."""
    with suppress(OSError):
        while not EVER.wait(0.05):
            caller.sendall(b"x")


def _silent(caller: socket.socket) -> None:
    with suppress(OSError):
        while caller.recv(4096):
            pass


@pytest.mark.parametrize("answer", [_dribble, _silent])
def test_a_server_that_does_not_come_to_an_end_is_left(answer: Callable[[socket.socket], None]) -> None:
    with answering(answer) as url, pytest.raises(NotTold, match=r"no answer within 0.5 s"):
        webhook.post(notice(Channel.URL, url), EVER, deadline_s=0.5)


def test_a_worker_that_leaves_does_not_wait_for_a_server() -> None:
    closing = Event()

    def heard(caller: socket.socket) -> None:
        closing.set()
        _silent(caller)

    with answering(heard) as url, pytest.raises(NotTold, match="the worker leaves"):
        webhook.post(notice(Channel.URL, url), closing)


def test_a_server_is_told_only_under_a_certificate_that_the_system_trusts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {key} -out {certificate}"
    names = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*made.split(), *names], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with Hook().up(tls) as hook:
        with pytest.raises(NotTold, match="certificate verify failed"):
            webhook.post(notice(Channel.URL, hook.url), EVER)
        assert hook.heard == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        webhook.post(notice(Channel.URL, hook.url), EVER)
        assert hook.events() == ["done"]


@pytest.mark.parametrize("text", ["", "whsec_%%%"])
def test_a_secret_that_signs_nothing_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "secret").write_text(text)
    with pytest.raises(UsageError, match="secret"):
        check(Receivers(url="https://host/", secret=tmp_path / "secret"))
