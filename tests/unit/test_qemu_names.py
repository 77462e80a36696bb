"""Volumes have one name here, however QEMU and libvirt write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lxml import etree

from vmferry.hosts.libvirt import domain_xml
from vmferry.model import Placed, Url, Where
from vmferry.qemu.names import canonical, identity_of, network_source, qemu_name, url_of, where_named, whoever_asks

URLS = (
    "nbd://host/export",
    "nbd://host:10810/a%20b",
    "nbd://[fe80::1]:10810/",
    "nbd+unix:///disk?socket=/run/a.sock",
    "iscsi://10.0.0.1/iqn.2026-11.org.example:san/1",
    "iscsi://san:3270/iqn.2026-11.org.example:san/12",
    "nfs://filer/export/vm%20s/web.img?uid=64055&gid=0",
    "nfs://filer/export/web.img",
)


@pytest.mark.parametrize("url", URLS)
def test_a_url_survives_libvirts_xml_and_is_written_in_one_way(url: str) -> None:
    assert canonical(Url(url)) == Url(url)
    assert url_of(network_source(Url(url))) == Url(url)


@pytest.mark.parametrize(
    ("url", "same"),
    [("nbd://host:10809/export", "nbd://host/export"), ("iscsi://san:3260/iqn.x:y/1", "iscsi://san/iqn.x:y/1")],
)
def test_the_port_of_the_protocol_is_left_out(url: str, same: str) -> None:
    assert canonical(Url(url)) == Url(same)


@pytest.mark.parametrize(
    "url",
    ["nfs://host", "nfs://h/a?uid=0", "nfs://h:1/a", "http://h/a", "nbd+unix:///x", "iscsi://host/target", "nbd:///x"],
)
def test_another_url_is_refused_with_what_to_write(url: str) -> None:
    with pytest.raises(ValueError, match=r"nbd|nfs|iscsi"):
        canonical(Url(url))


@pytest.mark.parametrize("where", [Path("/dev/sdx"), *map(Url, URLS)], ids=str)
@pytest.mark.parametrize("slice_bytes", [None, 1 << 30])
def test_a_name_in_an_images_header_means_the_same_place(where: Where, slice_bytes: int | None) -> None:
    assert where_named(qemu_name(Placed(where, "raw", slice_bytes))) == (where, slice_bytes)


@pytest.mark.parametrize("driver", [{}, {"driver": "raw"}])
def test_a_name_that_libvirt_has_wrapped_means_the_same_place(driver: dict[str, str]) -> None:
    inner = json.loads(qemu_name(Placed(Url(URLS[4]), "raw", 1 << 20)).removeprefix("json:"))
    assert where_named("json:" + json.dumps({"file": inner, **driver})) == (Url(URLS[4]), 1 << 20)


def test_who_asks_does_not_make_another_file() -> None:
    asked = Url("nfs://filer/export/web.img?uid=1&gid=2")
    assert whoever_asks(asked) == Url("nfs://filer/export/web.img")
    assert identity_of(asked) == (1, 2)


def test_a_part_of_a_volume_begins_at_its_beginning() -> None:
    other = {"driver": "raw", "offset": 4096, "size": 4096, "file": {"driver": "file", "filename": "/a"}}
    with pytest.raises(ValueError, match="raw"):
        where_named("json:" + json.dumps(other))


DISK = """<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/>
<source file='/a.qcow2' index='3'><encryption format='luks'/></source>
<backingStore type='network' index='7'><format type='raw'/><source protocol='nbd' name='x'><host name='h' port='10809'/>
</source></backingStore><target dev='vda' bus='virtio'/></disk>"""


@pytest.mark.parametrize(
    "placed",
    [
        Placed(Path("/b.img"), "raw"),
        Placed(Url("nbd://h/x"), "raw"),
        Placed(Url("iscsi://h/iqn.a:b/1"), "raw", 1 << 20),
    ],
    ids=str,
)
def test_a_disk_that_is_placed_says_so(placed: Placed) -> None:
    disk = domain_xml.parse(DISK)
    domain_xml.place(disk, placed)
    assert domain_xml.placed_of(disk) == placed
    assert disk.find("backingStore") is None
    assert disk.find("source/encryption") is not None
    domain_xml.place(disk, Placed(Path("/c.img"), "raw"))
    assert domain_xml.placed_of(disk) == Placed(Path("/c.img"), "raw")
    assert etree.tostring(disk).count(b"<host") == 0


def test_an_image_below_is_found_by_where_it_lies() -> None:
    disk = domain_xml.parse(DISK)
    assert domain_xml.index_of(disk, Url("nbd://h/x")) == "vda[7]"
    assert domain_xml.index_of(disk, Url("nbd://h/y")) is None
