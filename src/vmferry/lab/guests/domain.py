"""The domain XML of a lab guest: plain, as a person would define it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lxml import etree
from lxml.builder import E  # type: ignore[import-not-found]  # lxml-stubs has none for it

from vmferry.lab.guests.boot import Boot
from vmferry.lab.guests.disks import DiskSpec
from vmferry.lab.guests.secrets import secret_of
from vmferry.lab.hosts.confined import CONFINED

CONSOLE, COMMANDS = "console.log", "commands"
OVMF_CODE = "/usr/share/OVMF/OVMF_CODE_4M.fd"
OVMF_VARS = "/usr/share/OVMF/OVMF_VARS_4M.fd"
LEAST_UEFI_MIB = 256  # with 128 OVMF gives up before the kernel starts


@dataclass(frozen=True)
class GuestSpec:
    """A guest to make. `rate` is in writes per second and disk; 0 means as many as it can."""

    name: str
    disks: tuple[DiskSpec, ...] = (DiskSpec("vda"), DiskSpec("vdb", format="raw"))
    memory_mib: int = 128
    vcpus: int = 1
    rate: int = 50
    erase_one_in: int = 0  # of so many acts one zeroes or discards blocks; needs disks with `discard`
    touch_mib: int = 0  # memory filled with what does not compress; a bare guest's with what its first disk has
    dirty_mib_s: int = 0  # and rewritten at this rate; needs touch_mib
    persistent: bool = True
    machine: str = "q35"
    uefi: bool = False
    tpm: bool = False
    cdrom: Path | None = None
    bare: bool = False  # without an operating system: see lab/guests/bare.py, which makes such specs
    agent: bool = False  # the real guest agent answers; a disk with `file_system` gives it something to freeze
    confined: bool = False  # its QEMU may not write what lay below its disks when it was started: lab/hosts/confined.py

    @property
    def stamped(self) -> tuple[DiskSpec, ...]:
        """The disks on which the guest stamps its writes."""
        return tuple(disk for disk in self.disks if not disk.file_system and not disk.lease)


@dataclass(frozen=True)
class GuestFiles:
    """The places of a guest's files: its console and commands, and the image of each disk as it was made.

    `inside` is the folder as QEMU sees it; in a lab of several hosts that is one path on all of them.
    """

    uuid: str
    folder: Path
    images: Mapping[str, Path]
    inside: Path | None = None

    @property
    def console(self) -> Path:
        return self.folder / CONSOLE

    @property
    def commands(self) -> Path:
        """The path of the command pipes, `.in` and `.out`; a socket would be unlinked by the QEMU that ends last."""
        return self.folder / COMMANDS

    @property
    def nvram(self) -> Path:
        """The file of the UEFI variables, beside the first disk and not in libvirt's own folder."""
        return next(iter(self.images.values())).parent / "nvram.fd"


def domain_xml(spec: GuestSpec, place: GuestFiles, boot: Boot) -> str:
    """Return the domain XML, to be defined or created as it is."""
    domain = E.domain(
        E.name(spec.name),
        E.uuid(place.uuid),
        E.memory(str(max(spec.memory_mib, LEAST_UEFI_MIB if spec.uefi else 0)), unit="MiB"),
        E.vcpu(str(spec.vcpus)),
        _os(spec, place, boot),
        E.features(E.acpi(), E.apic()),
        *_cpu(spec, boot),
        E.clock(E.timer(name="rtc", tickpolicy="catchup"), offset="utc"),
        E.on_poweroff("destroy"),
        E.on_reboot("restart"),
        E.on_crash("destroy"),
        _devices(spec, place),
        type="kvm" if boot.accelerator == "kvm" else "qemu",
    )
    return etree.tostring(domain, encoding="unicode", pretty_print=True)


def _cpu(spec: GuestSpec, boot: Boot) -> list[etree._Element]:
    if spec.bare:
        return []  # QEMU's own default: host-model asks for what a KVM that emulates it does not have
    if boot.accelerator == "kvm":
        return [E.cpu(mode="host-model")]
    # qemu64 is the model that is up soonest under tcg, and any host can take it over.
    return [E.cpu(E.model("qemu64"), mode="custom")]


def _os(spec: GuestSpec, place: GuestFiles, boot: Boot) -> etree._Element:
    regions = ",".join(f"{d.target}:{d.region[0]}:{d.region[1]}" for d in spec.stamped)
    command_line = f"lab.write={regions} lab.rate={spec.rate} lab.touch={spec.touch_mib} lab.dirty={spec.dirty_mib_s}"
    command_line += "".join(f" lab.fs={d.target}" for d in spec.disks if d.file_system)
    command_line += "".join(f" lab.lease={d.target}" for d in spec.disks if d.lease)
    command_line += f"{' lab.agent' if spec.agent else ''} lab.erase={spec.erase_one_in} lab.channel"
    os_: etree._Element = E.os(E.type("hvm", arch="x86_64", machine=spec.machine))
    if spec.uefi:
        os_.append(E.loader(OVMF_CODE, readonly="yes", type="pflash"))
        os_.append(E.nvram(str(place.nvram), template=OVMF_VARS))
    os_.append(E.kernel(str(boot.kernel)))
    if boot.initrd:
        os_.append(E.initrd(str(boot.initrd)))
    os_.append(E.cmdline(f"{boot.options} {command_line}"))
    return os_


def _devices(spec: GuestSpec, place: GuestFiles) -> etree._Element:
    emulator = CONFINED if spec.confined else "/usr/bin/qemu-system-x86_64"
    devices: etree._Element = E.devices(E.emulator(emulator))
    devices.extend(_disk(disk, place) for disk in spec.disks)
    if spec.cdrom:
        devices.append(_cdrom(spec.cdrom))
    if any(disk.bus == "scsi" for disk in spec.disks):
        devices.append(E.controller(type="scsi", index="0", model="virtio-scsi"))
    devices.append(E.controller(type="usb", model="none"))
    inside = place.inside or place.folder
    devices.append(E.serial(E.source(path=str(inside / CONSOLE), append="on"), E.target(port="0"), type="file"))
    if not spec.bare:
        devices.append(_channel(inside / CONSOLE))
    devices.append(E.serial(E.source(path=str(inside / COMMANDS)), E.target(port="1"), type="pipe"))
    if spec.agent:
        devices.append(E.channel(E.target(type="virtio", name="org.qemu.guest_agent.0"), type="unix"))
    if spec.tpm:
        devices.append(E.tpm(E.backend(type="emulator", version="2.0"), model="tpm-crb"))
    return devices


def _disk(spec: DiskSpec, place: GuestFiles) -> etree._Element:
    disk: etree._Element = E.disk(
        E.driver(name="qemu", type=spec.format, cache=spec.cache, **({"discard": "unmap"} if spec.discard else {})),
        E.source(file=str(place.images[spec.target])),
        E.target(dev=spec.target, bus=spec.bus),
        type="file",
        device="disk",
    )
    if spec.lease:
        disk.append(E.shareable())  # else QEMU's lock would keep a second copy off
    if spec.encrypted:
        secret = E.secret(type="passphrase", uuid=secret_of(place.uuid, spec.target))
        disk.append(E.encryption(secret, format="luks"))
    return disk


def _channel(console: Path) -> etree._Element:
    """Return the virtio channel for the guest's messages; on the serial port each byte costs QEMU a write."""
    channel: etree._Element = E.channel(
        E.source(path=str(console), append="on"),
        E.target(type="virtio", name="vmferry.lab.guests.console"),
        E.address(type="virtio-serial", controller="0", bus="0", port="1"),
        type="file",
    )
    return channel


def _cdrom(image: Path) -> etree._Element:
    disk: etree._Element = E.disk(
        E.driver(name="qemu", type="raw"),
        E.source(file=str(image)),
        E.target(dev="sdz", bus="sata"),
        E.readonly(),
        type="file",
        device="cdrom",
    )
    return disk
