"""What people and other tools do to a VM meanwhile: each act as virsh has it, and whether it still holds at the end."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import libvirt
from lxml import etree
from lxml.builder import E  # type: ignore[import-not-found]  # lxml-stubs has none for it

from vmferry.errors import LabLate
from vmferry.lab import wait_for
from vmferry.lab.programs import run

MINE = "foreign"
"""The name of what an act makes, and the word by which it is found again."""
BLOCK_JOB_S = 20
DEFINITION = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
DISK_ONLY = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
KEEP = (
    libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
    | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_TPM
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
)
IOPS = 5000
CLONE = ".clone.qcow2"
COPIES = "copies"


@dataclass
class Scene:
    """The VM that an act is done to, and what is needed to do it the same way again."""

    domain: libvirt.virDomain
    folder: Path
    """Of files that acts make."""
    luck: random.Random
    before: str
    """Its definition before the job began."""
    target: str = ""
    """The disk that the act was done to."""
    size: int = 0
    there: Path = Path()
    """The folder that the job copies to."""
    moved: tuple[Path, Path] | None = None
    """What the act renamed, and to what."""

    def choose(self) -> str:
        """One of its disks, at random; the same for the rest of the act."""
        self.target = self.luck.choice(sorted(images(self.domain)))
        return self.target

    @property
    def reach(self) -> int:
        """As `--persistent`: what runs, and what it would start from."""
        live = libvirt.VIR_DOMAIN_AFFECT_LIVE if self.domain.isActive() else 0
        return live | (libvirt.VIR_DOMAIN_AFFECT_CONFIG if self.domain.isPersistent() else 0)


@dataclass(frozen=True)
class Act:
    """One thing that others do."""

    words: str
    """As a person would type it."""
    do: Callable[[Scene], None]
    """Raises libvirt.libvirtError where libvirt refuses it."""
    gone: Callable[[Scene], str] = lambda _: ""
    """What of it does not hold any more, in words; asked at the end, of an act that libvirt took."""
    off: bool = False
    """It makes sense of a VM that is off."""
    on: bool = True
    """It makes sense of one that runs."""
    stale: bool = False
    """It brings back what was before the job: once the source has gone, nobody could keep that."""


def images(domain: libvirt.virDomain, flags: int = 0) -> dict[str, Path]:
    """The active image of each disk that is a file, discs aside."""
    return images_in(domain.XMLDesc(flags))


def images_in(xml: str) -> dict[str, Path]:
    found = {}
    for disk in etree.fromstring(xml).iterfind("./devices/disk[@device='disk']"):
        target, source = disk.find("target"), disk.find("source")
        if target is not None and source is not None and source.get("file"):
            found[target.get("dev", "")] = Path(source.get("file", ""))
    return found


def _found(xml: str, path: str) -> etree._Element:
    element = etree.fromstring(xml).find(path)
    assert element is not None, path
    return element


# -- snapshots and block jobs


def _snapshot(flags: int) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        scene.domain.snapshotCreateXML(_text(E.domainsnapshot(E.name(MINE))), flags)

    return act


def _snapshot_gone(scene: Scene) -> str:
    return "" if MINE in scene.domain.snapshotListNames() else "the snapshot is not listed any more"


def _checkpoint(scene: Scene) -> None:
    scene.domain.checkpointCreateXML(_text(E.domaincheckpoint(E.name(MINE))))


def _checkpoint_gone(scene: Scene) -> str:
    names = [checkpoint.getName() for checkpoint in scene.domain.listAllCheckpoints()]
    return "" if MINE in names else "the checkpoint is not listed any more"


def _commit(scene: Scene) -> None:
    target = scene.choose()
    scene.domain.blockCommit(target, None, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
    _pivot(scene)


def _pull(scene: Scene) -> None:
    scene.domain.blockPull(scene.choose(), 0, 0)
    _until(lambda: not scene.domain.blockJobInfo(scene.target, 0))


def _copy(scene: Scene) -> None:
    disk = E.disk(E.source(file=str(scene.folder / f"{scene.choose()}.{MINE}")), E.driver(type="qcow2"), type="file")
    scene.domain.blockCopy(scene.target, _text(disk), None, libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)


def _copy_and_abort(scene: Scene) -> None:
    _copy(scene)
    time.sleep(scene.luck.uniform(0, 0.5))  # how far it comes is what is random here
    scene.domain.blockJobAbort(scene.target, 0)


def _copy_and_pivot(scene: Scene) -> None:
    _copy(scene)
    _pivot(scene)


def _pivot(scene: Scene) -> None:
    _until(lambda: _ready(scene))
    scene.domain.blockJobAbort(scene.target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)


def _ready(scene: Scene) -> bool:
    root = etree.fromstring(scene.domain.XMLDesc(0))
    mirror = root.find(f"./devices/disk/target[@dev='{scene.target}']/../mirror")
    return mirror is None or mirror.get("ready") == "yes"


def _until(done: Callable[[], bool]) -> None:
    wait_for(done, "a block job of somebody else's", BLOCK_JOB_S)


def _backup(scene: Scene) -> None:
    target = scene.choose()
    disks = E.disks(
        *(
            E.disk(E.target(file=str(scene.folder / f"{name}.backup")), E.driver(type="qcow2"), name=name, type="file")
            if name == target
            else E.disk(name=name, backup="no")
            for name in images(scene.domain)
        )
    )
    scene.domain.backupBegin(_text(E.domainbackup(disks, mode="push")), None)
    time.sleep(scene.luck.uniform(0, 0.5))  # how far it comes is what is random here
    with suppress(libvirt.libvirtError):  # it has ended
        scene.domain.abortJob()


def _clone(scene: Scene) -> None:
    """A linked clone of the image that domblklist names just now; `then`: what it read, of a VM that is off."""
    target = scene.choose()
    image = images(scene.domain)[target]
    driver = _found(scene.domain.XMLDesc(0), f"./devices/disk/target[@dev='{target}']/../driver")
    clone, size = scene.folder / f"{target}{CLONE}", scene.domain.blockInfo(target)[0]
    run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", driver.get("type", ""), "-b", image, clone, size)
    run("qemu-img", "info", "-U", "--backing-chain", clone)  # a person looks at what was made
    if not scene.domain.isActive():
        run("qemu-img", "convert", "-O", "raw", clone, clone.with_suffix(".then"))


def clones(scene: Scene) -> list[Path]:
    """What was made of the VM's images: linked clones, copies and hard links."""
    return [*sorted(scene.folder.glob(f"*{CLONE}")), *sorted((scene.folder / COPIES).glob("*"))]


def _copied(scene: Scene, make: Callable[[Path, Path], object]) -> None:
    """Another file, or another hard link, of the image that domblklist names just now, under its own name."""
    image = images(scene.domain)[scene.choose()]
    copies = scene.folder / COPIES
    copies.mkdir(exist_ok=True)
    with _as_told():
        make(image, copies / image.name)


def _move_copy(scene: Scene) -> None:
    """Move a copy away that the job has given its name; nobody does that to a disk that the VM names."""
    copy = scene.there / images_in(scene.before)[scene.choose()].name
    if copy in [*images(scene.domain).values(), *images(scene.domain, DEFINITION).values()]:
        raise libvirt.libvirtError("the VM is on it")
    away = copy.with_name(f"{copy.name}.{MINE}")
    with _as_told():
        copy.rename(away)
    scene.moved = copy, away


def _job(flags: int) -> Callable[[Scene], None]:
    """Pivot or end whatever block job runs on a disk, as `virsh blockjob` does; a job of the job's is waited for."""

    def act(scene: Scene) -> None:
        target = scene.choose()
        with suppress(LabLate):
            wait_for(lambda: bool(scene.domain.blockJobInfo(target, 0)), "a block job", BLOCK_JOB_S)
        if flags:
            _until(lambda: _ready(scene))
        scene.domain.blockJobAbort(target, flags)

    return act


@contextmanager
def _as_told() -> Iterator[None]:
    """A file that is not there (any more) is told of as libvirt tells of what it refuses."""
    try:
        yield
    except OSError as error:
        raise libvirt.libvirtError(str(error)) from error


# -- disks and discs


def _attach(scene: Scene) -> None:
    image = scene.folder / "attached.img"
    image.touch()
    with image.open("r+b") as file:
        file.truncate(16 << 20)
    disk = E.disk(E.driver(name="qemu", type="raw"), E.source(file=str(image)), E.target(dev="vdx", bus="virtio"))
    disk.attrib.update({"type": "file", "device": "disk"})
    scene.domain.attachDeviceFlags(_text(disk), scene.reach)


def _attached_gone(scene: Scene) -> str:
    return "" if "vdx" in images(scene.domain) else "the disk that was attached is not there any more"


def _detach(scene: Scene) -> None:
    scene.target = max(images(scene.domain))
    disk = _found(scene.domain.XMLDesc(0), f"./devices/disk/target[@dev='{scene.target}']/..")
    live = bool(scene.domain.isActive())
    scene.domain.detachDeviceFlags(
        etree.tostring(disk, encoding="unicode"),
        libvirt.VIR_DOMAIN_AFFECT_LIVE if live else libvirt.VIR_DOMAIN_AFFECT_CONFIG,
    )
    wait_for(lambda: scene.target not in images(scene.domain), f"{scene.target} to be unplugged", BLOCK_JOB_S)


def _change_media(scene: Scene) -> None:
    disc = scene.folder / "disc.iso"
    disc.write_bytes(bytes(1 << 20))
    drive = _found(scene.domain.XMLDesc(0), "./devices/disk[@device='cdrom']")
    for source in drive.findall("source"):
        drive.remove(source)
    drive.append(E.source(file=str(disc)))
    scene.domain.updateDeviceFlags(_text(drive), scene.reach | libvirt.VIR_DOMAIN_DEVICE_MODIFY_FORCE)


def _media_gone(scene: Scene) -> str:
    return "" if "disc.iso" in scene.domain.XMLDesc(0) else "the disc that was put in is not there any more"


def _resize(scene: Scene) -> None:
    target = scene.choose()
    scene.size = scene.domain.blockInfo(target)[0] + (64 << 20)
    scene.domain.blockResize(target, scene.size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)


def _size_gone(scene: Scene) -> str:
    now = scene.domain.blockInfo(scene.target)[0]
    return "" if now == scene.size else f"{scene.target} was made {scene.size} bytes, and has {now}"


def _throttle(scene: Scene) -> None:
    scene.domain.setBlockIoTune(scene.choose(), {"total_iops_sec": IOPS}, scene.reach)


def _throttle_gone(scene: Scene) -> str:
    iops = scene.domain.blockIoTune(scene.target)["total_iops_sec"]
    return "" if iops == IOPS else f"{scene.target} was held to {IOPS} operations a second, and is not any more"


# -- the VM as a whole


def saved_at(scene: Scene) -> Path:
    """Where `virsh save` writes."""
    return scene.folder / "by-hand.save"


def _save(scene: Scene) -> None:
    scene.domain.save(str(saved_at(scene)))


def _save_gone(scene: Scene) -> str:
    return "" if saved_at(scene).exists() else "the saved state is gone"


def _managed_save_gone(scene: Scene) -> str:
    kept = scene.domain.isActive() or scene.domain.hasManagedSaveImage()
    return "" if kept else "the managed save is gone, and the VM is off"


def _suspend_gone(scene: Scene) -> str:
    return "" if scene.domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED else "it was suspended, and is not any more"


def _suspend_and_resume(scene: Scene) -> None:
    scene.domain.suspend()
    time.sleep(scene.luck.uniform(0, 0.5))  # how long it stands is what is random here
    scene.domain.resume()


def _rename(scene: Scene) -> None:
    scene.domain.rename(f"{scene.domain.name()} {MINE}")


def _name_gone(scene: Scene) -> str:
    return "" if scene.domain.name().endswith(MINE) else "it was renamed, and has its old name again"


def _edit(scene: Scene) -> None:
    """`virsh edit`, begun just now."""
    root = etree.fromstring(scene.domain.XMLDesc(DEFINITION))
    root.insert(1, E.description(MINE))
    scene.domain.connect().defineXML(_text(root))


def _edit_late(scene: Scene) -> None:
    """`virsh edit`, begun before the job: the disks in it are those of before."""
    root = etree.fromstring(scene.before)
    root.insert(1, E.description(MINE))
    scene.domain.connect().defineXML(_text(root))


def _put_back(scene: Scene) -> None:
    """`virsh define` of the XML of before the job, as configuration tools do it, and a power cut."""
    scene.domain.connect().defineXML(scene.before)
    scene.domain.destroy()


def _edit_gone(scene: Scene) -> str:
    if not scene.domain.isPersistent():
        return ""
    root = etree.fromstring(scene.domain.XMLDesc(DEFINITION))
    return "" if root.findtext("description") == MINE else "what was changed in the definition is not in it any more"


def _undefine(scene: Scene) -> None:
    scene.domain.undefineFlags(KEEP)


def _undefine_gone(scene: Scene) -> str:
    return "it was undefined, and is defined again" if scene.domain.isPersistent() else ""


def _set_memory(scene: Scene) -> None:
    scene.domain.setMemoryFlags(scene.domain.maxMemory() * 3 // 4, scene.reach)


def _start_and_stop(scene: Scene) -> None:
    scene.domain.create()
    time.sleep(scene.luck.uniform(0, 2))  # how long it runs is what is random here
    scene.domain.destroy()


def _text(element: etree._Element) -> str:
    return etree.tostring(element, encoding="unicode")


def _all() -> Iterator[Act]:
    no_metadata = DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    yield Act("snapshot-create --disk-only --no-metadata", _snapshot(no_metadata))
    yield Act("snapshot-create --disk-only", _snapshot(DISK_ONLY), _snapshot_gone, off=True)
    yield Act("snapshot-create", _snapshot(0), _snapshot_gone, off=True)
    yield Act("checkpoint-create", _checkpoint, _checkpoint_gone)
    yield Act("blockcommit --active --pivot", _commit)
    yield Act("blockpull", _pull)
    yield Act("blockcopy, aborted", _copy_and_abort)
    yield Act("blockcopy --pivot", _copy_and_pivot)
    yield Act("backup-begin, aborted", _backup)
    yield Act("qemu-img create, on the disk's image", _clone, off=True)
    yield Act("cp, of the disk's image", lambda s: _copied(s, shutil.copyfile), off=True)
    yield Act("ln, of the disk's image", lambda s: _copied(s, lambda image, link: link.hardlink_to(image)), off=True)
    yield Act("mv, of the copy", _move_copy, off=True)
    yield Act("blockjob --pivot", _job(libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT))
    yield Act("blockjob --abort", _job(0))
    yield Act("attach-disk", _attach, _attached_gone, off=True)
    yield Act("detach-disk", _detach, off=True)
    yield Act("change-media", _change_media, _media_gone, off=True)
    yield Act("blockresize", _resize, _size_gone)
    yield Act("blkdeviotune", _throttle, _throttle_gone, off=True)
    yield Act("setmem", _set_memory, off=True)
    yield Act("managedsave", lambda s: s.domain.managedSave(0), _managed_save_gone)
    yield Act("save", _save, _save_gone)
    yield Act("reset", lambda s: s.domain.reset(0))
    yield Act("suspend", lambda s: s.domain.suspend(), _suspend_gone)
    yield Act("suspend, resume", _suspend_and_resume)
    yield Act("destroy", lambda s: s.domain.destroy())
    yield Act("start", lambda s: s.domain.create(), off=True, on=False)
    yield Act("start, destroy", _start_and_stop, off=True, on=False)
    yield Act("domrename", _rename, _name_gone, off=True)
    yield Act("edit", _edit, _edit_gone, off=True)
    yield Act("edit, begun before the job", _edit_late, _edit_gone, off=True, stale=True)
    yield Act("define of the XML of before, destroy", _put_back, stale=True)
    yield Act("undefine", _undefine, _undefine_gone, off=True)


ACTS: Mapping[str, Act] = {act.words: act for act in _all()}
