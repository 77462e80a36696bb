"""A job's overlays are taken out of chains that others have changed: what a guest reads stays, and what is theirs."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from vmferry.errors import ImageToolFailed
from vmferry.hosts.libvirt.connection import LibvirtConnection
from vmferry.hosts.libvirt.overlays import Overlays
from vmferry.model import Placed
from vmferry.qemu import img

PIECE = 64 << 10
PIECES = 16


def run(*words: object) -> str:
    return subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True).stdout


def write(image: Path, format_: str, seed: int) -> None:
    """Some of the pieces, others for each seed, so that each image holds something that no other one does."""
    pieces = [n for n in range(PIECES) if (n * 7 + seed) % 3 == 0 or n == seed]
    words = [word for n in pieces for word in ("-c", f"write -P {seed + 1} {n * PIECE} {PIECE}")]
    run("qemu-io", "-f", format_, *words, image)


def lay(folder: Path, names: Sequence[str], base_format: str) -> list[Placed]:
    """A chain of these images, the lowest first."""
    chain: list[Placed] = []
    for number, name in enumerate(names):
        format_ = base_format if number == 0 else "qcow2"
        path = folder / name
        below = () if number == 0 else ("-b", chain[-1].path, "-F", chain[-1].format)
        run("qemu-img", "create", "-q", "-f", format_, *below, path, *(() if number else (str(PIECES * PIECE),)))
        write(path, format_, number)
        chain.append(Placed(path, format_))
    return chain


def read(placed: Placed) -> bytes:
    path = Path(str(placed.path))
    whole = path.with_name("read")
    run("qemu-img", "convert", "-f", placed.format, "-O", "raw", path, whole)
    return whole.read_bytes()


def overlays(folder: Path, base: Placed, rounds: int = 3) -> Overlays:
    newest_first = [folder / f"r{n}" for n in range(rounds - 1, -1, -1)]
    return Overlays(LibvirtConnection("test:///none"), "uuid", "vda", newest_first, base)


LAYOUTS = [
    ("base", "r0"),
    ("base", "r0", "r1"),
    ("base", "r0", "theirs"),
    ("base", "r0", "r1", "theirs"),
    ("base", "r0", "theirs", "r1"),
    ("base", "r0", "theirs", "r1", "their second"),
    ("base", "r0", "theirs", "r1", "their second", "r2"),
    ("base", "theirs", "r0"),
    ("base", "theirs"),
    ("lowest", "base", "r0", "theirs"),
]


@pytest.mark.parametrize("base_format", ["raw", "qcow2"])
@pytest.mark.parametrize("names", LAYOUTS, ids=" < ".join)
def test_ours_go_into_what_lies_below_and_theirs_stay(names: Sequence[str], base_format: str, tmp_path: Path) -> None:
    chain = lay(tmp_path, names, base_format)
    base = next(placed for placed in chain if Path(str(placed.path)).name == "base")
    before = read(chain[-1])
    wanted = [tmp_path / name for name in reversed(names) if not name.startswith("r")]
    for _ in range(2):  # a fold that was cut off is done again
        home, holder = overlays(tmp_path, base).fold_closed(chain[-1])
        assert holder is None
        assert home.path == wanted[0]
        assert [image.path for image in img.chain(home)] == wanted
        assert read(home) == before


def test_an_overlay_into_which_all_was_pulled_goes_back_into_the_image_that_the_disk_had(tmp_path: Path) -> None:
    base, _, top = lay(tmp_path, ("base", "r0", "r1"), "raw")
    before = read(top)
    run("qemu-img", "rebase", "-f", "qcow2", "-b", "", top.path)
    home, _ = overlays(tmp_path, base).fold_closed(top)
    assert home == base
    assert read(home) == before


def test_what_lies_above_a_snapshot_in_an_overlay_goes_into_that_and_no_further(tmp_path: Path) -> None:
    base, r0, top = lay(tmp_path, ("base", "r0", "r1"), "raw")
    run("qemu-img", "snapshot", "-c", "mine", r0.path)
    before, of_base = read(top), read(base)
    home, holder = overlays(tmp_path, base).fold_closed(top)
    assert home == r0
    assert holder is not None
    assert holder.snapshots == ("mine",)
    assert (read(home), read(base)) == (before, of_base)
    run("qemu-img", "snapshot", "-d", "mine", r0.path)
    assert overlays(tmp_path, base).fold_closed(home) == (base, None)
    assert read(base) == before


def test_a_chain_whose_header_cannot_be_read_is_not_taken_for_one_that_ends_there(tmp_path: Path) -> None:
    base, r0, top = lay(tmp_path, ("base", "r0", "r1"), "raw")
    away = Path(str(r0.path)).rename(tmp_path / "away")
    with pytest.raises(ImageToolFailed):
        overlays(tmp_path, base).fold_closed(top)
    away.rename(tmp_path / "r0")
    before = read(top)
    assert overlays(tmp_path, base).fold_closed(top) == (base, None)
    assert read(base) == before
