"""Overlays are folded into a copy and mirrors are cut off in it, while somebody writes, zeroes and discards hard.

QEMU's own block layer does it, in a storage daemon; the copy must read as the source does in the end.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nbd
import pytest
from tests.support.nbd_servers import needs
from tests.support.qmp import StorageDaemon, storage_daemon, writer
from tests.support.sampling import fewer

from vmferry.model import Placed
from vmferry.qemu import img

MIB = 1 << 20
SIZE = 8 * MIB
SECTOR = 512
CLUSTERS = (512, 4096, 65536, 2 * MIB)
SEEDS = int(os.environ.get("VMFERRY_FOLDS", "3"))
ACTS_A_ROUND = 40


def qemu_img(*words: object) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True)


@dataclass
class Frozen:
    """A disk whose base was copied, and whose overlays are folded into the copy; as a job has it."""

    daemon: StorageDaemon
    guest: nbd.NBD
    luck: random.Random
    base: Path
    copy: Placed
    cluster: int
    overlays: list[Path] = field(default_factory=list)

    def freeze(self) -> None:
        """One overlay more, of the cluster size that libvirt gives it: that of the image below."""
        number, active = len(self.overlays), self.overlays[-1] if self.overlays else self.base
        overlay = self.base.with_name(f"r{number}.qcow2")
        format_ = "qcow2" if self.overlays else self.copy.format
        size = ("-o", f"cluster_size={self.cluster}")
        qemu_img("create", "-f", "qcow2", *size, "-F", format_, "-b", active, overlay)
        self.daemon.image(f"r{number}", overlay, "qcow2")
        self.daemon.snapshot(f"r{number - 1}" if self.overlays else "base", f"r{number}")
        self.overlays.append(overlay)

    def fold(self, overlay: Path) -> None:
        """As a job folds: a copy of the closed overlay, on the copy of the base, by qemu-img; now and then twice."""
        closed = overlay.with_name(f"{overlay.name}.copy")
        shutil.copyfile(overlay, closed)
        img.rebase(closed, self.copy)
        for _ in range(self.luck.choice((1, 2))):
            img.commit(closed, self.copy)
        closed.unlink()

    @contextmanager
    def mirror(self, *, pivot: bool) -> Iterator[None]:
        """The active overlay into the copy, which has no chain below it meanwhile, as libvirt opens it."""
        self.daemon.image("copy", Path(str(self.copy.path)), self.copy.format)
        self.daemon.mirror(f"r{len(self.overlays) - 1}", "copy")
        yield
        self.daemon.end_mirror(pivot=pivot)
        if not pivot:
            self.daemon.forget("copy")

    def act(self, times: int) -> None:
        """What a guest does: at any sector, and at clusters and more."""
        for _ in range(times):
            length = SECTOR * self.luck.choice((1, 3, 8, 16, 100, 128, 512, 1000))
            at = SECTOR * self.luck.randrange((SIZE - length) // SECTOR + 1)
            if self.luck.random() < 0.3:  # a whole cluster of it
                length, at = 65536, at // 65536 * 65536
            self._one(at, length)

    def _one(self, at: int, length: int) -> None:
        kind = self.luck.choice(("write", "write", "zero", "zero without a hole", "discard"))
        if kind == "write":
            self.guest.pwrite(self.luck.randbytes(length), at)
        elif kind == "discard":
            self.guest.trim(length, at)
        else:
            self.guest.zero(length, at, nbd.CMD_FLAG_NO_HOLE if kind != "zero" else 0)


@contextmanager
def frozen(folder: Path, seed: int, format_: str, cluster: int, *, chain: bool) -> Iterator[Frozen]:
    needs("qemu-img", "qemu-storage-daemon")
    luck = random.Random(f"{seed} {format_} {cluster} {chain}")
    base, copy, below = folder / f"base.{format_}", folder / f"copy.{format_}", folder / "below.raw"
    below.write_bytes(luck.randbytes(SIZE))
    if format_ == "raw":
        shutil.copyfile(below, base)
    else:
        on = ("-F", "raw", "-b", below) if chain else ()
        qemu_img("create", "-f", "qcow2", "-o", f"cluster_size={cluster}", *on, base, SIZE)
    with storage_daemon(folder) as daemon:
        daemon.image("below", below, "raw")
        daemon.image("base", base, format_, "below" if chain else None)
        with writer(daemon, folder, "base") as guest:
            disk = Frozen(daemon, guest, luck, base, Placed(copy, format_), cluster)
            disk.act(ACTS_A_ROUND)
            guest.flush()
            disk.freeze()
            shutil.copyfile(base, copy)  # names the same image below: it does not change
            yield disk
            guest.flush()


CASES = [
    ("raw", 65536, "alone"),
    *(("qcow2", cluster, lies) for cluster in CLUSTERS for lies in ("alone", "on a chain")),
]


@pytest.mark.parametrize("seed", range(fewer(SEEDS)))
@pytest.mark.parametrize(("format_", "cluster", "lies"), CASES)
def test_a_copy_with_rounds_folded_and_mirrors_cut_off_in_it_reads_as_the_source(
    format_: str, cluster: int, lies: str, seed: int, tmp_path: Path
) -> None:
    with frozen(tmp_path, seed, format_, cluster, chain=lies == "on a chain") as disk:
        for _ in range(disk.luck.randint(1, 3)):
            disk.act(ACTS_A_ROUND)
            if disk.luck.random() < 0.7:
                with disk.mirror(pivot=False):
                    disk.act(disk.luck.randint(0, ACTS_A_ROUND))
                disk.act(disk.luck.randint(0, ACTS_A_ROUND))
            disk.freeze()
            disk.fold(disk.overlays[-2])
        disk.act(ACTS_A_ROUND)
        last = disk.overlays[-1]
        if live := disk.luck.random() < 0.6:
            with disk.mirror(pivot=True):
                disk.act(ACTS_A_ROUND)
                _until_ready(disk)
    if not live:
        disk.fold(last)
    qemu_img("compare", "-F", format_, "-f", "qcow2", last, disk.copy.path)
    if format_ == "qcow2":
        qemu_img("check", "-f", "qcow2", disk.copy.path)


def _until_ready(disk: Frozen) -> None:
    """It writes on meanwhile."""
    while not disk.daemon.ready:
        disk.act(1)


def test_a_copy_that_lacks_a_folded_round_would_be_seen(tmp_path: Path) -> None:
    with frozen(tmp_path, 0, "qcow2", 65536, chain=False) as disk:
        disk.act(ACTS_A_ROUND)
    with pytest.raises(subprocess.CalledProcessError):
        qemu_img("compare", "-F", "qcow2", "-f", "qcow2", disk.overlays[-1], disk.copy.path)
