"""Who must not get in does not: over real TLS, with raw sockets where a client library would be too polite."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event

import httpx
import pytest
from tests.support.realm import LOOPBACK, Realm, Served
from tests.support.worlds import SOURCE, UUID, make_world

from vmferry.agent import host_routes, listening
from vmferry.agent.error_responses import LARGEST_BODY
from vmferry.authority import Role, TlsFolder, client_context, tls_name
from vmferry.errors import (
    AgentVersionMismatch,
    BadRequest,
    BadXml,
    HostUnreachable,
    PeerRefused,
    RequestTooLarge,
    UsageError,
)
from vmferry.hosts.libvirt import domain_xml
from vmferry.hosts.remote import client as agent_link
from vmferry.hosts.remote.driver import RemoteHost
from vmferry.hosts.simulator.driver import InMemory, SimulatedHost, SimulatedHosts, World
from vmferry.hosts.wire import PROTOCOL
from vmferry.lab.programs import wait_for
from vmferry.model import FencingToken, Power

DEADLINE_S = 30


class Site:
    def __init__(self, folder: Path) -> None:
        self.world: World = make_world()
        self.realm = Realm(folder / "realm")
        self.served: Served = self.realm.serve("host1", SimulatedHosts(InMemory(self.world)))
        self.folder = folder

    def suspend(self, tls: TlsFolder) -> None:
        """An act that must not happen."""
        link = self.realm.link(self.served, tls)
        try:
            RemoteHost(link, FencingToken("abcd2345", 1)).suspend(UUID)
        finally:
            link.close()

    @property
    def untouched(self) -> bool:
        return self.world.machines[UUID].power is Power.RUNNING

    @property
    def works(self) -> bool:
        """It still answers who may ask."""
        link = self.realm.link(self.served)
        try:
            return RemoteHost(link).exists(SOURCE / "guest-a.img")
        finally:
            link.close()

    @property
    def manager(self) -> TlsFolder:
        self.realm.link(self.served).close()
        return TlsFolder(self.realm.folder / "manager")

    def http(self, headers: dict[str, str] | None = None) -> httpx.Client:
        told = {"vmferry-protocol": str(PROTOCOL)} | (headers or {})
        context = client_context(self.manager.path)
        return httpx.Client(verify=context, base_url=f"https://{self.served.address}", headers=told, timeout=DEADLINE_S)

    def raw(self, context: ssl.SSLContext | None = None) -> ssl.SSLSocket:
        host, _, port = self.served.address.rpartition(":")
        plain = socket.create_connection((host, int(port)), DEADLINE_S)
        used = context or client_context(self.manager.path)
        return used.wrap_socket(plain, server_hostname=tls_name(Role.AGENT, "host1"))


SNI = {"sni_hostname": tls_name(Role.AGENT, "host1")}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.realm.close()


# -- certificates


def test_a_certificate_of_another_authority_is_refused_by_both_sides(site: Site) -> None:
    other = Realm(site.folder / "other")
    theirs, _ = other.certificate("manager", Role.MANAGER)
    with pytest.raises(HostUnreachable):
        site.suspend(theirs)
    assert site.untouched
    assert site.works


def test_a_client_of_another_authority_does_not_get_through_the_handshake_even_if_it_trusts_us(site: Site) -> None:
    other, _ = Realm(site.folder / "other").certificate("manager", Role.MANAGER)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(other.path / "client-cert.pem", other.path / "client-key.pem")
    _refused_before_http(site, context)


def test_no_certificate_no_answer(site: Site) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _refused_before_http(site, context)


def test_tls_before_1_3_is_refused(site: Site) -> None:
    context = client_context(site.manager.path)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        site.raw(context)


def _refused_before_http(site: Site, context: ssl.SSLContext) -> None:
    """TLS 1.3 tells a client of that with its first read."""
    with pytest.raises(OSError), site.raw(context) as tls:
        tls.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = tls.recv(100)
        assert answer == b""
        raise ConnectionResetError
    assert site.works


def test_an_expired_certificate_is_refused(site: Site) -> None:
    expired, _ = site.realm.certificate("old", Role.MANAGER, timedelta(seconds=-1))
    with pytest.raises(HostUnreachable):
        site.suspend(expired)
    assert site.untouched


def test_a_certificate_that_expires_on_an_open_connection_is_refused_at_its_next_request(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = site.realm.link(site.served)
    assert RemoteHost(link).exists(SOURCE / "guest-a.img")
    later = datetime.now(UTC) + timedelta(days=91)
    monkeypatch.setattr("vmferry.agent.peer_policy.time.time", later.timestamp)
    with pytest.raises(PeerRefused, match="has expired"):
        RemoteHost(link).exists(SOURCE / "guest-a.img")
    link.close()


def test_a_revoked_manager_is_refused_at_once_also_on_an_open_connection(site: Site) -> None:
    tls, issued = site.realm.certificate("second", Role.MANAGER)
    link = site.realm.link(site.served, tls)
    assert RemoteHost(link).exists(SOURCE / "guest-a.img")
    site.realm.revoked[issued.serial] = datetime.now(UTC)
    site.realm.link(site.served).ask("PUT", "revocations", {"revocations": site.realm.revocations().decode()})
    with pytest.raises(PeerRefused, match="manager second was revoked"):
        RemoteHost(link).exists(SOURCE / "guest-a.img")
    link.close()
    with pytest.raises(PeerRefused, match="manager second was revoked"):
        site.suspend(tls)
    assert site.untouched
    assert site.works


def test_an_older_list_of_revocations_does_not_bring_anybody_back(site: Site) -> None:
    _, issued = site.realm.certificate("second", Role.MANAGER)
    before = site.realm.revocations()
    site.realm.revoked[issued.serial] = datetime.now(UTC)
    link = site.realm.link(site.served)
    link.ask("PUT", "revocations", {"revocations": site.realm.revocations().decode()})
    other = Realm(site.folder / "other")
    other.revoked = {1: datetime.now(UTC), 2: datetime.now(UTC)}
    for refused in (before, other.revocations(), b"no list"):
        with pytest.raises(BadRequest, match="the list cannot be used"):
            link.ask("PUT", "revocations", {"revocations": refused.decode()})
    link.close()


def test_an_agent_may_not_act_on_another_agents_host(site: Site) -> None:
    agent, _ = site.realm.certificate("host2", Role.AGENT)
    with pytest.raises(PeerRefused, match="agent host2 may not ask for that"):
        site.suspend(agent)
    assert site.untouched
    link = site.realm.link(site.served, agent)
    assert link.ask("GET", "peer/about")["name"] == "host1"
    for path in ("storages", "about"):
        with pytest.raises(PeerRefused):
            link.ask("GET", path)
    link.close()


def test_a_manager_cannot_pass_for_an_agent(site: Site) -> None:
    """Whoever listens with a manager's certificate is not believed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(site.manager.path / "client-cert.pem", site.manager.path / "client-key.pem")
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(context, client_context(site.manager.path), tls_name(Role.AGENT, "host1"))


def test_one_agent_cannot_pass_for_another(site: Site) -> None:
    site.realm.certificate("host2", Role.AGENT)
    site.served.name = "host2"
    link = site.realm.link(site.served)
    with pytest.raises(PeerRefused, match="host2"):
        RemoteHost(link).vms()
    link.close()


def test_a_revoked_agent_is_not_believed(site: Site) -> None:
    serial = TlsFolder(site.served.state).certificate().serial_number
    site.realm.revoked[serial] = datetime.now(UTC)
    site.manager.set_revocations(site.realm.revocations())
    with pytest.raises(PeerRefused, match="revoked"):
        site.suspend(site.manager)
    assert site.untouched


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """In memory, until one side refuses the other."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = client.wrap_bio(to_client, to_server, server_hostname=name)
    there = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (here, there):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue


# -- requests


@pytest.mark.parametrize(("theirs", "older"), [("0", "the manager"), ("99", "host1"), ("x", "the manager")])
def test_a_manager_of_another_version_is_told_which_one_to_upgrade(
    site: Site, theirs: str, older: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site.http({"vmferry-protocol": theirs}) as http:
        reply = http.get("/v1/about", extensions=SNI)
        assert reply.status_code == 426
        assert reply.json()["kind"] == "AgentVersionMismatch"
        assert older in reply.json()["sentence"]
    if theirs.isdecimal():
        monkeypatch.setattr(agent_link, "PROTOCOL", int(theirs))
        with pytest.raises(AgentVersionMismatch, match=f"this side {theirs}.*on {older}"):
            site.suspend(site.manager)
        assert site.untouched


def test_a_request_without_a_version_is_refused(site: Site) -> None:
    context = client_context(site.manager.path)
    with httpx.Client(verify=context, base_url=f"https://{site.served.address}") as http:
        assert http.get("/v1/about", extensions=SNI).status_code == 426


@pytest.mark.parametrize("chunked", [False, True])
def test_an_oversized_body_is_refused_before_it_is_read_whole(site: Site, *, chunked: bool) -> None:
    piece = b"x" * (64 << 10)
    sent = 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(64 * LARGEST_BODY // len(piece)):
            sent += len(piece)
            yield piece

    headers = {} if chunked else {"content-length": str(64 * LARGEST_BODY)}
    with site.http(headers) as http:
        try:
            reply = http.post("/v1/host/vm", content=body(), extensions=SNI)
            assert reply.status_code == 413
            assert reply.json()["kind"] == RequestTooLarge.__name__
        except httpx.TransportError:
            pass  # it closed the connection while we were still sending
    assert sent < 32 * LARGEST_BODY
    assert site.works


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[" * 100_000,
        b'{"token": null, "arguments": {}}',
        b'{"token": null, "arguments": {"name": "a", "more": 1}}',
        b'{"token": null, "arguments": {"name": {"deep": []}}}',
        b'{"token": {"job": "", "epoch": -1}, "arguments": {"name": "a"}}',
        b'{"arguments": {"name": "\xff"}}',
    ],
)
def test_a_body_that_makes_no_sense_is_a_bad_request(site: Site, body: bytes) -> None:
    with site.http() as http:
        reply = http.post("/v1/host/vm", content=body, extensions=SNI)
        assert reply.status_code in (400, 422), reply.text
        assert reply.json()["kind"] == "BadRequest"
    assert site.works


@pytest.mark.parametrize("method", ["__init__", "call", "admit", "_lookup", "..", "vm/../about", "name"])
def test_only_methods_of_the_protocol_can_be_called(site: Site, method: str) -> None:
    with site.http() as http:
        reply = http.post(f"/v1/host/{method}", json={"token": None, "arguments": {}}, extensions=SNI)
        assert reply.status_code in (400, 403, 404, 405)


def test_an_act_without_a_token_is_refused(site: Site) -> None:
    with site.http() as http:
        reply = http.post("/v1/host/suspend", json={"token": None, "arguments": {"uuid": UUID}}, extensions=SNI)
        assert reply.status_code == 400
    assert site.untouched


# -- answers


@pytest.mark.parametrize(
    ("method", "token", "arguments"),
    [
        ("exists", None, {"path": "/san1/guest-a.img"}),
        ("remove", {"job": "abcd2345", "epoch": 1}, {"path": "/san1/no.img"}),
    ],
)
def test_what_ends_at_once_is_answered_whole_and_what_takes_longer_says_so_meanwhile(
    site: Site, monkeypatch: pytest.MonkeyPatch, method: str, token: object, arguments: dict[str, str]
) -> None:
    go_on, quickly = Event(), getattr(SimulatedHost, method)

    def slowly(self: SimulatedHost, path: Path) -> object:
        assert go_on.wait(DEADLINE_S)
        return quickly(self, path)

    url, body = f"/v1/host/{method}", {"token": token, "arguments": arguments}
    with site.http() as http:
        whole = http.post(url, json=body, extensions=SNI)
        assert whole.headers["content-length"] == str(len(whole.content))
        assert [*json.loads(whole.text)] == ["answer"]
        monkeypatch.setattr(host_routes, "ALIVE_S", 0.05)
        monkeypatch.setattr(SimulatedHost, method, slowly)
        with http.stream("POST", url, json=body, extensions=SNI) as reply:
            lines = reply.iter_lines()
            assert [json.loads(next(lines)) for _ in range(2)] == [{}, {}]
            go_on.set()
            assert "answer" in [json.loads(line) for line in lines][-1]


# -- slow clients


@pytest.mark.slow
def test_a_client_that_is_slow_with_its_request_is_cut_off(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "REQUEST_S", 0.5)
    for began in (b"", b"GET /healthz HTTP/1.1\r\nX-", b"POST /v1/host/vm HTTP/1.1\r\nContent-Length: 99\r\n\r\n{"):
        with site.raw() as tls:
            tls.sendall(began)
            assert _cut_off(tls, byte_by_byte=True)
    assert site.works


def test_a_connection_that_was_used_is_cut_off_too(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "REQUEST_S", 0.5)
    with site.raw() as tls:
        tls.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" in tls.recv(65536)
        tls.sendall(b"GET /healthz HTTP/1.1\r\n")
        assert _cut_off(tls, byte_by_byte=True)


@pytest.mark.slow
def test_a_client_that_never_ends_its_handshake_is_cut_off(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    host, _, port = site.served.address.rpartition(":")
    with socket.create_connection((host, int(port)), DEADLINE_S) as plain:
        plain.sendall(b"\x16\x03\x01")
        plain.settimeout(listening.HANDSHAKE_S * 6)
        assert _gone(plain)
    assert site.works


def test_many_idle_connections_keep_nobody_out(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "MOST_CONNECTIONS", 8)
    opened = [site.raw() for _ in range(12)]
    try:
        wait_for(lambda: sum(_closed(tls) for tls in opened) >= 4, "the last ones to be turned away", DEADLINE_S)
    finally:
        for tls in opened:
            tls.close()
    wait_for(lambda: _works(site), "it to answer again", DEADLINE_S)


def _works(site: Site) -> bool:
    try:
        return site.works
    except HostUnreachable:
        return False


def _closed(tls: ssl.SSLSocket) -> bool:
    tls.settimeout(0.05)
    try:
        return tls.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def _cut_off(tls: ssl.SSLSocket, *, byte_by_byte: bool) -> bool:
    """Goes on sending a byte now and then until the other side has had enough."""
    tls.settimeout(0.1)

    def over() -> bool:
        try:
            if byte_by_byte:
                tls.sendall(b"a")
            return tls.recv(65536) == b""
        except TimeoutError:
            return False
        except OSError:
            return True

    wait_for(over, "the connection to be cut off", DEADLINE_S)
    return True


def _gone(plain: socket.socket) -> bool:
    try:
        while plain.recv(65536):
            continue
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


# -- XML

BOMB = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "boom"}">' for n in range(12))


@pytest.mark.parametrize(
    "xml",
    [
        '<!DOCTYPE domain [<!ENTITY x SYSTEM "file:///etc/passwd">]><domain><name>&x;</name></domain>',
        '<!DOCTYPE domain SYSTEM "http://127.0.0.1:1/x.dtd"><domain/>',
        f"<!DOCTYPE domain [{BOMB}]><domain><name>&e11;</name></domain>",
        f"<!DOCTYPE domain [{BOMB}]><domain/>",
        "<domain><name>&x;</name></domain>",
        "<domain>" + "<a>" * 100_000,
        "<domain",
        "",
        "<domain>\ud800</domain>",
    ],
)
def test_xml_that_is_not_libvirts_is_refused_and_expands_nothing(xml: str) -> None:
    with pytest.raises(BadXml):
        domain_xml.parse(xml)


# -- joining


def test_a_token_that_is_no_token_is_refused() -> None:
    from vmferry.authority.tokens import JoinToken

    for text in ("", "vmferry-join-", "vmferry-join-abc", "x" * 101, JoinToken.make(b"der").text[:-4]):
        with pytest.raises(UsageError, match="no whole token"):
            JoinToken.parse(text)


def test_errors_carry_what_json_can(site: Site) -> None:
    with site.http() as http:
        reply = http.post("/v1/host/vm", json={"token": None, "arguments": {"name": "nobody"}}, extensions=SNI)
        last = json.loads(reply.text.splitlines()[-1])
        assert last["problem"]["kind"] == "NoSuchVm"
        assert LOOPBACK not in reply.text
