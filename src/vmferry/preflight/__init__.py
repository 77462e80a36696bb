"""Everything that could stop a job, found before the VM is touched, all at once, each with its cure."""

from vmferry.preflight.planning import plan

__all__ = ["plan"]
