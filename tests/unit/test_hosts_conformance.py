"""One suite for every host: the toy itself, and the toy behind an agent, over TLS. (With libvirt: tests/libvirt.)"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.realm import Realm
from tests.support.worlds import DESTINATION, SOURCE, UUID, make_world

from vmferry.errors import Cancelled, DestinationExists, HostRefused, NoSuchVm, Superseded
from vmferry.hosts.forwarding import ForwardingHost
from vmferry.hosts.interface import Host
from vmferry.hosts.records import Fold, GuestClock, Quiesced
from vmferry.hosts.remote.driver import RemoteHost
from vmferry.hosts.simulator import others
from vmferry.hosts.simulator.driver import InMemory, SimulatedHosts, World
from vmferry.hosts.simulator.world import add_machine
from vmferry.hosts.wire import CALLS
from vmferry.model import Changes, FencingToken, Finding, FolderUse, Lack, Placed, Power, Severity, Url, UserKind
from vmferry.transfer import Place, Throttle, Transfer

JOB = "abcd2345"
BASE = SOURCE / "guest-a.img"
PART = DESTINATION / f"guest-a.img.vmferry-{JOB}.part"
OVERLAYS = {"vda": SOURCE / f"a.vmferry-{JOB}.r0.qcow2", "vdb": SOURCE / f"b.vmferry-{JOB}.r0.qcow2"}
MEMORY = DESTINATION / f"vmferry-{JOB}.memory"

Open = Callable[[FencingToken | None], Host]


class Watcher:
    """Follows a transfer; cancels it at the n-th look."""

    def __init__(self, cancel_at: int | None = None) -> None:
        self.throttle = Throttle()
        self.seen: list[tuple[int, int]] = []
        self._left = cancel_at

    def moved(self, done_bytes: int, total_bytes: int, rate_bytes_s: float) -> None:
        self.seen.append((done_bytes, total_bytes))

    def check(self) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left <= 0:
                raise Cancelled()


@pytest.fixture(scope="module")
def realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Realm]:
    made = Realm(tmp_path_factory.mktemp("realm"))
    yield made
    made.close()


@pytest.fixture
def world() -> World:
    return make_world()


@pytest.fixture(params=["memory", "agent"])
def open_host(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> Iterator[Open]:
    hosts = SimulatedHosts(InMemory(world))
    if request.param == "memory":
        yield lambda token: hosts.open("memory", token)
        return
    realm = Realm(tmp_path)
    link = realm.link(realm.serve("host1", hosts))
    try:
        yield lambda token: RemoteHost(link, token)
    finally:
        link.close()
        realm.close()


@pytest.fixture
def host(open_host: Open) -> Host:
    return open_host(FencingToken(JOB, 1))


def base(bookmarks: str = "vda") -> Transfer[Path | Place, Path | Place]:
    return Transfer(BASE, PART, Path(f"/state/bookmarks/{JOB}/{bookmarks}"))


def test_vms_are_listed_by_name_with_their_chains(open_host: Open, world: World) -> None:
    add_machine(world, "anna", UUID.replace("1", "2"), {"vda": ((SOURCE / "anna.img", "raw"),)}, Power.OFF)
    world.machine(UUID).live.power = Power.PAUSED  # type: ignore[union-attr] # so that two looks see the same
    vms = open_host(None).vms()
    assert [vm.name for vm in vms] == ["anna", "guest"]
    assert [image.path for image in vms[1].disk("vdb").chain] == [
        SOURCE / "guest-b.qcow2",
        SOURCE / "guest-b-base.qcow2",
    ]
    assert open_host(None).vm("guest") == vms[1]


def test_an_unknown_vm_is_an_error_that_names_it(open_host: Open) -> None:
    with pytest.raises(NoSuchVm, match="no VM named nobody"):
        open_host(None).vm("nobody")


def test_a_host_opened_for_looking_does_not_act(open_host: Open, world: World) -> None:
    with pytest.raises((TypeError, AssertionError), match="for looking"):
        open_host(None).suspend(UUID)
    assert world.machines[UUID].power is Power.RUNNING


def test_an_older_epoch_is_refused_after_a_newer_one_acted(open_host: Open, world: World) -> None:
    open_host(FencingToken(JOB, 2)).suspend(UUID)
    with pytest.raises(Superseded, match="epoch 1 is older than 2"):
        open_host(FencingToken(JOB, 1)).resume(UUID)
    assert world.machines[UUID].power is Power.PAUSED
    open_host(FencingToken("other234", 1)).resume(UUID)


def test_folders_volumes_and_files_are_told_of(open_host: Open, world: World) -> None:
    world.volumes.add(Path("/dev/lun0"))
    world.files[Path("/dev/lun0")] = world.files[BASE]
    looking = open_host(None)
    assert looking.folder(SOURCE).filesystem == "fast"
    found = looking.volume(Path("/dev/lun0"))
    assert found is not None
    assert found.where == Path("/dev/lun0")
    assert looking.volume(Url("nbd://there/disk")) is None
    assert looking.exists(BASE)
    assert not looking.exists(PART)
    assert looking.users(BASE) == (UUID,)
    entry = looking.entry(BASE)
    assert entry is not None
    assert (entry.path, entry.links) == (BASE, ())
    assert looking.entry(PART) is None
    users = looking.file_users([BASE, PART], [SOURCE])
    assert {(user.file, user.kind, user.id, user.disk) for user in users} == {(BASE, UserKind.VM, UUID, "vda")}
    assert looking.allocated(PART) == 0


def test_a_base_is_copied_compared_and_promoted(host: Host, world: World) -> None:
    host.freeze(UUID, OVERLAYS, None)
    watch = Watcher()
    copied = host.copy(base(), watch)
    compared = host.compare(base(), watch)
    assert copied.root_hash == compared.root_hash
    assert host.unchanged_since(base())
    host.promote(PART, DESTINATION / "guest-a.img")
    host.promote(PART, DESTINATION / "guest-a.img")
    assert world.files[DESTINATION / "guest-a.img"].blocks == world.files[BASE].blocks
    host.forget(base())


def test_closed_files_are_brought_and_compared_all_at_once(host: Host, world: World) -> None:
    host.freeze(UUID, OVERLAYS, None)
    other = Transfer[Path | Place, Path | Place](
        SOURCE / "guest-b.qcow2", DESTINATION / "b.part", Path(f"/state/bookmarks/{JOB}/vdb")
    )
    brought = host.bring([base(), other], Watcher())
    assert [copied.root_hash for copied in brought] == [host.compare(t, Watcher()).root_hash for t in (base(), other)]
    assert [copied.reused_bytes > 0 for copied in host.bring([base(), other], Watcher())] == [True, True]
    assert world.files[PART].blocks == world.files[BASE].blocks
    assert host.bring([], Watcher()) == []


def test_a_copy_never_overwrites_what_is_not_ours(host: Host, world: World) -> None:
    host.freeze(UUID, OVERLAYS, None)
    world.files[PART] = world.files[SOURCE / "guest-b.qcow2"]
    with pytest.raises(DestinationExists, match=PART.name):
        host.copy(base(), Watcher())


def test_a_cancelled_copy_stops_and_is_dropped(host: Host, world: World) -> None:
    host.freeze(UUID, OVERLAYS, None)
    with pytest.raises(Cancelled):
        host.copy(base(), Watcher(cancel_at=1))
    host.drop(base())
    assert PART not in world.files
    assert not world.bookmarks


def test_a_freeze_sends_the_writes_to_overlays_and_an_unfreeze_takes_them_back(host: Host, world: World) -> None:
    assert host.freeze(UUID, OVERLAYS, None) is Quiesced.NO
    assert {target: host.active_image(UUID, target) for target in OVERLAYS} == OVERLAYS
    assert host.thaw(UUID, 1.0)
    for target, image in (("vda", BASE), ("vdb", SOURCE / "guest-b.qcow2")):
        home = Placed(image, "raw" if target == "vda" else "qcow2")
        assert host.unfreeze(UUID, target, [OVERLAYS[target]], home, Watcher()) == home
        assert host.unfreeze(UUID, target, [OVERLAYS[target]], home, Watcher()) == home
        assert host.active_image(UUID, target) == image
        host.remove(OVERLAYS[target])
    world.check()
    assert world.violations == []


def test_what_the_disks_lie_on_is_told_and_what_somebody_put_on_an_overlay_stays(host: Host, world: World) -> None:
    host.freeze(UUID, OVERLAYS, None)
    told = {chain.target: chain for chain in host.chains(UUID) or ()}
    assert told["vda"].named == (str(OVERLAYS["vda"]), str(BASE))
    assert [(layer.name, layer.format) for layer in told["vda"].layers] == [
        (str(OVERLAYS["vda"]), "qcow2"),
        (str(BASE), "raw"),
    ]
    assert others.snapshot(world, UUID)
    theirs = Placed(host.active_image(UUID, "vda"), "qcow2")
    assert host.unfreeze(UUID, "vda", [OVERLAYS["vda"]], Placed(BASE, "raw"), Watcher()) == theirs
    told = {chain.target: chain for chain in host.chains(UUID) or ()}
    assert told["vda"].named == (str(theirs.path), str(BASE))
    assert world.violations == []
    host.save(UUID, MEMORY, Watcher())
    assert host.chains(UUID) is None
    saved = {chain.target: chain.named for chain in host.chains(UUID, MEMORY) or ()}
    assert saved["vda"] == (str(theirs.path), str(BASE))


def test_a_definition_that_names_another_image_keeps_it(host: Host, world: World) -> None:
    there = {"vda": Placed(Path("/slow/x"), "raw"), "vdb": Placed(Path("/slow/y"), "qcow2")}
    assert host.point(UUID, there, {}, {"vda": [BASE], "vdb": []}) == ["vdb"]
    definition = world.machines[UUID].definition or {}
    assert definition["vda"] == there["vda"]
    assert definition["vdb"].path == SOURCE / "guest-b.qcow2"


def test_a_mirror_is_ended_by_who_names_where_it_goes(host: Host, world: World) -> None:
    host.freeze(UUID, {"vda": OVERLAYS["vda"]}, None)
    host.copy(base(), Watcher())
    host.promote(PART, there := DESTINATION / "guest-a.img")
    host.mirror(UUID, "vda", Placed(there, "raw"), None)
    host.end_mirror(UUID, "vda", Placed(Path("/slow/another"), "raw"))
    assert host.mirroring(UUID, "vda")
    host.end_mirror(UUID, "vda", Placed(there, "raw"))
    assert not host.mirroring(UUID, "vda")
    assert host.suspend(UUID) is True
    assert host.suspend(UUID) is False


def test_a_mirror_is_followed_and_pivoted(host: Host, world: World) -> None:
    there = DESTINATION / "guest-a.img"
    host.freeze(UUID, {"vda": OVERLAYS["vda"]}, None)
    host.copy(base(), Watcher())
    host.promote(PART, there)
    host.mirror(UUID, "vda", Placed(there, "raw"), 1 << 20)
    assert host.mirroring(UUID, "vda")
    assert host.mirrored(UUID, "vda")[0] is False
    ready, done, total = host.mirrored(UUID, "vda")
    assert (ready, done) == (True, total)
    host.pivot(UUID, "vda")
    assert host.active_image(UUID, "vda") == there
    with pytest.raises(HostRefused, match="has none"):
        host.mirrored(UUID, "vda")
    assert world.violations == []


def test_overlays_are_folded_into_a_copy_that_nobody_uses_and_stay_as_they_are(host: Host, world: World) -> None:
    """So that a fold that was cut off can be done again."""
    host.freeze(UUID, OVERLAYS, None)
    host.copy(base(), Watcher())
    host.promote(PART, there := DESTINATION / "guest-a.img")
    host.freeze(UUID, {target: path.with_name(f"{path.name}.next") for target, path in OVERLAYS.items()}, None)
    host.bring(
        [closed := Transfer(OVERLAYS["vda"], DESTINATION / "a.r0.qcow2", Path(f"/state/bookmarks/{JOB}/r0"))], Watcher()
    )
    host.rebase(closed.destination, Placed(there, "raw"))
    before = dict(world.files[closed.destination].blocks)
    for _ in range(2):
        host.fold([Fold(closed.destination, Placed(there, "raw")), Fold(DESTINATION / "gone", Placed(there, "raw"))])
        assert before.items() <= world.files[there].blocks.items()
    assert world.files[closed.destination].blocks == before
    assert world.violations == []


def test_a_saved_state_that_is_older_than_its_disks_is_none_until_it_is_dated_anew(host: Host, world: World) -> None:
    host.freeze(UUID, OVERLAYS, None)
    host.save(UUID, MEMORY, Watcher())
    host.fold([Fold(OVERLAYS["vda"], Placed(BASE, "raw"))])
    assert host.saved(UUID, MEMORY)
    host.renew(MEMORY)
    assert host.saved(UUID, MEMORY)
    host.point(UUID, {"vda": Placed(BASE, "raw")}, {}, {"vda": [OVERLAYS["vda"]]})
    assert host.saved(UUID, MEMORY)
    host.fold([Fold(OVERLAYS["vda"], Placed(BASE, "raw"))])
    assert not host.saved(UUID, MEMORY)


def test_a_vm_that_was_undefined_while_it_was_saved_is_known_again_by_its_saved_state(host: Host, world: World) -> None:
    host.save(UUID, MEMORY, Watcher())
    assert others.undefine(world, UUID)
    with pytest.raises(NoSuchVm):
        host.power(UUID)
    assert host.saved(UUID, MEMORY)
    host.define_saved(UUID, MEMORY)
    assert host.defined(UUID)
    assert host.saved(UUID, MEMORY)


def test_a_saved_state_is_loaded_standing_and_spent_once(host: Host, world: World) -> None:
    host.save(UUID, MEMORY, Watcher())
    assert host.saved(UUID, MEMORY)
    assert host.power(UUID) is Power.OFF
    host.restore(UUID, MEMORY, Changes(dict(world.machines[UUID].disks)))
    assert host.power(UUID) is Power.PAUSED
    assert not host.spent(MEMORY)
    assert host.release(UUID, MEMORY, run=True) > 0
    assert host.spent(MEMORY)
    assert host.power(UUID) is Power.RUNNING
    assert world.violations == []


def test_a_guests_clock_is_set_by_its_agent_if_it_has_one(host: Host, world: World) -> None:
    machine = world.machines[UUID]
    machine.behind_s = 2.0
    assert host.set_clock(UUID, 2.0, 1.0) is None
    machine.agent = True
    assert host.set_clock(UUID, 2.0, 1.0) == GuestClock(before_s=2.0, now_s=0.0)
    assert host.set_clock(UUID, 2.0, 1.0) == GuestClock(before_s=0.0, now_s=0.0)


def test_definitions_point_to_new_places(host: Host, world: World) -> None:
    world.machines[UUID].snapshots = {"before": {"vda": BASE}}
    there = {"vda": Placed(Path("/slow/x"), "raw", 4096)}
    assert host.point(UUID, there, {Path("/a"): Path("/b")}, {"vda": [BASE]}) == []
    host.rewrite_snapshots(UUID, {BASE: Path("/slow/x")})
    definition = world.machines[UUID].definition
    assert definition is not None
    assert definition["vda"] == Placed(Path("/slow/x"), "raw", 4096)
    assert world.machines[UUID].snapshots["before"]["vda"] == Path("/slow/x")
    host.make_transient(UUID)
    assert world.machines[UUID].definition is None
    host.make_persistent(UUID)
    assert host.vm(UUID).persistent


def test_what_a_start_would_miss_is_told_of_the_vm_and_of_its_saved_state(host: Host, world: World) -> None:
    kernel, disc = Lack("the kernel /boot/k", "put it back"), Lack("the disc /a.iso in sda", "eject it", "sda")
    world.gone = [kernel, disc]
    assert list(host.lacks_to_start(UUID)) == [kernel, disc]
    assert list(host.lacks_to_load(UUID, MEMORY, Changes())) == [kernel]
    assert host.definition_now(UUID).uuid == UUID
    world.refusal = "unknown watchdog model"
    assert host.refusal(host.definition(UUID), Changes()) == "unknown watchdog model"


def test_a_disc_that_is_gone_is_ejected_as_memory_is_loaded_and_what_is_needed_is_not(host: Host, world: World) -> None:
    host.save(UUID, MEMORY, Watcher())
    world.gone = [Lack("the kernel /boot/k", "put it back")]
    with pytest.raises(HostRefused):
        host.restore(UUID, MEMORY, Changes(dict(world.machines[UUID].disks)))
    world.gone = [Lack("the disc /a.iso in sda", "eject it", "sda")]
    assert list(host.restore(UUID, MEMORY, Changes(dict(world.machines[UUID].disks)))) == ["the disc /a.iso in sda"]
    assert host.power(UUID) is Power.PAUSED


def test_pools_look_again_what_their_folders_hold(host: Host, world: World) -> None:
    host.refresh_pools([SOURCE, DESTINATION])
    assert BASE in world.pools[SOURCE]
    assert world.pools[DESTINATION] == set()


def test_a_folder_is_tried_and_told_of_with_its_cure(host: Host, world: World) -> None:
    assert list(host.probe(DESTINATION, FolderUse(2, 1 << 30, 60, direct=True, raw_bytes=(512,)))) == []
    world.unfit = [Finding(Severity.BLOCKER, "no locks", "mount it with locks")]
    assert list(host.probe(DESTINATION, FolderUse())) == world.unfit


def test_leftovers_are_listed(host: Host) -> None:
    host.freeze(UUID, OVERLAYS, None)
    assert list(host.leftovers([SOURCE, DESTINATION])) == sorted(OVERLAYS.values())


def test_a_disk_on_a_volume_travels_as_a_place(host: Host, world: World) -> None:
    lun = Path("/dev/lun0")
    world.volumes.add(lun)
    world.files[lun] = type(world.files[BASE])()
    host.freeze(UUID, OVERLAYS, None)
    transfer = Transfer(Place(str(BASE)), Place(str(lun), exists=True), Path(f"/state/bookmarks/{JOB}/lun"))
    assert host.copy(transfer, Watcher()).data_bytes > 0
    assert world.files[lun].blocks == world.files[BASE].blocks


# -- the interface, in groups


def test_what_is_marked_as_a_query_is_what_acts_nowhere() -> None:
    """A method that is new in the interface is an act, unless it is marked; and libvirt's host must agree."""
    pytest.importorskip("libvirt")
    from vmferry.hosts.libvirt.driver import LibvirtHost

    guarded = {name for name in CALLS if "@fenced" in inspect.getsource(getattr(LibvirtHost, name)).split("def ")[0]}
    assert set(CALLS) - guarded == {name for name, call in CALLS.items() if call.looks}


def test_each_method_of_each_group_travels() -> None:
    """The wire is read from the interface: one that it does not find there would be missing without a word."""
    groups = [group for group in Host.__mro__ if group.__module__.startswith("vmferry.hosts.interface.")]
    assert len(groups) == 6
    for group in groups:
        methods = {name for name, found in vars(group).items() if inspect.isfunction(found) and name[0] != "_"}
        assert methods and methods <= CALLS.keys()


def test_a_host_that_forwards_hands_on_every_argument() -> None:
    heard: list[tuple[str, dict[str, object]]] = []

    class Hears(ForwardingHost):
        def forward(self, method: str, /, *arguments: object, **named: object) -> object:
            heard.append((method, CALLS[method].bind(*arguments, **named)))
            return None

    for name, call in CALLS.items():
        given = {parameter: object() for parameter in call.signature.parameters if parameter != "self"}
        getattr(Hears(), name)(**given)
        assert heard.pop() == (name, given)
