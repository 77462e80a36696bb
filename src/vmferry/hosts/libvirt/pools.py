"""libvirt's storage pools: what they list is what was there when they were last looked at."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import libvirt

from vmferry.hosts.libvirt import domain_xml


def refresh(conn: libvirt.virConnect, folders: Collection[Path]) -> None:
    """Refresh the active storage pools over these folders. One that cannot be refreshed lists what it did before."""
    wanted = {folder.resolve() for folder in folders}
    for pool in conn.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
        with suppress(libvirt.libvirtError):
            root = domain_xml.parse(pool.XMLDesc(0))
            at = root.findtext("./target/path", "").strip()
            if at and root.get("type") in ("dir", "fs", "netfs") and Path(at).resolve() in wanted:
                pool.refresh(0)
