"""What is made of an error of a libvirtd that answers."""

from __future__ import annotations

import libvirt
import pytest

from vmferry.errors import HostRefused, VmHeld, WayBroke
from vmferry.hosts.libvirt.connection import refusal


class Said(libvirt.libvirtError):  # type: ignore[misc]
    """An error as libvirt gives it."""

    def __init__(self, code: int, message: str) -> None:
        self.err = (code, libvirt.VIR_FROM_RPC, message, libvirt.VIR_ERR_ERROR, "", "", "", 0, 0)


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (libvirt.VIR_ERR_OPERATION_TIMEOUT, "cannot acquire state change lock", VmHeld),
        (libvirt.VIR_ERR_OPERATION_TIMEOUT, "agent is late", HostRefused),
        (libvirt.VIR_ERR_INTERNAL_ERROR, "client socket is closed", WayBroke),
        (libvirt.VIR_ERR_SYSTEM_ERROR, "Cannot recv data: Connection reset by peer", WayBroke),
        (libvirt.VIR_ERR_SYSTEM_ERROR, "cannot open file 'x': No such file or directory", HostRefused),
        (libvirt.VIR_ERR_OPERATION_INVALID, "domain is not running", HostRefused),
    ],
)
def test_a_refusal_is_told_by_what_an_operator_can_do_about_it(
    code: int, message: str, kind: type[HostRefused]
) -> None:
    assert refusal(Said(code, message)) is kind
