"""A host that an operator has declared lost: nothing is asked of it any more.

What a job would have taken away there is noted instead, for the day on which the host is back. Queries answer
that nothing is there. Whatever would need the host raises HostLost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vmferry.errors import HostLost, NoSuchVm
from vmferry.hosts.forwarding import ForwardingHost
from vmferry.hosts.wire import CALLS
from vmferry.model import Power
from vmferry.qemu.places import Scheme
from vmferry.transfer import Place, Transfer

NOT_THERE: Mapping[str, object] = {
    "vms": (),
    "power": Power.OFF,
    "run_of": "",
    "allocated": 0,
    "chains": None,
    "exists": False,
    "users": (),
    "file_users": (),
    "entry": None,
    "leftovers": (),
    "mirroring": False,
    "saved": False,
    "spent": False,
    "defined": False,
    "announced": False,
    "arrived": False,
    "mark_of": "",
}
"""Queries that are answered for a lost host, with the answer: nothing is there."""
LEFT = frozenset({"clear_out", "drop", "forget", "remove", "void", "unload", "withdraw", "end_serving"})
"""Acts that only take away: nothing is done, and they are left to the person who cleans up on that host."""


class LostHost(ForwardingHost):
    """A host declared lost, which is never contacted: queries find nothing, and what would need it raises HostLost."""

    def __init__(self, name: str, left: Callable[[Path], None]) -> None:
        """`left` is called with each file that may still lie on the lost host."""
        self.name = name
        self._left = left

    def forward(self, method: str, /, *arguments: object, **named: object) -> Any:
        return self._answer(method, CALLS[method].bind(*arguments, **named))

    def _answer(self, name: str, arguments: Mapping[str, Any]) -> Any:
        if name in NOT_THERE:
            self._note(name, arguments)
            return NOT_THERE[name]
        if name in ("vm", "definition"):
            raise NoSuchVm(vm=arguments.get("name") or arguments.get("uuid"), host=self.name)
        if name not in LEFT:
            raise HostLost(host=self.name)
        self._note(name, arguments)
        return None

    def _note(self, name: str, arguments: Mapping[str, Any]) -> None:
        if name in LEFT or name == "exists":  # asked before something is removed or renamed back
            for path in filter(None, map(_file, arguments.values())):
                self._left(path)


def _file(argument: object) -> Path | None:
    if isinstance(argument, Transfer):
        return _file(argument.destination)
    if isinstance(argument, Place):
        return argument.path if argument.scheme is Scheme.PATH else None
    return argument if isinstance(argument, Path) else None
