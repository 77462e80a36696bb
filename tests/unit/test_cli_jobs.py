"""Jobs through the real command and a real worker, on a toy host."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from tests.support.simulated_site import HOST, NAME, UUID, Site, until

pytestmark = pytest.mark.slow


def lines(out: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.splitlines()]


def test_a_move_ends_with_a_receipt_and_0(site: Site) -> None:
    out = site.run("migrate-storage", NAME, "--path", "/san2").stdout
    assert site.lies_on() == {"san2"}
    assert f"{NAME}: Live storage migration, job " in out
    assert f"{NAME} was moved: Live storage migration" in out
    assert "/san2/vda.img" in out
    assert "\x1b" not in out


def test_json_tells_one_event_a_line_and_ends_with_the_receipt(site: Site) -> None:
    events = lines(site.run("migrate-storage", NAME, "--path", "/san2", "--json").stdout)
    assert events[0]["event"] == "submitted"
    assert events[0]["vm"] == NAME
    assert {event["event"] for event in events[1:-1]} == {"progress"}
    end = events[-1]
    assert (end["event"], end["state"], end["exit_code"]) == ("end", "done", 0)
    assert isinstance(end["receipt"], dict)
    assert {disk["to"] for disk in end["receipt"]["disks"]} == {"/san2/vda.img", "/san2/vdb.qcow2"}
    assert site.json("job", "receipt", str(end["job"])) == end["receipt"]


def test_one_disk_alone_goes_where_it_is_sent(site: Site) -> None:
    site.run("migrate-storage", NAME, "--disk", "vdb=/san3")
    disks = site.world().machine(UUID).disks
    assert {target: str(image.path) for target, image in disks.items()} == {
        "vda": "/san1/vda.img",
        "vdb": "/san3/vdb.qcow2",
    }


def test_a_relative_path_starts_where_the_user_stands(site: Site) -> None:
    here = site.folder / "here"
    here.mkdir()
    plan = json.loads(
        site.ended(site.start("migrate-storage", NAME, "--path", "there", "--plan", "--json", cwd=here)).stdout
    )
    assert plan["plan"]["disks"][0]["images"][0]["destination"] == str(here / "there" / "vda.img")


def test_a_plan_changes_nothing_and_ends_with_0(site: Site) -> None:
    out = site.run("migrate-storage", NAME, "--path", "/san2", "--plan").stdout
    assert "can be moved: Live storage migration" in out
    assert "freezing the disks" in out
    assert "Nothing was changed." in out
    assert site.lies_on() == {"san1"}
    assert site.json("jobs") == []


def test_a_plan_with_blockers_ends_with_3_and_names_each_with_its_cure(site: Site) -> None:
    out = site.run("migrate-storage", NAME, "--path", "/san1", "--plan", code=3).stdout
    assert "cannot be moved as it is" in out
    assert out.count("cure: ") >= 2


def test_a_refused_move_ends_with_3_and_leaves_no_job(site: Site) -> None:
    ended = site.run("migrate-storage", NAME, "--path", "/san1", code=3)
    assert ended.stdout == ""
    assert ended.stderr.count("cure: ") >= 2
    assert site.json("jobs") == []


def test_a_refusal_in_json_is_one_object(site: Site) -> None:
    error = site.json("migrate-storage", NAME, "--path", "/san1", code=3)
    assert (error["kind"], error["exit_code"]) == ("Refused", 3)


def test_a_vm_that_is_being_moved_is_refused_with_3(site: Site) -> None:
    hold = site.hold("copy")
    job = site.submit()
    ended = site.run("migrate-storage", NAME, "--path", "/san3", code=3)
    assert job in ended.stderr
    hold.unlink()
    site.run("job", "watch", job)


def test_what_cannot_be_found_is_a_usage_error(site: Site) -> None:
    assert "there is no VM named nobody" in site.run("migrate-storage", "nobody", "--path", "/san2", code=2).stderr
    assert "there is no job zzz" in site.run("job", "show", "zzz", code=2).stderr


def test_a_failure_is_undone_and_ends_with_1(site: Site) -> None:
    site.steer("fail-freeze")
    ended = site.run("migrate-storage", NAME, "--path", "/san2", code=1)
    assert "undone, it is where it was" in ended.stderr
    assert "the test says so" in ended.stderr
    assert site.lies_on() == {"san1"}


def test_a_cancelled_job_is_undone_and_its_watcher_ends_with_5(site: Site) -> None:
    hold = site.hold("copy")
    watcher = site.start("migrate-storage", NAME, "--path", "/san2")
    site.until_held("copy")
    [job] = site.json("jobs")
    asked = site.run("job", "cancel", job["id"][:4])
    assert f"`vmferry job watch {job['id']}`" in asked.stdout
    hold.unlink()
    assert "cancelled and undone" in site.ended(watcher, 5).stderr
    assert site.lies_on() == {"san1"}


def test_a_stuck_job_ends_with_4_and_goes_on_when_it_is_retried(site: Site) -> None:
    mended = site.steer("fail-rewrite_snapshots")
    ended = site.run("migrate-storage", NAME, "--path", "/san2", code=4)
    assert "is stuck" in ended.stderr
    assert "the test says so" in ended.stderr
    [job] = site.json("jobs")
    assert f"vmferry job retry {job['id']}" in ended.stderr
    assert "stuck" in site.run("recover", code=4).stdout
    mended.unlink()
    site.run("job", "retry", job["id"])
    assert "was moved" in site.run("job", "watch", job["id"]).stdout
    assert site.lies_on() == {"san2"}


def test_a_detached_job_prints_only_its_id_and_goes_on(site: Site) -> None:
    ended = site.start("migrate-storage", NAME, "--path", "/san2", "--detach")
    out, err = ended.communicate()
    job = out.strip()
    assert out == f"{job}\n"
    assert f"vmferry job watch {job}" in err
    until(lambda: site.json("job", "show", job)["state"] == "done")


def test_limits_are_changed_while_the_job_runs(site: Site) -> None:
    hold = site.hold("copy")
    job = site.submit("--limit", "1MiB", "--max-pause", "500ms")
    assert "1.0 MiB/s, pause at most 5.0 s" in site.run("job", "limit", job, "1MiB", "--max-pause", "5s").stdout
    assert "no limit, pause at most 5.0 s" in site.run("job", "limit", job, "none").stdout
    shown = site.json("job", "show", job)
    assert (shown["limit_bytes_s"], shown["max_pause_s"]) == (None, 5.0)
    hold.unlink()
    site.run("job", "watch", job)
    assert "only while" in site.run("job", "limit", job, "none", code=2).stderr


def test_lists_are_for_people_and_for_programs(site: Site) -> None:
    site.run("migrate-storage", NAME, "--path", "/san2")
    vms = site.run("vms").stdout
    assert NAME in vms
    assert "shut off" in vms
    assert [vm["name"] for vm in site.json("vms")] == [NAME, "off"]
    assert "/san2/vdb.qcow2" in site.run("vm", "show", UUID).stdout
    jobs = site.run("jobs").stdout
    assert NAME in jobs
    assert "done" in jobs
    [job] = site.json("jobs")
    assert "freezing the disks" in site.run("job", "show", job["id"]).stdout
    assert all(line == line.rstrip() for line in (vms + jobs).splitlines())


def test_recover_goes_on_with_what_a_crash_left_and_says_what_became_of_it(site: Site) -> None:
    hold = site.hold("copy")
    job = site.submit()
    site.until_held("copy")
    site.kill_worker()
    hold.unlink()
    assert f"done, `vmferry job receipt {job}`" in site.run("recover").stdout
    assert site.lies_on() == {"san2"}


def test_leftovers_are_listed_and_removed(site: Site) -> None:
    job = site.submit()
    site.run("job", "watch", job)
    with site.world_file.here() as world:
        world.files[Path(f"/san2/vda.img.vmferry-{job}.part")] = world.files[Path("/san2/vda.img")]
    assert site.json("leftovers") == [f"/san2/vda.img.vmferry-{job}.part"]
    assert "removed" in site.run("leftovers", "--reap").stdout
    assert "nothing was left" in site.run("leftovers").stdout


def test_ctrl_c_without_a_terminal_leaves_the_job_running(site: Site) -> None:
    hold = site.hold("copy")
    watcher = site.start("migrate-storage", NAME, "--path", "/san2")
    site.until_held("copy")
    assert watcher.stdout and watcher.stdout.readline(), "it watches the job"  # before, it has not heard its id
    watcher.send_signal(signal.SIGINT)
    left = site.ended(watcher, 130)
    assert "goes on in the background" in left.stderr
    assert "vmferry job cancel" in left.stderr
    hold.unlink()
    [job] = site.json("jobs")
    site.run("job", "watch", job["id"])


def test_a_reader_that_leaves_early_is_no_failure_of_the_job(site: Site) -> None:
    hold = site.hold("copy")
    watcher = site.start("migrate-storage", NAME, "--path", "/san2")
    assert watcher.stdout
    watcher.stdout.close()
    site.until_held("copy")
    hold.unlink()
    assert watcher.wait(60) not in (0, 1, 2, 3, 4, 5)
    [job] = site.json("jobs")
    site.run("job", "watch", job["id"])


def test_limits_of_host_and_storage_are_set_and_listed(site: Site) -> None:
    assert "no limits" in site.run("limits").stdout
    assert f"host {HOST}: 10 MiB/s" in site.run("--connect", HOST, "limit", "host", "10MiB").stdout
    assert "storage /san2: 5.0 MiB/s" in site.run("--connect", HOST, "limit", "storage", "/san2", "5MiB").stdout
    assert [limit["limit_bytes_s"] for limit in site.json("limits")] == [10 << 20, 5 << 20]
    assert "no limit" in site.run("--connect", HOST, "limit", "storage", "/san2", "none").stdout


def test_a_calendar_is_set_kept_shown_and_cleared(site: Site) -> None:
    host = ("--connect", HOST, "limit", "host")
    told = site.run(*host, "10MiB", "--during", "daily 00:00-24:00=2MiB", "--during", "sat 03:00-04:00=0").stdout
    assert "10 MiB/s; daily 00:00-24:00 2.0 MiB/s; sat 03:00-04:00 nothing moves; now " in told
    assert "20 MiB/s; daily 00:00-24:00" in site.run(*host, "20MiB").stdout
    [limit] = site.json("limits")
    assert limit["during"][1] == {"days": [5], "from_min": 180, "to_min": 240, "limit_bytes_s": 0}
    assert limit["now_bytes_s"] in (2 << 20, 0)
    assert site.run(*host, "--during", "none").stdout.strip() == f"host {HOST}: 20 MiB/s"


def test_a_job_that_a_calendar_keeps_waiting_says_so_on_every_page(site: Site) -> None:
    site.run("limit", "host", "--during", "daily 00:00-24:00=0")
    job = site.submit()
    says = "waiting: the calendar of host qemu:///system lets nothing move"
    assert says in site.run("job", "show", job).stdout
    watcher = site.start("job", "watch", job)
    assert watcher.stdout
    assert says in watcher.stdout.readline() + watcher.stdout.readline()
    site.run("limit", "host", "--during", "none")
    site.ended(watcher)
    assert site.lies_on() == {"san2"}


def test_a_jobs_priority_is_changed_while_it_runs(site: Site) -> None:
    site.hold("copy")
    job = site.submit("--priority", "high")
    assert site.json("job", "show", job)["priority"] == "high"
    assert "priority low" in site.run("job", "priority", job, "low").stdout
    assert site.json("job", "show", job)["priority"] == "low"
    assert "foreground" in site.run("job", "priority", job, "first", code=2).stderr


def test_resolving_wants_the_name_of_the_vm_and_a_move_between_hosts(site: Site) -> None:
    site.hold("copy")
    job = site.submit()
    site.until_held("copy")
    nothing = site.run("job", "resolve", job, "--vm-is-at", "host1", code=2)
    assert f"Type the VM's name to confirm ({NAME})" in nothing.stderr
    assert "nothing was confirmed, and nothing changed" in nothing.stderr
    refused = site.run("job", "resolve", job, "--vm-is-at", "host1", "--confirm", NAME, code=3)
    assert "on one host" in refused.stderr
