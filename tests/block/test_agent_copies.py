"""A disk on its way between two hosts: read over NBD with TLS, with the agents' own certificates, by who writes it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.support.nbd_servers import nbd_on_port
from tests.support.realm import Realm

from vmferry.authority import Role, TlsFolder
from vmferry.errors import VmferryError
from vmferry.hosts.fence import Fence
from vmferry.hosts.interface import Host
from vmferry.hosts.libvirt.driver import LibvirtHosts
from vmferry.hosts.remote.driver import RemoteHost
from vmferry.model import FencingToken
from vmferry.transfer import Place, Transfer, Unwatched

JOB = "abcd2345"
SIZE = 24 << 20


class Two:
    """A disk on host1, and host2 whose agent is asked to fetch it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.realm = Realm(folder / "realm")
        self.source_tls, self.issued = self.realm.certificate("host1", Role.AGENT)
        self.served = self.realm.serve("host2", LibvirtHosts(Fence(folder)), "test:///default")
        self.link = self.realm.link(self.served)
        self.disk = folder / "disk.img"
        self.disk.write_bytes(os.urandom(SIZE // 2) + bytes(SIZE // 2))
        self.part = folder / f"disk.img.vmferry-{JOB}.part"

    @property
    def host(self) -> Host:
        return RemoteHost(self.link, FencingToken(JOB, 1))

    def export(self, tls: TlsFolder) -> tuple[str, ...]:
        """qemu-nbd's options: only who has a certificate of the authority may read."""
        return ("--tls-creds", "tls0", "--object", _credentials(tls), "-r", "-f", "raw")

    def fetch(self, url: str, tls: TlsFolder | None = None) -> Transfer[Path | Place, Path | Place]:
        """The agent is in this process, and its confinement is not: so it is told where its own certificates lie."""
        mine = tls or TlsFolder(self.served.state)
        there = Place(str(self.part))
        return Transfer(Place(url, tls=mine.path), there, Path(f"/manager/bookmarks/{JOB}/disk.bookmarks"))


def _credentials(tls: TlsFolder) -> str:
    return f"tls-creds-x509,id=tls0,endpoint=server,dir={tls.path},verify-peer=yes"


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Two]:
    made = Two(tmp_path)
    yield made
    made.link.close()
    made.realm.close()


def test_the_agent_that_writes_a_disk_fetches_it_from_the_other_host(two: Two) -> None:
    with nbd_on_port(two.disk, two.folder, *two.export(two.source_tls), scheme="nbds") as url:
        copied = two.host.copy(two.fetch(url), Unwatched())
        compared = two.host.compare(two.fetch(url), Unwatched())
    assert two.part.read_bytes() == two.disk.read_bytes()
    assert copied.root_hash == compared.root_hash
    assert (two.served.state / "bookmarks" / JOB / "disk.bookmarks").exists()
    two.host.drop(two.fetch("nbds://127.0.0.1:1/"))
    assert not two.part.exists()


def test_nobody_without_a_certificate_of_the_authority_reads_the_disk(two: Two) -> None:
    stranger, _ = Realm(two.folder / "other").certificate("host2", Role.AGENT)
    with nbd_on_port(two.disk, two.folder, *two.export(two.source_tls), scheme="nbds") as url:
        with pytest.raises(VmferryError):
            two.host.copy(two.fetch(url, stranger), Unwatched())
        with pytest.raises(VmferryError):
            two.host.copy(Transfer(Place(url.replace("nbds", "nbd")), two.part, two.fetch(url).bookmarks), Unwatched())
    assert not two.part.exists() or not any(two.part.read_bytes())


def test_a_revoked_host_serves_no_disk_and_reads_none(two: Two) -> None:
    two.realm.revoked[two.issued.serial] = datetime.now(UTC)
    TlsFolder(two.served.state).set_revocations(two.realm.revocations())
    with (
        nbd_on_port(two.disk, two.folder, *two.export(two.source_tls), scheme="nbds") as url,
        pytest.raises(VmferryError),
    ):
        two.host.copy(two.fetch(url), Unwatched())


def test_a_host_that_was_revoked_is_refused_by_the_one_that_serves(two: Two) -> None:
    two.realm.revoked[TlsFolder(two.served.state).certificate().serial_number] = datetime.now(UTC)
    two.source_tls.set_revocations(two.realm.revocations())
    with (
        nbd_on_port(two.disk, two.folder, *two.export(two.source_tls), scheme="nbds") as url,
        pytest.raises(VmferryError),
    ):
        two.host.copy(two.fetch(url), Unwatched())


def test_a_large_file_is_copied_at_full_speed_through_its_agent(two: Two) -> None:
    """More than is granted in advance at once, so that grants are renewed on the way."""
    large = two.folder / "large.img"
    with large.open("wb") as file:
        file.truncate(3 << 30)
        for at in range(0, 3 << 30, 512 << 20):
            file.seek(at)
            file.write(os.urandom(1 << 20))
    transfer = Transfer(large, two.part, Path(f"/manager/bookmarks/{JOB}/large.bookmarks"))
    copied = two.host.copy(transfer, Unwatched())
    assert copied.virtual_bytes == 3 << 30
    assert two.host.compare(transfer, Unwatched()).recopied_chunks == 0
