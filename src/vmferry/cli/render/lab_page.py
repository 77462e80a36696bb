"""Pages about a lab, for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vmferry.cli.render.screen import shown, table
from vmferry.cli.session import answer
from vmferry.lab.commands import HostsStatus, LabStatus, LabVm
from vmferry.lab.hosts.links import LinkState


def print_lab(lab: LabStatus | HostsStatus, *, json: bool) -> None:
    answer(lab, lab_hosts_page(lab) if isinstance(lab, HostsStatus) else lab_page(lab), json=json)


def lab_page(lab: LabStatus) -> RenderableType:
    """Return the page of a lab of one host: its place, storages, VMs, and the next command to type."""
    facts = _facts()
    facts.add_row("lab", Text(shown(lab.at)))
    facts.add_row("connect", Text(shown(lab.uri or "its libvirtd is down")))
    for number, storage in enumerate(lab.storages):
        facts.add_row("storages" if number == 0 else "", Text(shown(storage)))
    parts: list[RenderableType] = [facts, Text(), _vms(lab.vms)]
    if lab.uri and lab.vms and len(lab.storages) > 1:
        parts += [Text(), Text("Try:"), Text(_try(lab))]
    return Group(*parts)


def lab_hosts_page(lab: HostsStatus) -> RenderableType:
    """Return the page of a lab of several hosts: how each is reached, links, VMs, and commands to go on with."""
    facts = _facts()
    facts.add_row("lab", Text(shown(lab.at)))
    for number, storage in enumerate(lab.shared):
        facts.add_row("shared" if number == 0 else "", Text(shown(storage)))
    facts.add_row("manager", f"link {_link(lab.manager_link)}")
    hosts = table("host", "address", "link", "storages", "vms", "connect")
    for host in lab.hosts:
        hosts.add_row(
            host.name,
            host.address,
            _link(host.link),
            Text("\n".join(map(shown, host.storages))),
            str(len(host.vms)),
            Text(shown(host.uri or "its libvirtd is down")),
        )
    parts: list[RenderableType] = [facts, Text(), hosts]
    for host in lab.hosts:
        if host.vms:
            parts += [Text(), Text(f"on {host.name}"), _vms(host.vms)]
    last = lab.hosts[-1].name
    at = f"--at {shown(lab.at)}"
    parts += [
        *(Text(), Text("Try:")),
        Text(f"  vmferry lab exec manager {at} -- virsh -c qemu+tcp://{last}/system list"),
        Text(f"  vmferry lab link {last} {at} --rate 100mbit"),
    ]
    return Group(*parts)


def _link(state: LinkState) -> str:
    carries = f"at most {state.rate}" if state.rate else "whole"
    return f"cut ({state.cut})" if state.cut else carries


def _facts() -> Table:
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(no_wrap=True, style="dim")
    facts.add_column(overflow="fold")
    return facts


def _vms(vms: Sequence[LabVm]) -> RenderableType:
    made = table("vm", "state", "writes acknowledged", "disks", right=("writes acknowledged",))
    for vm in vms:
        made.add_row(
            Text(shown(vm.name)),
            "running" if vm.running else "shut off",
            str(vm.acknowledged),
            Text("\n".join(shown(disk) for disk in vm.disks)),
        )
    return made


def _try(lab: LabStatus) -> str:
    return f"  vmferry --connect '{lab.uri}' migrate-storage {lab.vms[0].name} --path {lab.storages[1]}"
