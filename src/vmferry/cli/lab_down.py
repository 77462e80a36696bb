"""vmferry lab down: end the private host."""

from __future__ import annotations

from vmferry.cli.lab import At


def lab_down(*, at: At = None) -> None:
    """End the lab and remove all of it."""
    from vmferry.lab import commands
    from vmferry.lab.hosts.host import DEFAULT_PLACE

    commands.down(at or DEFAULT_PLACE)
    print("the lab is gone")
