"""The passphrases of a lab's encrypted disks: one secret in the lab's libvirtd for each disk."""

from __future__ import annotations

import uuid
from contextlib import suppress

import libvirt
from lxml import etree
from lxml.builder import E  # type: ignore[import-not-found]  # lxml-stubs has none for it

PASSPHRASE = "open sesame"
KEY = "lab-key"
QEMU_IMG_KEY = ("--object", f"secret,id={KEY},data={PASSPHRASE}")
"""What qemu-img is told besides, for an image whose key-secret is KEY."""


def secret_of(guest_uuid: str, target: str) -> str:
    """Return the UUID of the libvirt secret of one guest's disk."""
    return str(uuid.uuid5(uuid.UUID(guest_uuid), target))


def define_secret(connection: libvirt.virConnect, secret_uuid: str) -> None:
    xml = E.secret(E.uuid(secret_uuid), E.description("a lab guest's disk"), ephemeral="no", private="yes")
    connection.secretDefineXML(etree.tostring(xml, encoding="unicode"), 0).setValue(PASSPHRASE.encode(), 0)


def forget_secret(connection: libvirt.virConnect, secret_uuid: str) -> None:
    """Remove a secret from libvirtd; no error if it is gone already."""
    with suppress(libvirt.libvirtError):
        connection.secretLookupByUUIDString(secret_uuid).undefine()
