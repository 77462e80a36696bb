"""Refreshes libvirt's storage pools over the folders that a job has used."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from vmferry.errors import VmferryError
from vmferry.hosts.interface import Host
from vmferry.migration.steps.step import Job
from vmferry.model import Where


def refresh(job: Job) -> None:
    """Let libvirt's pools see what has come and gone. This is no part of the move: its failures are ignored."""
    _refresh(job.host, (image.source for image in job.plan.images if not image.from_volume))
    _refresh(job.there, (image.destination for image in job.plan.images if not image.to_volume))


def _refresh(host: Host, images: Iterable[Where]) -> None:
    folders = sorted({image.parent for image in images if isinstance(image, Path)})
    with suppress(VmferryError):
        host.refresh_pools(folders)
