"""An agent touches files of declared storages only, and none of a VM that its job does not move."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.realm import Realm

from vmferry.agent.storages import MARKER, Storages
from vmferry.errors import NoSuchStorage, PathRefused, StorageKnown, StorageUnfit, UsageError, VmRefused
from vmferry.hosts.interface import Host
from vmferry.hosts.records import Fold
from vmferry.hosts.remote.driver import RemoteHost
from vmferry.hosts.simulator.driver import InMemory, SimulatedHosts, World
from vmferry.hosts.simulator.world import add_machine
from vmferry.model import Changes, FencingToken, Placed, Power, Url
from vmferry.transfer import Place, Transfer, Unwatched

JOB = "abcd2345"
OWN, OTHER = "11111111-0000-4000-8000-000000000001", "22222222-0000-4000-8000-000000000002"


class Site:
    """A host with storage san, an agent that is confined to it, and files outside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.san, self.outside = folder / "san", folder / "outside"
        for place in (self.san, self.outside):
            place.mkdir(parents=True)
        self.world = World()
        self.add("own", OWN, self.san / "own.img")
        self.add("other", OTHER, self.san / "other.img")
        self.realm = Realm(folder / "realm")
        self.served = self.realm.serve("host1", SimulatedHosts(InMemory(self.world)), confined=True)
        self.link = self.realm.link(self.served)
        self.link.ask("PUT", "storages/san", {"path": str(self.san)})

    def add(self, name: str, uuid: str, image: Path) -> None:
        image.touch()
        add_machine(self.world, name, uuid, {"vda": ((image, "raw"),)}, Power.OFF)
        self.world.machines[uuid].nvram = self.outside / f"{name}.fd"
        (self.outside / f"{name}.fd").touch()

    def host(self, job: str = JOB) -> Host:
        return RemoteHost(self.link, FencingToken(job, 1))

    def file(self, path: Path) -> Path:
        """One that the toy host knows as well."""
        path.touch()
        self.world.files[path] = type(self.world.files[self.san / "own.img"])()
        return path


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.link.close()
    made.realm.close()


def transfer(source: Path | Place, destination: Path | Place) -> Transfer[Path | Place, Path | Place]:
    return Transfer(source, destination, Path(f"/state/bookmarks/{JOB}/x.bookmarks"))


def test_what_lies_in_a_storage_is_served(site: Site) -> None:
    host = site.host()
    part = site.san / f"x.vmferry-{JOB}.part"
    assert host.copy(transfer(site.san / "own.img", part), Unwatched()).data_bytes > 0
    host.remove(part)
    assert host.folder(site.san).exists


WAYS_OUT: dict[str, Callable[[Site], Path]] = {
    "absolute": lambda site: site.outside / "x",
    "dots": lambda site: site.san / ".." / "outside" / "x",
    "symlinked file": lambda site: _link(site.san / "link", site.outside / "secret"),
    "symlinked folder": lambda site: _link(site.san / "folder", site.outside) / "secret",
    "link to a link": lambda site: _link(site.san / "two", _link(site.san / "one", site.outside)) / "secret",
    "dangling link": lambda site: _link(site.san / "dangling", site.outside / "not-yet"),
    "relative": lambda site: Path("own.img"),
    "name that begins alike": lambda site: site.folder / "san-other" / "x",
    "system": lambda site: Path("/etc/shadow"),
}


def _link(at: Path, to: Path) -> Path:
    at.symlink_to(to)
    return at


@pytest.mark.parametrize("way", WAYS_OUT)
def test_no_path_leads_out_of_a_storage(site: Site, way: str) -> None:
    path = WAYS_OUT[way](site)
    secret = site.file(site.outside / "secret")
    inside = site.san / "own.img"
    host = site.host()
    calls: list[Callable[[], object]] = [
        lambda: host.exists(path),
        lambda: host.folder(path),
        lambda: host.allocated(path),
        lambda: host.leftovers([site.san, path]),
        lambda: host.volume(path),
        lambda: host.remove(path),
        lambda: host.promote(inside, path),
        lambda: host.rename(path, site.san / "mine"),
        lambda: host.small_copy(path, site.san / "stolen"),
        lambda: host.small_copy(inside, path),
        lambda: host.rebase(site.san / "overlay", Placed(path, "raw")),
        lambda: host.rebase(path, Placed(inside, "raw")),
        lambda: host.fold([Fold(inside, Placed(site.san / "base", "raw")), Fold(path, Placed(inside, "raw"))]),
        lambda: host.fold([Fold(site.san / "overlay", Placed(path, "raw"))]),
        lambda: host.mirror(OWN, "vda", Placed(path, "raw"), None),
        lambda: host.renew(path),
        lambda: host.copy(transfer(path, site.san / "stolen"), Unwatched()),
        lambda: host.copy(transfer(Place(str(path)), Place(str(site.san / "stolen"))), Unwatched()),
        lambda: host.copy(transfer(inside, path), Unwatched()),
        lambda: host.freeze(OWN, {"vda": path}, None),
        lambda: host.restore(OWN, path, Changes()),
        lambda: host.point(OWN, {"vda": Placed(path, "raw")}, {}, {}),
        lambda: host.point(OWN, {}, {inside: path}, {}),
        lambda: host.point(OWN, {}, {}, {"vda": [path]}),
        lambda: host.unfreeze(OWN, "vda", [path], Placed(inside, "raw"), Unwatched()),
        lambda: host.rewrite_snapshots(OWN, {inside: path}),
    ]
    for call in calls:
        with pytest.raises(PathRefused):
            call()
    assert secret in site.world.files
    assert site.san / "stolen" not in site.world.files
    assert not site.world.bookmarks


@pytest.mark.parametrize(
    "name",
    [
        'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/shadow"}}',
        'json:{"driver":"raw","file":{"driver":"host_device","filename":"/dev/sda"}}',
        "json:nothing",
        'json:{"file":{"driver":"vvfat","dir":"/etc"}}',
        "nbd+unix:///?socket=/run/libvirt/libvirt-sock",
    ],
)
def test_no_name_of_qemu_leads_out_of_a_storage(site: Site, name: str) -> None:
    with pytest.raises(PathRefused):
        site.host().copy(transfer(Place(name), site.san / f"x.vmferry-{JOB}.part"), Unwatched())


def test_a_socket_outside_is_no_volume(site: Site) -> None:
    with pytest.raises(PathRefused):
        site.host().volume(Url("nbd+unix:///?socket=/run/x.sock"))
    assert site.host().volume(Url("nbd://there/disk")) is None


def test_a_copy_over_tls_is_given_the_agents_own_certificates(site: Site) -> None:
    """The manager does not know where they lie, and may not choose another folder."""
    seen: list[Place] = []

    class Noting:
        def open(self, connect: str, token: FencingToken | None = None) -> Host:
            return SimulatedHosts(InMemory(site.world)).open(connect, token)

    from vmferry.agent.path_policy import ToStorages
    from vmferry.hosts.wire import CALLS

    confined = ToStorages(
        "host1", site.folder, Storages("host1", site.served.state), Noting().open(""), Path("/own/tls")
    )
    asked = transfer(Place("nbds://there:10809/x", tls=Path("/etc/evil")), site.san / "x")
    allowed = confined.allowed(CALLS["copy"], FencingToken(JOB, 1), {"transfer": asked})["transfer"]
    seen.append(allowed.source)
    assert [place.tls for place in seen] == [Path("/own/tls")]
    assert allowed.bookmarks == site.folder / "bookmarks" / JOB / "x.bookmarks"


@pytest.mark.parametrize("name", ["/x", "/state/../x", "/state/.hidden/x", f"/state/{JOB}/.x", "/state/a b/x"])
def test_bookmarks_lie_where_the_agent_wants_them(site: Site, name: str) -> None:
    asked = Transfer(site.san / "own.img", site.san / f"x.vmferry-{JOB}.part", Path(name))
    with pytest.raises(PathRefused):
        site.host().drop(asked)


def test_another_vms_disk_is_neither_written_nor_removed_nor_read(site: Site) -> None:
    host = site.host()
    host.make_persistent(OWN)
    other, own = site.san / "other.img", site.san / "own.img"
    calls: list[Callable[[], object]] = [
        lambda: host.remove(other),
        lambda: host.rename(other, site.san / "mine"),
        lambda: host.fold([Fold(site.san / "overlay", Placed(other, "raw"))]),
        lambda: host.mirror(OWN, "vda", Placed(other, "raw"), None),
        lambda: host.unfreeze(OWN, "vda", [], Placed(other, "raw"), Unwatched()),
        lambda: host.copy(transfer(other, site.san / f"x.vmferry-{JOB}.part"), Unwatched()),
        lambda: host.copy(transfer(own, other), Unwatched()),
        lambda: host.bring([transfer(other, site.san / f"x.vmferry-{JOB}.part")], Unwatched()),
        lambda: host.serve([own, other]),
        lambda: host.adopt(host.definition(OWN), Changes({"vda": Placed(other, "raw")})),
        lambda: host.rebase(site.san / f"x.vmferry-{JOB}.r0.qcow2", Placed(other, "raw")),
    ]
    for call in calls:
        with pytest.raises(PathRefused, match=f"it is a disk of VM {OTHER}"):
            call()
    assert other in site.world.files


def test_a_base_that_two_vms_share_may_be_read_but_not_written(site: Site) -> None:
    host = site.host()
    host.make_persistent(OWN)
    base = site.file(site.san / "base.img")
    for name in ("own", "other"):
        site.world.files[site.san / f"{name}.img"].backing = base
    host.copy(transfer(base, site.san / f"base.vmferry-{JOB}.part"), Unwatched())
    assert len(host.serve([base])) == 1
    with pytest.raises(PathRefused):
        host.remove(base)


def test_a_job_moves_one_vm(site: Site) -> None:
    site.host().make_persistent(OWN)
    with pytest.raises(VmRefused, match=f"the job moves {OWN}"):
        site.host().make_transient(OTHER)
    site.host("other234").make_persistent(OTHER)


def test_an_agent_that_was_just_started_lets_a_job_define_its_vm_with_the_disks_that_it_runs_on(site: Site) -> None:
    """Killed while the VM was defined, it knows of no call that named the VM before."""
    definition = site.host().definition(OWN)
    changes = Changes({"vda": Placed(site.san / "own.img", "raw")})
    site.host().adopt(definition, changes)
    with pytest.raises(VmRefused):
        site.host().adopt(site.host().definition(OTHER), Changes())


def test_a_vms_firmware_variables_may_be_read_where_libvirt_put_them(site: Site) -> None:
    fd = site.outside / "own.fd"
    site.world.files[fd] = type(site.world.files[site.san / "own.img"])()
    site.host().small_copy(fd, site.san / f"own.fd.vmferry-{JOB}.part")
    with pytest.raises(PathRefused):
        site.host().remove(fd)


def test_a_storage_that_is_no_longer_mounted_is_not_taken_for_an_empty_one(site: Site) -> None:
    (site.san / MARKER).unlink()
    with pytest.raises(PathRefused, match=r"is .* mounted"):
        site.host().exists(site.san / "own.img")


def test_file_systems_of_two_hosts_are_told_apart_and_a_storage_by_its_marker(site: Site) -> None:
    found = site.host().folder(site.san)
    assert found.filesystem.startswith("host1:")
    assert found.storage == (site.san / MARKER).read_text().strip()


# -- declaring


def test_what_was_declared_is_served_after_a_restart_until_it_is_removed(site: Site) -> None:
    again = Storages("host1", site.served.state)
    assert [(s.name, s.path) for s in again.all()] == [("san", site.san)]
    site.link.ask("DELETE", "storages/san")
    with pytest.raises(PathRefused):
        site.host().exists(site.san / "own.img")
    with pytest.raises(NoSuchStorage):
        site.link.ask("DELETE", "storages/san")
    assert (site.san / MARKER).exists(), "another host may know it by that"


def test_the_same_storage_has_the_same_marker_on_every_host(tmp_path: Path) -> None:
    (tmp_path / "san").mkdir()
    (tmp_path / "seen-elsewhere").symlink_to(tmp_path / "san")
    hosts = [Storages(name, _made(tmp_path / name)) for name in ("host1", "host2")]
    first = hosts[0].declare("gold", tmp_path / "san", "gold")
    second = hosts[1].declare("silver", tmp_path / "seen-elsewhere", "")
    assert first.uuid == second.uuid


def test_two_hosts_that_declare_it_at_once_agree(tmp_path: Path) -> None:
    (tmp_path / "san").mkdir()
    uuids: list[str] = []

    def declare(name: str) -> None:
        uuids.append(Storages(name, _made(tmp_path / name)).declare("san", tmp_path / "san", "").uuid)

    threads = [threading.Thread(target=declare, args=(f"host{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(uuids) == 8
    assert len(set(uuids)) == 1
    assert os.listdir(tmp_path / "san") == [MARKER]  # noqa: PTH208 - names are what matters


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize("path", ["/", "/../", "relative", "/not/there", "/etc/passwd", "/proc/self"])
def test_what_is_no_folder_of_its_own_is_no_storage(tmp_path: Path, path: str) -> None:
    with pytest.raises(StorageUnfit):
        Storages("host1", tmp_path).declare("san", Path(path), "")


def test_a_marker_that_is_a_link_or_nonsense_is_not_followed(tmp_path: Path) -> None:
    for number, make in enumerate((_a_link, _a_pipe, _nonsense)):
        san = _made(tmp_path / f"san{number}")
        make(san / MARKER)
        with pytest.raises(StorageUnfit):
            Storages("host1", tmp_path).declare("san", san, "")


def _a_link(marker: Path) -> None:
    (marker.parent.parent / "uuid").write_text("7b9b6bf5-279e-4fb8-87e6-cd01b5529a21\n")
    marker.symlink_to(marker.parent.parent / "uuid")


def _a_pipe(marker: Path) -> None:
    os.mkfifo(marker)


def _nonsense(marker: Path) -> None:
    marker.write_bytes(b"\xff" * 4096)


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    storages = Storages("host1", tmp_path)
    for name in ("a", "b"):
        _made(tmp_path / name)
    assert storages.declare("san", tmp_path / "a", "") == storages.declare("san", tmp_path / "a", "")
    with pytest.raises(StorageKnown):
        storages.declare("san", tmp_path / "b", "")
    with pytest.raises(UsageError):
        storages.declare("../x", tmp_path / "b", "")
