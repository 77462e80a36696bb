"""What is wrong with a command is said before anything is started; what is only asked for help is fast."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import typer
from tests.support.simulated_site import COMMAND, Site

from vmferry.cli.options import Globals, connect_uri, state_place
from vmferry.errors import StateUnusable
from vmferry.manager.store.fleet import FleetStore

pytestmark = pytest.mark.slow


ENGINE = {"dbos", "libvirt", "sqlalchemy", "fastapi", "uvicorn", "vmferry.manager.jobs.service", "vmferry.hosts"}
HEAVY = ENGINE | {"httpx", "rich", "structlog"}
MOVE = ("migrate-storage", "vm", "--path", "/x")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("migrate-storage",), "VM"),
        (("migrate-storage", "vm"), "--path"),
        ((*MOVE, "--limit", "200"), "no unit"),
        ((*MOVE, "--limit", "fast"), "200MiB"),
        ((*MOVE, "--limit", "0MiB"), "1 byte"),
        ((*MOVE, "--max-pause", "2"), "2s"),
        ((*MOVE, "--max-pause", "-2s"), "2s"),
        ((*MOVE, "--max-pause", "0s"), "1ms"),
        ((*MOVE, "--via", "warp"), "auto, live, quick, offline"),
        (("migrate-storage", "vm", "--path", ""), "name a folder"),
        (("migrate-storage", "vm", "--disk", "vda"), "TARGET=PLACE"),
        (("migrate-storage", "vm", "--disk", "=/x"), "TARGET=PLACE"),
        (("migrate-storage", "vm", "--disk", "vda=/x", "--disk", "vda=/y"), "twice"),
        (("job", "limit", "id", "soon"), "none for no limit"),
        (("job", "limit", "id"), "RATE"),
        (("limit", "host"), "--during"),
        (("limit", "host", "--during", "mondays 8-18"), "mon-fri 08:00-18:00=20MiB"),
        (("limit", "storage", "/x", "--during", "none", "--during", "mon 08:00-09:00=0"), "stands alone"),
        (("job", "show", ""), "it is empty"),
        (("migrate-storage", "", "--path", "/x"), "it is empty"),
        (("fly",), "fly"),
        ((*MOVE, "--fly"), "--fly"),
    ],
)
def test_a_usage_error_ends_with_2_before_a_worker_is_started(site: Site, args: tuple[str, ...], says: str) -> None:
    assert says in site.run(*args, code=2).stderr
    assert not site.state.exists()


def test_a_state_folder_that_cannot_be_used_is_a_usage_error(site: Site) -> None:
    file = site.steer("file")
    ended = site.run("--state", str(file / "below"), "jobs", code=2)
    assert "choose another with --state" in ended.stderr


def test_a_manager_that_its_hosts_would_not_trust_does_not_start_and_says_what_it_lacks(site: Site) -> None:
    site.state.mkdir(parents=True)
    records = FleetStore(f"sqlite:///{site.state}/vmferry.db")
    records.add("host1", "host1:7420", ())
    records.close()
    ended = site.run("jobs", code=1)
    assert f"{site.state}/authority does not hold the authority" in " ".join(ended.stderr.split())
    assert not (site.state / "authority").exists()


def imported(*args: str) -> set[str]:
    """The modules that a command has loaded when it ends."""
    program = (
        "import sys\n"
        f"sys.argv = ['vmferry', *{args!r}]\n"
        "from vmferry.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(ended.stderr.splitlines())


@pytest.mark.parametrize("args", [("--help",), ("--version",), ("migrate-storage", "--help"), ("job", "--help")])
def test_help_loads_neither_the_engine_nor_what_only_talking_and_drawing_need(args: tuple[str, ...]) -> None:
    assert not imported(*args) & HEAVY


def test_a_client_loads_neither_the_engine_nor_libvirt(tmp_path: Path) -> None:
    program = "import sys, vmferry.api.client.client, vmferry.cli.watch, vmferry.cli.render.live\n"
    program += "print('\\n'.join(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not set(ended.stdout.splitlines()) & ENGINE


def test_help_fits_a_narrow_terminal(site: Site) -> None:
    site.env["COLUMNS"] = "80"
    out = site.run("migrate-storage", "--help").stdout
    assert max(map(len, out.splitlines())) <= 80
    assert "--keep-source" in out


def test_version(site: Site) -> None:
    assert site.run("--version").stdout.startswith("vmferry ")


def context(**given: object) -> typer.Context:
    found = SimpleNamespace(obj=Globals(**given))  # type: ignore[arg-type]
    found.find_root = lambda: found
    return cast(typer.Context, found)


def test_state_is_what_stands_nearest_to_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMFERRY_STATE", "/from/env")
    assert state_place(context(state="/before"), "/after").state == Path("/after")
    assert state_place(context(state="/before"), None).state == Path("/before")
    assert state_place(context(), None).state == Path("/from/env")


def test_a_database_may_be_the_state_and_the_managers_folder_does_not_depend_on_how_it_is_written() -> None:
    urls = ("postgresql://ann@db/ferry", "postgresql://bob:secret@db/ferry?connect_timeout=3")
    first, second = (state_place(context(), url) for url in urls)
    assert first.state == first.shared_folder == second.state
    assert first.records == urls[0]
    assert "secret" not in str(second.state)
    assert state_place(context(), "postgresql://ann@db/other").state != first.state
    elsewhere = state_place(context(runtime=Path("/run/one")), urls[0])
    assert (elsewhere.state, elsewhere.shared_folder) == (Path("/run/one"), first.shared_folder)


@pytest.mark.parametrize("url", ["mysql://ann:secret@db/ferry", "postgresql://ann:secret@db"])
def test_another_database_is_a_usage_error_that_does_not_tell_the_password(url: str) -> None:
    with pytest.raises(StateUnusable, match="postgresql://USER@HOST/NAME") as error:
        state_place(context(), url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("euid", "xdg", "folder"),
    [
        (0, "/xdg", "/var/lib/vmferry"),
        (1000, "/xdg", "/xdg/vmferry"),
        (1000, "relative", "/home/me/.local/state/vmferry"),
        (1000, "", "/home/me/.local/state/vmferry"),
    ],
)
def test_the_default_state_folder(monkeypatch: pytest.MonkeyPatch, euid: int, xdg: str, folder: str) -> None:
    monkeypatch.delenv("VMFERRY_STATE", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", xdg)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr("os.geteuid", lambda: euid)
    assert state_place(context(), None).state == Path(folder)


def test_the_host_is_found_as_virsh_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", "qemu:///env")
    assert connect_uri(context(connect="qemu:///before"), "qemu:///after") == "qemu:///after"
    assert connect_uri(context(connect="qemu:///before"), None) == "qemu:///before"
    assert connect_uri(context(), None) == "qemu:///env"
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI")
    assert connect_uri(context(), None) == "qemu:///system"


def test_the_command_of_these_tests_is_the_real_one() -> None:
    assert "vmferry.cli.main" in Path(COMMAND[1]).read_text()
