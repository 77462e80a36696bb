"""The worker's life: started by whoever needs it, one for a state folder, gone when nobody does."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.simulated_site import COMMAND, HOST, NAME, Site, until

from vmferry.api.codec import to_json
from vmferry.model import MoveRequest
from vmferry.process.state import ALREADY_RUNNING

pytestmark = pytest.mark.slow


WORKER = str(Path(COMMAND[1]).with_name("simulated_worker.py"))


def alive(pid: int) -> bool:
    """A zombie is not: its parent, the command that started it, may not have looked yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_two_first_commands_at_once_share_one_worker(site: Site) -> None:
    commands = [site.start("jobs") for _ in range(2)]
    assert [site.ended(command).stdout for command in commands] == ["no jobs\n", "no jobs\n"]
    assert site.log().count('"event": "ready"') == 1


def test_a_second_worker_is_refused_and_the_first_goes_on(site: Site) -> None:
    site.run("jobs")
    first = site.worker()
    second = subprocess.run(
        [sys.executable, WORKER, "--state", str(site.state)], env=site.env, capture_output=True, text=True, check=False
    )
    assert second.returncode == ALREADY_RUNNING
    assert str(first) in second.stderr
    site.run("jobs")
    assert site.worker() == first


def test_a_watching_client_starts_the_next_worker_and_goes_on_watching(site: Site) -> None:
    hold = site.hold("copy")
    watcher = site.start("migrate-storage", NAME, "--path", "/san2")
    site.until_held("copy")
    first = site.kill_worker()
    until(lambda: site.worker() != first, "no new worker came")
    hold.unlink()
    out = site.ended(watcher, 0).stdout
    assert "the worker died and was started again" in out
    assert "was moved" in out
    assert site.lies_on() == {"san2"}


def test_a_worker_that_is_asked_to_leave_does_so_cleanly_and_its_jobs_go_on_with_the_next(site: Site) -> None:
    hold = site.hold("copy")
    watcher = site.start("migrate-storage", NAME, "--path", "/san2", "--json")
    site.until_held("copy")
    first = site.worker()
    os.kill(first, signal.SIGTERM)
    hold.unlink()
    until(lambda: not alive(first), "it did not leave")
    events = [json.loads(line) for line in site.ended(watcher, 0).stdout.splitlines()]
    assert events[-1]["state"] == "done"
    assert '"event": "left"' in site.log()


def test_an_unused_worker_leaves_by_itself_and_takes_its_socket_along(site: Site) -> None:
    site.env["TEST_IDLE_MINUTES"] = "0.02"
    site.run("jobs")
    pid = int((site.state / "worker.pid").read_text())
    until(lambda: not alive(pid), "it did not leave")
    assert not (site.state / "worker.sock").exists()
    site.run("jobs")


def test_a_worker_does_not_leave_while_a_job_is_in_flight(site: Site) -> None:
    site.env["TEST_IDLE_MINUTES"] = "0.02"
    hold = site.hold("copy")
    job = site.submit()
    site.until_held("copy")
    pid = site.worker()
    with site.http() as http:
        until(lambda: http.get(f"jobs/{job}").json()["state"] == "running")
        assert http.post("leave").json() == {"leaving": False}
    assert alive(pid)
    hold.unlink()
    until(lambda: not alive(pid), "it did not leave after the job")


def test_a_stale_socket_is_replaced(site: Site) -> None:
    site.run("jobs")
    pid = site.kill_worker()
    until(lambda: not alive(pid))
    assert (site.state / "worker.sock").exists()
    site.run("jobs")
    assert site.worker() != pid


def test_only_its_user_reaches_a_worker(site: Site) -> None:
    site.run("jobs")
    assert stat.S_IMODE((site.state / "worker.sock").stat().st_mode) == 0o600
    assert stat.S_IMODE((site.state / "worker.log").stat().st_mode) == 0o600
    assert stat.S_IMODE(site.state.stat().st_mode) == 0o700


def test_a_worker_outlives_the_terminal_it_was_started_from(site: Site) -> None:
    site.run("jobs")
    pid = site.worker()
    assert os.getsid(pid) == pid
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    files = [Path(f"/proc/{pid}/fd/{number}").readlink() for number in (0, 1, 2)]
    assert files == [Path("/dev/null"), site.state / "worker.log", site.state / "worker.log"]


def test_a_state_folder_may_have_a_path_too_long_for_a_socket(site: Site) -> None:
    site.state = site.folder / ("long" * 30) / "state"
    site.env["VMFERRY_STATE"] = str(site.state)
    assert site.run("jobs").stdout == "no jobs\n"


def test_a_worker_that_cannot_start_says_why(site: Site) -> None:
    site.state.mkdir()
    (site.state / "vmferry.db").write_text("this is no database, " * 1000)
    ended = site.run("jobs", code=1)
    assert "did not answer" in ended.stderr
    assert "not a database" in ended.stderr


def test_the_log_is_one_json_object_a_line(site: Site) -> None:
    site.run("migrate-storage", NAME, "--path", "/san2")
    records = [json.loads(line) for line in site.log().splitlines()]
    assert {"event", "level", "timestamp"} <= records[0].keys()


def test_an_error_that_nobody_foresaw_points_to_the_log(site: Site) -> None:
    site.steer("break-vms")
    ended = site.run("vms", code=1)
    assert str(site.state / "worker.log") in ended.stderr
    assert "RuntimeError: a bug" in site.log()


def test_wrong_requests_are_answered_with_a_sentence(site: Site) -> None:
    site.run("jobs")
    request = to_json(MoveRequest(vm=NAME, connect=HOST, path=Path("/san2")))
    with site.http() as http:
        for wrong, status, says in (
            ({"path": "relative"}, 422, "path must be an absolute path"),
            ({"max_pause_s": 0}, 422, "max_pause_s should be greater than 0"),
            ({"limit_bytes_s": 0}, 422, "limit_bytes_s should be greater than"),
            ({"fly": True}, 422, "fly"),
            ({"vm": "nobody"}, 404, "there is no VM named nobody"),
        ):
            reply = http.post("jobs", json=request | wrong)
            assert reply.status_code == status, reply.text
            problem = reply.json()
            assert problem["exit_code"] == 2
            assert says in problem["sentence"]
        assert http.post("jobs", json=request | {"vm": "x" * 400_000}).status_code == 413
        assert http.get("nothing").json()["kind"] == "BadRequest"
        assert http.get("jobs").json() == []


def test_the_api_describes_itself_with_the_names_people_use(site: Site) -> None:
    site.run("jobs")
    with site.http() as http:
        schemas = http.get("openapi.json").json()["components"]["schemas"]
    assert {"from", "to"} <= schemas["DiskReceipt"]["properties"].keys()
    assert "sentence" in schemas["Event"]["properties"]
