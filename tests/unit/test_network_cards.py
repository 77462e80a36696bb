"""Network cards: the real ones below an interface are what carries it, and what others send over them counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmferry.hosts.libvirt import network_cards
from vmferry.hosts.libvirt.network_cards import GBIT_S, is_slow, link_of
from vmferry.manager.limits.sampler import used_by_others
from vmferry.model import LinkCount, Load

MB = 1_000_000
HOLDS = "192.0.2.7"


class Tree:
    """A folder like /sys/class/net."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, name: str, *below: str, real: bool = True, speed: str = "1000", sent: int = 0) -> None:
        card = self.folder / name
        (card / "statistics").mkdir(parents=True)
        (card / "statistics/tx_bytes").write_text(f"{sent}\n")
        (card / "statistics/rx_bytes").write_text("7\n")
        (card / "speed").write_text(f"{speed}\n")
        if real:
            (card / "device").mkdir()
        for lower in below:
            (card / f"lower_{lower}").symlink_to(self.folder / lower)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    monkeypatch.setattr(network_cards, "_interface", lambda address: "lan" if address == HOLDS else None)
    return Tree(tmp_path)


def test_a_real_card_is_itself(tree: Tree) -> None:
    tree.add("lan", sent=5)
    assert link_of(HOLDS, cards=tree.folder) == LinkCount(5, 7, 125 * MB)


def test_an_address_that_no_interface_has_is_no_link(tree: Tree) -> None:
    tree.add("lan")
    assert link_of("192.0.2.8", cards=tree.folder) is None


def test_below_a_bridge_over_a_bond_lie_two_cards_and_no_tap(tree: Tree) -> None:
    tree.add("eth0", sent=5)
    tree.add("eth1", sent=6)
    tree.add("vnet0", real=False, sent=100)
    tree.add("bond0", "eth0", "eth1", real=False, sent=11)
    tree.add("lan", "bond0", "vnet0", real=False, sent=3)
    assert link_of(HOLDS, cards=tree.folder) == LinkCount(11, 14, 250 * MB)


def test_an_interface_without_real_cards_tells_for_itself(tree: Tree) -> None:
    tree.add("lan", real=False, speed="10000", sent=5)
    assert link_of(HOLDS, cards=tree.folder) == LinkCount(5, 7, 1250 * MB)


@pytest.mark.parametrize("speed", ["-1", "0", ""])
def test_a_card_that_does_not_tell_its_speed_is_no_link(tree: Tree, speed: str) -> None:
    tree.add("eth0")
    tree.add("eth1", speed=speed)
    tree.add("lan", "eth0", "eth1", real=False)
    assert link_of(HOLDS, cards=tree.folder) is None


@pytest.mark.parametrize("speed", ["-1", "10000"])
def test_what_an_administrator_knows_better_counts_instead(tree: Tree, speed: str) -> None:
    tree.add("lan", speed=speed, sent=5)
    assert link_of(HOLDS, 25 * MB, tree.folder) == LinkCount(5, 7, 25 * MB)


def test_loopback_is_found_by_its_addresses_and_tells_no_speed() -> None:
    assert network_cards._interface("127.0.0.1") == network_cards._interface("localhost") == "lo"
    assert network_cards._interface("192.0.2.77") is None
    assert link_of("127.0.0.1") is None


def at(second: float, sent: int, received: int = 0) -> Load:
    return Load(second, link=LinkCount(sent, received, 100 * MB))


@pytest.mark.parametrize(
    ("now", "ours", "others"),
    [
        (at(2.0, 100 * MB), 0, 0.5),
        (at(2.0, 100 * MB), 60 * MB, 0.2),
        (at(2.0, 10 * MB, 150 * MB), 150 * MB, 0.0),
        (at(2.0, 10 * MB), 60 * MB, 0.0),  # admitted, and not sent yet
        (at(2.0, 900 * MB), 0, 1.0),
        (at(0.0, 100 * MB), 0, 0.0),
        (Load(2.0), 0, 0.0),
    ],
)
def test_what_others_use_is_what_passed_without_ours(now: Load, ours: int, others: float) -> None:
    assert used_by_others(at(0.0, 0), 1000, now, 1000 + ours) == pytest.approx(others)


def test_a_link_is_slow_up_to_a_gbit_and_of_one_that_tells_nothing_nobody_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    speeds = {HOLDS: GBIT_S, "192.0.2.8": GBIT_S + 1}

    def told(address: str, capacity_bytes_s: int | None = None) -> LinkCount | None:
        found = capacity_bytes_s or speeds.get(address)
        return LinkCount(0, 0, found) if found else None

    monkeypatch.setattr(network_cards, "link_of", told)
    assert [is_slow(HOLDS), is_slow("192.0.2.8"), is_slow("192.0.2.9")] == [True, False, None]
    assert is_slow("192.0.2.9", GBIT_S // 10) is True
