"""Notices, the lab, and the command with its worker."""

from __future__ import annotations

from vmferry.errors.base import UsageError, VmferryError

# -- notices


class NotTold(VmferryError):
    """One try to deliver a notice has failed; it is tried again, and nothing else suffers from it."""

    says = "{to} was not told: {reason}"


# -- the lab


class LabNeeds(UsageError):
    says = "the lab needs {missing}: {cure}"


class LabRunning(UsageError):
    says = "a lab already runs at {at}: use it, or end it first with `vmferry lab down --at {at}`"


class NoLab(UsageError):
    says = "no lab runs at {at}: `vmferry lab up --at {at}` starts one"


class LabPlaceUnfit(UsageError):
    says = "{at} cannot hold a lab ({reason}): choose another folder with --at"


class NoSuchLabHost(UsageError):
    says = "the lab has no host {host}: it has {present}"


class LabLinkUnfit(UsageError):
    says = "the link of {link} cannot be shaped like this: {reason}"


class LabLate(VmferryError):
    says = "waited {deadline_s} s in vain for {what}: {evidence}"


class LabProgramFailed(VmferryError):
    says = "{program} failed in the lab: {reason}"


# -- the command, its worker and the API between them


class StateUnusable(UsageError):
    says = "the state {state} cannot be used ({reason}): choose another with --state or VMFERRY_STATE"


class BadRequest(UsageError):
    says = "the request is wrong: {reason}"


class Unforeseen(VmferryError):
    says = "vmferry met something that nobody foresaw ({reason}): the worker's log {log} has the details"
