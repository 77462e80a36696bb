"""Through a tunnel: libvirt's own client to a libvirtd that it could not reach, and images over a slow link."""

from __future__ import annotations

import random
from pathlib import Path

import libvirt
import pytest
from tests.support.fleets import managed
from tests.support.guests import MakeGuestOn
from tests.support.nbd_servers import certificates
from tests.support.tunnels import tunnel_to

from vmferry.lab import DiskSpec, GuestSpec, Lab, LabHost
from vmferry.lab.hosts.links import PORT

pytestmark = pytest.mark.long

DOMAIN = """<domain type='qemu'><name>there and back</name><memory unit='MiB'>16</memory>
<os><type arch='x86_64'>hvm</type></os></domain>"""


def test_libvirt_answers_through_a_tunnel_until_it_is_cut(lab: LabHost, tmp_path: Path) -> None:
    here = tmp_path / "here"
    with tunnel_to(lab.socket, here, certificates(tmp_path / "keys")) as cut:
        far = libvirt.open(f"qemu+unix:///system?socket={here}")
        try:
            assert lab.record.lab_id in far.getCapabilities()
            assert "<name>there and back</name>" in far.defineXML(DOMAIN).XMLDesc()
            with lab.connect() as beside:
                beside.lookupByName("there and back").undefine()
            cut()
            with pytest.raises(libvirt.libvirtError):
                far.getCapabilities()
        finally:
            far.close()
    with lab.connect() as beside:
        assert beside.getLibVersion()


def test_a_relocation_over_a_slow_link_sends_less_than_it_moves(
    two_hosts: Lab, make_guest_on: MakeGuestOn, tmp_path: Path
) -> None:
    one, two = two_hosts.hosts
    golden, folder = one.storage("san1") / "golden.img", two.storage("san2") / "texts"
    words = [random.Random(n).randbytes(6).hex() for n in range(5000)]
    golden.write_text(" ".join(random.Random(1).choices(words, k=4 << 20)))
    golden.open("r+b").truncate(256 << 20)
    folder.mkdir()
    disk = DiskSpec("vda", size_mib=256, backing=golden)
    guest = make_guest_on(one, GuestSpec("texts", disks=(disk,), rate=20))
    guest.wait_acks(20)
    with managed(two_hosts, tmp_path.name, options=("--link-speed", "100mbit")) as fleet:
        two_hosts.link("host2").shape("100mbit")
        before = sent(one)
        ended = fleet.migrate(guest, two, "--path", folder, "--via", "quick", "--max-pause", "60s")
        assert ended.code == 0, ended.out + ended.err
        receipt = fleet.manager.receipt(fleet.manager.jobs()[0]["id"])
        passed = sent(one) - before
        phases = {phase["name"]: phase["bytes"] for phase in receipt["phases"]}
        assert phases["copy base"] > 40 << 20
        assert passed < 0.6 * (phases["copy base"] + phases["save memory"]), (passed, phases)
        guest.moved_to(two)
        guest.wait_acks(20)
        guest.stop_writing()
        assert guest.verdict().clean, guest.verdict()


def sent(host: LabHost) -> int:
    """Bytes over its network card, by its own count."""
    return int(host.run("cat", f"/sys/class/net/{PORT}/statistics/tx_bytes"))
