"""Agents beside the hosts of a lab, joined to one manager, which has none of their files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.served import ServedHost

from vmferry.lab import Lab, LabGuest, LabHost
from vmferry.lab.vmferry_command import Ended, VmferryCommand

PORT = 7420
INSIDE_URI = "qemu:///system"


class ManagedLab:
    """A lab whose hosts are added by their names."""

    def __init__(self, lab: Lab, manager: VmferryCommand, agents: dict[str, ServedHost]) -> None:
        self.lab = lab
        self.manager = manager
        self.agents = agents

    def migrate(self, guest: LabGuest, to: LabHost, *words: str | Path) -> Ended:
        """`vmferry migrate`, to its end."""
        return self.manager.run("--connect", guest.host.name, "migrate", guest.name, "--to", to.name, *words)

    def detached(self, guest: LabGuest, to: LabHost, *words: str | Path) -> str:
        """The same in the background. Returns the job's id."""
        ended = self.migrate(guest, to, *words, "--detach")
        assert ended.code == 0, ended.err or ended.out
        return ended.out.split()[0]


@contextmanager
def managed(lab: Lab, name: str, records: str = "", options: Sequence[str] = ()) -> Iterator[ManagedLab]:
    """Agents and a manager of a test's own; all end with it. `records`: a database, for it is one of several.

    `options`: further ones of the agents.
    """
    with ExitStack() as stack:
        node = lab.manager
        manager = stack.enter_context(
            VmferryCommand(node.at / f"state-{name}", INSIDE_URI, node.inside(), records, "foreground")
        )
        agents = {}
        for host in lab.hosts:
            at = f"{host.address}:{PORT}"
            agent = ServedHost(host.at / f"agent-{name}", INSIDE_URI, host.inside(), at, options)
            agents[host.name] = stack.enter_context(agent)
            token = agent.token()
            added = manager.run("host", "add", host.name, "--address", agent.address, "--token", token)
            assert added.code == 0, added.err
            for storage in host.storages:
                declared = manager.run("storage", "add", storage, "--host", host.name, "--path", host.storage(storage))
                assert declared.code == 0, declared.err
        yield ManagedLab(lab, manager, agents)
