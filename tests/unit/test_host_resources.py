"""What of a host's own a definition names, and whether it is there."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from vmferry.hosts.libvirt.host_resources import lacks
from vmferry.model import Changes, Definition, Placed, WrittenSnapshot

UUID = "6f1c3a52-0000-4000-8000-000000000001"
NAMED = [
    ("os", "<kernel>{at}</kernel>", "the kernel"),
    ("os", "<initrd>{at}</initrd>", "the initrd"),
    ("os", "<loader readonly='yes' type='pflash'>{at}</loader>", "the firmware"),
    ("os", "<nvram template='{at}'>/none</nvram>", "the template of the firmware's variables"),
    ("devices", "<emulator>{at}</emulator>", "the emulator"),
    ("devices", "<serial type='dev'><source path='{at}'/></serial>", "the serial's device"),
    ("devices", "<serial type='pipe'><source path='{at}'/></serial>", "the serial's pipe"),
    ("devices", "<channel type='unix'><source mode='connect' path='{at}'/></channel>", "the channel's socket"),
    ("devices", "<rng model='virtio'><backend model='random'>{at}</backend></rng>", "the source of random numbers"),
    ("devices", "<filesystem type='mount'><source dir='{at}'/><target dir='x'/></filesystem>", "the shared folder"),
    ("devices", "<filesystem><source socket='{at}'/><target dir='x'/></filesystem>", "the shared folder"),
    (
        "devices",
        "<interface type='vhostuser'><source type='unix' path='{at}' mode='client'/></interface>",
        "the vhost-user socket",
    ),
    ("devices", "<tpm><backend type='passthrough'><device path='{at}'/></backend></tpm>", "the host's TPM"),
    ("devices", "<input type='evdev'><source dev='{at}'/></input>", "the input device"),
    ("devices", "<graphics type='spice'><gl enable='yes' rendernode='{at}'/></graphics>", "the render node"),
    ("devices", "<memory model='nvdimm'><source><path>{at}</path></source></memory>", "the memory device's file"),
]
WITHIN = [
    ("<serial type='file'><source path='{at}/x.log'/></serial>", "the folder of the serial's log"),
    ("<serial type='pty'><log file='{at}/x.log'/></serial>", "the folder of the serial's log"),
    ("<channel type='unix'><source mode='bind' path='{at}/x'/></channel>", "the folder of the channel's socket"),
    (
        "<interface type='vhostuser'><source type='unix' path='{at}/x' mode='server'/></interface>",
        "the folder of the vhost-user socket",
    ),
]


def named(part: str, xml: str, changes: Changes | None = None) -> list[str]:
    told = lacks(Definition(UUID, f"<domain><{part}>{xml}</{part}></domain>"), changes or Changes())
    assert all(lack.cure for lack in told)
    return [lack.what for lack in told]


def test_a_disk_that_does_not_come_along_is_named(tmp_path: Path) -> None:
    """As one that was attached after the move was planned: the VM would never start again at the other host."""
    at, discs = tmp_path / "x.img", tmp_path / "x.iso"
    xml = f"<disk type='file' device='disk'><source file='{at}'/><target dev='vdx'/></disk>"
    disc = f"<disk type='file' device='cdrom'><source file='{discs}'/><target dev='sda'/></disk>"
    moved = Placed(tmp_path / "moved.img", "raw")
    comes = Changes(disks={"vda": moved})
    assert named("devices", xml + disc, comes) == [f"disk vdx {at}"]
    assert named("devices", xml, Changes(disks={"vdx": moved})) == []
    assert named("devices", xml) == [], "nobody has told which come along"
    at.touch()
    assert named("devices", xml, comes) == []


@pytest.mark.parametrize(("part", "xml", "what"), NAMED, ids=[what for _, _, what in NAMED])
def test_what_is_not_there_is_named_and_what_is_there_is_not(part: str, xml: str, what: str, tmp_path: Path) -> None:
    at = tmp_path / "own & thing"
    text = xml.format(at=str(at).replace("&", "&amp;"))
    assert named(part, text) == [f"{what} {at}"]
    at.touch()
    assert named(part, text) == []


@pytest.mark.parametrize(("xml", "what"), WITHIN)
def test_a_file_that_qemu_makes_needs_only_its_folder(xml: str, what: str, tmp_path: Path) -> None:
    at = tmp_path / "logs"
    assert named("devices", xml.format(at=at)) == [f"{what} {at}"]
    at.mkdir()
    assert named("devices", xml.format(at=at)) == []


def test_a_pipe_may_be_one_for_each_way(tmp_path: Path) -> None:
    xml = f"<serial type='pipe'><source path='{tmp_path}/p'/></serial>"
    for end in ("in", "out"):
        assert named("devices", xml)
        (tmp_path / f"p.{end}").touch()
    assert named("devices", xml) == []


def test_a_template_is_not_needed_where_the_variables_come_along(tmp_path: Path) -> None:
    carried = Changes(files={Path("/none"): Path("/there")})
    assert named("os", f"<nvram template='{tmp_path}/no'>/other</nvram>", carried) != []
    assert named("os", f"<nvram template='{tmp_path}/no'>/none</nvram>", carried) == []


def test_a_device_that_is_passed_through_is_looked_for_in_its_place() -> None:
    pci = "<address domain='0x0000' bus='0xfe' slot='0x1f' function='0x7'/>"
    xml = f"<hostdev type='pci'><source>{pci}</source></hostdev><hostdev type='mdev'><source>"
    xml += f"<address uuid='{UUID}'/></source></hostdev>"
    assert named("devices", xml) == [
        "the PCI device /sys/bus/pci/devices/0000:fe:1f.7",
        f"the mediated device /sys/bus/mdev/devices/{UUID}",
    ]


def test_what_libvirt_makes_itself_and_what_has_no_place_is_nothing_to_miss() -> None:
    xml = "<channel type='unix'><source mode='connect' path='/var/lib/libvirt/qemu/channel/x'/></channel>"
    xml += "<serial type='pty'/><console type='tcp'><source host='h' service='1'/></console><emulator/>"
    assert named("devices", xml) == []


def test_a_snapshot_names_its_own_memory_and_the_images_of_other_branches(tmp_path: Path) -> None:
    names = ("memory", "branch", "chain")
    memory, branch, chain = (tmp_path / name for name in names)
    xml = f"<domainsnapshot><memory snapshot='external' file='{memory}'/><disks><disk name='vda'>"
    xml += f"<source file='{branch}'/></disk></disks><domain><devices><disk><source file='{chain}'/></disk>"
    xml += "<disk device='cdrom'><source file='/old.iso'/></disk></devices></domain></domainsnapshot>"
    definition = Definition(UUID, "<domain/>", (WrittenSnapshot("then", xml),))
    told = [lack.what for lack in lacks(definition, Changes(files={chain: Path("/new/chain")}))]
    assert told == [f"snapshot then's file {memory}", f"snapshot then's file {branch}"]
    memory.touch()
    branch.touch()
    assert lacks(definition, Changes(files={chain: Path("/new/chain")})) == []


def test_a_screens_port_that_the_definition_names_has_to_be_free() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        (told,) = named("devices", f"<graphics type='vnc' port='{port}' autoport='no'/>")
        assert told == f"the vnc screen's address 127.0.0.1 port {port} (in use)"
        assert named("devices", f"<graphics type='vnc' port='{port}' autoport='yes'/>") == []
    assert named("devices", f"<graphics type='vnc' port='{port}'/>") == []
    assert named("devices", "<graphics type='spice' port='-1' autoport='yes'/><graphics type='egl-headless'/>") == []
    (told,) = named(
        "devices", "<graphics type='vnc' port='5999'><listen type='address' address='192.0.2.1'/></graphics>"
    )
    assert told == "the vnc screen's address 192.0.2.1 port 5999 (not an address of that host)"


@pytest.mark.parametrize(
    ("pages", "free", "needed"),
    [
        ("<hugepages><page size='2048' unit='KiB'/></hugepages>", 32, 0),
        ("<hugepages><page size='2' unit='M'/></hugepages>", 31, 32),
        ("<hugepages><page size='1' unit='GiB'/></hugepages>", 31, 1),
        ("<nosharepages/>", 0, 0),
    ],
)
def test_huge_pages_have_to_be_free_for_all_of_the_memory(
    pages: str, free: int, needed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "hugepages-2048kB").mkdir()
    (folder / "free_hugepages").write_text(f"{free}\n")
    monkeypatch.setattr("vmferry.hosts.libvirt.host_resources._HUGE_PAGES", tmp_path)
    xml = f"<domain><memory unit='MiB'>64</memory><memoryBacking>{pages}</memoryBacking></domain>"
    told = lacks(Definition(UUID, xml), Changes())
    assert [lack.what.split(" free ")[0] for lack in told] == ([str(needed)] if needed else [])
    assert all("nr_hugepages" in lack.cure for lack in told)
