"""libvirt's own client, through a tunnel, to a libvirtd that it could not reach."""

from __future__ import annotations

from pathlib import Path

import libvirt
import pytest
from tests.block.servers import certificates
from tests.block.tunnels import tunnel_to

from vmferry.lab import LabHost

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
