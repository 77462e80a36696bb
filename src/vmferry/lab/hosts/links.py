"""The links of a lab's own network: one cable from each node to the switch, to be slowed down, cut and healed.

All of it lies in the network namespaces of the lab's nodes: the machine's own network has no part of it.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from vmferry.errors import LabLinkUnfit
from vmferry.lab.hosts.network import address, hardware
from vmferry.lab.hosts.node import LabNode

BRIDGE = "lab0"
PORT = "eth0"
RATE = re.compile(r"[1-9][0-9]*[kmg]?bit")
BURST, LATENCY = "256kb", "50ms"

Cut = Literal["cable", "silent", "in", "out"]
"""cable: pulled, both ends see it. silent: a switch that drops all, both ends see nothing but silence. in, out: so
in one direction only, as seen by the node."""


@dataclass(frozen=True)
class LinkState:
    """A link's limit in each direction, as tc writes it, and how it is cut; an empty field means not at all."""

    rate: str = ""
    cut: str = ""


class Cable:
    """The cable between a node and the switch; any process may create this object and use it."""

    def __init__(self, switch: LabNode, node: LabNode) -> None:
        self._switch, self._node = switch, node
        self.name = node.at.name

    def plug(self, number: int) -> None:
        """Create the cable, with the address of this number at the node's end.

        The nodes know each other's hardware addresses. So a cut is silence for a client that connects, as behind a
        router, and not `no route to host` after 3 seconds.
        """
        peer = ("peer", "name", PORT, "address", hardware(number), "netns", str(self._node.keeper_pid))
        self._switch.run("ip", "link", "add", self.name, "type", "veth", *peer)
        self._switch.run("ip", "link", "set", self.name, "master", BRIDGE, "up")
        self._node.run("ip", "address", "add", f"{address(number)}/24", "dev", PORT)
        self._node.run("ip", "link", "set", PORT, "up")

    def know(self, number: int) -> None:
        """Make the hardware address of another node known to this one."""
        known = (address(number), "lladdr", hardware(number), "nud", "permanent", "dev", PORT)
        self._node.run("ip", "neighbour", "replace", *known)

    @property
    def state(self) -> LinkState:
        """The present state of the link."""
        return LinkState(**json.loads(self._file.read_text())) if self._file.exists() else LinkState()

    def shape(self, rate: str | None) -> None:
        """Limit the link to `rate` in each direction (`100mbit`, `5gbit`); None lifts it. Raises LabLinkUnfit."""
        if rate and not RATE.fullmatch(rate):
            raise LabLinkUnfit(link=self.name, reason=f"{rate} is no rate like 100mbit, 500kbit or 5gbit")
        self._become(replace(self.state, rate=rate or ""))

    def cut(self, how: Cut = "cable") -> None:
        """Carry nothing until `heal`. Raises LabLinkUnfit if there is no such way to cut a link."""
        if how not in get_args(Cut):
            raise LabLinkUnfit(link=self.name, reason=f"it is cut as {', '.join(get_args(Cut))}, not as {how}")
        self._become(replace(self.state, cut=how))

    def heal(self) -> None:
        """Carry again what the link carried before the cut; no error if it is not cut."""
        self._become(replace(self.state, cut=""))

    def _become(self, wanted: LinkState) -> None:
        self._file.parent.mkdir(exist_ok=True)
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(asdict(wanted)))
        new.replace(self._file)
        self._discipline(self._node, PORT, wanted, silent=wanted.cut in ("silent", "out"))
        self._discipline(self._switch, self.name, wanted, silent=wanted.cut in ("silent", "in"))
        self._switch.run("ip", "link", "set", self.name, "down" if wanted.cut == "cable" else "up")

    def _discipline(self, node: LabNode, device: str, wanted: LinkState, *, silent: bool) -> None:
        """Set how packets leave by a device. A blackhole counts them as sent, so that TCP sees only silence."""
        if silent:
            kind = ["blackhole"]
        elif wanted.rate:
            kind = ["tbf", "rate", wanted.rate, "burst", BURST, "latency", LATENCY]
        else:
            kind = ["noqueue"]
        node.run("tc", "qdisc", "replace", "dev", device, "root", *kind)

    @property
    def _file(self) -> Path:
        return self._switch.at / "links" / f"{self.name}.json"
