"""A real interface, in a network namespace with a /sys of its own: what goes out over it is counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

BYTES = 100 * 1000
LOOKS = f"""
import json, socket
from dataclasses import asdict
from vmferry.hosts.libvirt.network_cards import link_of
before = link_of("10.97.0.1")
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
    sending.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    for _ in range(100):
        sending.sendto(bytes({BYTES // 100}), ("10.97.0.255", 9))
print(json.dumps([asdict(look) for look in (before, link_of("10.97.0.1"), link_of("fd97::1"))]))
"""
SET_UP = (
    "mount -t sysfs sysfs /sys && ip link add left type veth peer name right && "
    "ip addr add 10.97.0.1/24 broadcast 10.97.0.255 dev left && ip addr add fd97::1/64 dev left nodad && "
    'ip link set left up && ip link set right up && exec "$@"'
)


def test_what_goes_out_over_an_interface_is_counted() -> None:
    if os.getuid() != 0:
        pytest.skip("needs root to make a network namespace")
    words = ["unshare", "--net", "--mount", "sh", "-c", SET_UP, "sh", sys.executable, "-c", LOOKS]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    before, after, by_ipv6 = json.loads(ended.stdout)
    assert after["sent_bytes"] - before["sent_bytes"] >= BYTES
    assert before["capacity_bytes_s"] == 10_000_000_000 // 8, "what a veth pair says"
    assert by_ipv6["sent_bytes"] >= after["sent_bytes"]
