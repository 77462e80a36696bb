"""Pages about CPUs, for people."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from vmferry.cli.render.plan_page import finding_lines
from vmferry.cli.render.screen import fact_grid, shown
from vmferry.model.processors import Cpu, CpuBaseline, CpuCheck, CpuLimited, VmNeeds


def check_page(check: CpuCheck) -> RenderableType:
    """Return the page of a CPU check: verdict, findings with their cures, and missing features."""
    name, host = shown(check.needs.vm), shown(check.host)
    how = "as it runs now" if check.needs.running else "when it is started"
    if check.possible:
        head = Text(f"{host} can run {name} {how}", style="bold green")
    else:
        head = Text(f"{host} cannot run {name} {how}", style="bold red")
    facts = [("CPU", _cpu_of(check.needs)), ("machine", shown(check.needs.machine) or "none")]
    if check.missing:
        facts.append(("missing", shown(" ".join(check.missing))))
    return Group(head, *finding_lines(check.findings), fact_grid(*facts))


def baseline_page(baseline: CpuBaseline) -> RenderableType:
    """Return the page of a CPU baseline: hosts, guests, model and features."""
    return fact_grid(
        ("hosts", shown(", ".join(baseline.hosts))),
        ("guests", shown(baseline.guests)),
        ("model", _named(baseline.cpu)),
        ("features", shown(" ".join(baseline.cpu.features))),
    )


def limited_page(limited: CpuLimited) -> RenderableType:
    """Return the page of a VM's changed CPU limit: what changed, and from when on."""
    name, to = shown(limited.vm), shown(limited.to)
    back = f"{name} has the CPU back that it had" if limited.changed else f"{name} was not limited"
    head = back if limited.to == "none" else f"{name} is limited to {to}"
    facts = [(word, shown(" ".join(names))) for word, names in _changes(limited) if names]
    lines: list[RenderableType] = [Text(head, style="bold")]
    if limited.waits:
        wait = "it keeps its present CPU until it is shut down and started; a reboot in the guest is not enough"
        lines.append(Text(wait, style="yellow"))
    return Group(*lines, fact_grid(*facts))


def _changes(limited: CpuLimited) -> tuple[tuple[str, tuple[str, ...]], ...]:
    model = (_named(limited.cpu),) if limited.cpu.model else ()
    return ("model", model), ("loses", limited.loses), ("gains", limited.gains)


def _cpu_of(needs: VmNeeds) -> str:
    parts = [_named(needs.cpu) or shown(needs.mode), str(len(needs.cpu.features)), "features"]
    limited = f", limited to {shown(needs.limited_to)}" if needs.limited_to else ""
    return " ".join(parts) + limited if needs.cpu.features else shown(needs.mode) + limited


def _named(cpu: Cpu) -> str:
    return shown(f"{cpu.model} ({cpu.vendor})" if cpu.vendor else cpu.model)
