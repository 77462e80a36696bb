"""A host that cannot be asked: each cause is told from the others, with what cures it, and no word of a job."""

from __future__ import annotations

import pytest

pytest.importorskip("libvirt")

import libvirt

from vmferry.errors import BadConnectUri, HostDenied, HostNotFound, HostUnreachable, NoQemuDriver
from vmferry.hosts.libvirt.connection import unreachable

SYSTEM = "qemu:///system"
SSH = "qemu+ssh://root@host2/system"
SYSTEM_ERROR = libvirt.VIR_ERR_SYSTEM_ERROR


def failed(code: int, message: str) -> libvirt.libvirtError:
    """As the binding raises it, whose last error belongs to the thread."""
    error = libvirt.libvirtError(message)
    error.err = (code, 0, message, 2, "", None, None, 0, 0)
    return error


@pytest.mark.parametrize(
    "uri,code,said,kind,cure,exit_code",
    [
        (SYSTEM, SYSTEM_ERROR, "Failed to connect socket to '/x': Permission denied", HostDenied, "group libvirt", 3),
        (SYSTEM, libvirt.VIR_ERR_AUTH_UNAVAILABLE, "no polkit agent available", HostDenied, "sudo", 3),
        (SYSTEM, libvirt.VIR_ERR_AUTH_CANCELLED, "user cancelled authentication process", HostDenied, "sudo", 3),
        (SSH, SYSTEM_ERROR, "Cannot recv data: Permission denied (publickey).", HostDenied, "virsh -c", 3),
        (SSH, SYSTEM_ERROR, "Cannot recv data: Host key verification failed.", HostDenied, "a known host", 3),
        (
            SYSTEM,
            SYSTEM_ERROR,
            "Failed to connect socket to '/x': No such file or directory",
            HostUnreachable,
            "systemctl start libvirtd",
            3,
        ),
        (
            SYSTEM,
            SYSTEM_ERROR,
            "Failed to connect socket to '/x': Connection refused",
            HostUnreachable,
            "systemctl start",
            3,
        ),
        (
            "qemu+tcp://host2:1/system",
            SYSTEM_ERROR,
            "unable to connect to server: Connection refused",
            HostUnreachable,
            "start libvirtd there",
            3,
        ),
        (
            "qemu+tcp://hots2/system",
            SYSTEM_ERROR,
            "Unable to resolve address 'hots2' service '16509'",
            HostNotFound,
            "spelled",
            3,
        ),
        (
            SSH,
            SYSTEM_ERROR,
            "Cannot recv data: ssh: Could not resolve hostname host2: Name or service not known",
            HostNotFound,
            "spelled",
            3,
        ),
        (
            SYSTEM,
            libvirt.VIR_ERR_NO_CONNECT,
            "no connection driver available for qemu:///system",
            NoQemuDriver,
            "libvirt-daemon-driver-qemu",
            3,
        ),
        (
            "qmu:///system",
            SYSTEM_ERROR,
            "Failed to connect socket to '/x': No such file or directory",
            BadConnectUri,
            "write qemu:///system",
            2,
        ),
        (
            "qemu:///sytem",
            libvirt.VIR_ERR_INTERNAL_ERROR,
            "unexpected QEMU URI path '/sytem'",
            BadConnectUri,
            "write qemu:///system",
            2,
        ),
        (
            "test:///default",
            libvirt.VIR_ERR_NO_SUPPORT,
            "this function is not supported",
            BadConnectUri,
            "write qemu:///system",
            2,
        ),
        (
            "xen:///system",
            libvirt.VIR_ERR_NO_CONNECT,
            "no connection driver available",
            BadConnectUri,
            "write qemu:///system",
            2,
        ),
        (
            "qemu+foo://h/system",
            libvirt.VIR_ERR_INVALID_ARG,
            "transport in URL not recognised",
            BadConnectUri,
            "write qemu:///system",
            2,
        ),
    ],
)
def test_each_cause_has_its_cure_and_its_code(
    uri: str, code: int, said: str, kind: type[HostUnreachable], cure: str, exit_code: int
) -> None:
    error = unreachable(uri, failed(code, said))
    assert type(error) is kind
    assert cure in str(error)
    assert said in str(error)
    assert "job" not in str(error)
    assert error.exit_code == exit_code
