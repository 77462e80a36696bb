"""Hosts join once, are known by name, get new certificates in time, and are trusted no longer when they are revoked."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread

import pytest
from cryptography import x509
from tests.support.realm import LOOPBACK, Anywhere
from tests.support.records import JOB
from tests.support.worlds import SOURCE, UUID, make_world

import vmferry.manager.fleet.service
from vmferry.agent.joining import Joining, make_join_app
from vmferry.agent.listening import configured, listen
from vmferry.agent.process import forget, new_token
from vmferry.agent.service import Agent, AgentServer
from vmferry.api.routes.fleet import remove
from vmferry.authority import Authority, Role, TlsFolder, make_key, make_request
from vmferry.authority.tokens import JoinToken
from vmferry.errors import (
    HostBusy,
    HostKnown,
    HostUnreachable,
    JoinRefused,
    NoSuchHost,
    OtherAuthority,
    PeerRefused,
    StateUnusable,
    UsageError,
    VmferryError,
)
from vmferry.hosts.remote.join import split_address
from vmferry.hosts.simulator.driver import InMemory, SimulatedHosts
from vmferry.lab.programs import wait_for
from vmferry.manager.fleet.service import Fleet
from vmferry.manager.jobs.service import Jobs
from vmferry.manager.store.fleet import FleetStore
from vmferry.model import FencingToken, JobState, JobView
from vmferry.model.fleet import HostState

DEADLINE_S = 30


class Host:
    """An agent with a state folder, first waiting to join, then serving: as the process does it."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.token = new_token(state)
        self.joining = Joining(state)
        self.listener = listen(LOOPBACK, 0)
        self.address = f"{LOOPBACK}:{self.listener.getsockname()[1]}"
        self.world = make_world()
        self.agent: Agent | None = None
        self.stopped = False
        app = make_join_app(self.joining, TlsFolder(state), self.joined)
        self.server = AgentServer(configured(app, self.joining.context()))
        self.thread = Thread(target=self.run, daemon=True)
        self.thread.start()
        wait_for(lambda: self.server.started, "the agent to wait", DEADLINE_S)

    def joined(self) -> None:
        self.server.should_exit = True

    def run(self) -> None:
        self.server.run([self.listener.dup()])
        if not self.stopped:
            self.serve()

    def serve(self) -> None:
        hosts = SimulatedHosts(InMemory(self.world))
        self.agent = Agent(self.state, "memory", lambda _: hosts, lambda name: Anywhere(name, self.state))
        self.agent.serve(self.listener.dup())

    def leave(self) -> None:
        """Stop serving; the port stays ours."""
        assert self.agent is not None
        self.agent.stop()
        self.thread.join(DEADLINE_S)

    def come_back(self) -> None:
        before = self.agent
        self.thread = Thread(target=self.serve, daemon=True)
        self.thread.start()
        wait_for(lambda: self.agent is not before and self.agent and self.agent.started, "it to be back", DEADLINE_S)

    def close(self) -> None:
        self.stopped = True
        self.server.should_exit = True
        if self.agent is not None:
            self.agent.stop()
        self.thread.join(DEADLINE_S)
        self.listener.close()
        assert not self.thread.is_alive()


class Site:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hosts: list[Host] = []
        self.fleets: list[Fleet] = []
        self.fleet = self.manager("manager")

    def manager(self, name: str, records: str = "") -> Fleet:
        """With records of its own, or those of another."""
        state = self.folder / name
        state.mkdir(exist_ok=True)
        self.fleets.append(Fleet(state, f"sqlite:///{self.folder / (records or name)}/vmferry.db"))
        return self.fleets[-1]

    def host(self, name: str) -> Host:
        self.hosts.append(Host(self.folder / name))
        return self.hosts[-1]

    def added(self, name: str) -> Host:
        host = self.host(name)
        assert self.fleet.add(name, host.address, host.token).state is HostState.ANSWERS
        return host

    def close(self) -> None:
        for fleet in self.fleets:
            fleet.close()
        for host in self.hosts:
            host.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


# -- joining


def test_a_host_joins_with_its_token_and_is_reached_by_its_name(site: Site) -> None:
    host = site.added("host1")
    found = site.fleet.over(SimulatedHosts(InMemory(make_world())))
    found.open("host1", FencingToken("abcd2345", 1)).suspend(UUID)
    assert host.world.machines[UUID].power.value == "paused"
    assert [(view.name, view.state) for view in site.fleet.hosts()] == [("host1", HostState.ANSWERS)]
    assert not (host.state / "joining" / "token.json").exists()


def test_a_name_that_is_no_host_is_an_error(site: Site) -> None:
    with pytest.raises(NoSuchHost, match="no host host9"):
        site.fleet.over(SimulatedHosts(InMemory(make_world()))).open("host9")


def test_a_token_is_good_once(site: Site) -> None:
    host = site.added("host1")
    with pytest.raises(JoinRefused, match="another certificate is shown"):
        site.manager("other").add("host1", host.address, host.token)
    with pytest.raises(JoinRefused):
        site.fleet.add("host2", host.address, host.token)
    assert [view.name for view in site.fleet.hosts()] == ["host1"]


def test_of_two_that_spend_a_token_at_the_same_moment_one_succeeds(tmp_path: Path) -> None:
    joining = Joining(tmp_path)
    for _ in range(20):
        secret = joining.new_token().secret
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(joining.spend, [secret] * 8)) == 1


def test_two_managers_with_one_token_at_once_one_gets_the_host(site: Site) -> None:
    host = site.host("host1")
    fleets = [site.fleet, site.manager("other")]
    errors: list[VmferryError] = []

    def add(fleet: Fleet) -> bool:
        try:
            return fleet.add("host1", host.address, host.token).state is HostState.ANSWERS
        except VmferryError as error:
            errors.append(error)
            return False

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(add, fleets)) == 1
    assert len(errors) == 1
    assert sum(len(fleet.hosts()) for fleet in fleets) == 1


def test_a_wrong_secret_is_refused_and_spends_nothing(site: Site) -> None:
    host = site.host("host1")
    right = JoinToken.parse(host.token)
    wrong = JoinToken(right.fingerprint, bytes(32)).text
    with pytest.raises(JoinRefused, match="wrong, was used before or has run out"):
        site.fleet.add("host1", host.address, wrong)
    assert site.fleet.hosts() == []
    assert site.fleet.add("host1", host.address, host.token).state is HostState.ANSWERS


def test_a_token_of_another_agent_tells_nothing_to_this_one(site: Site) -> None:
    """As when somebody stands between: the secret is not sent to whoever shows another certificate."""
    impostor, real = site.host("impostor"), site.host("real")
    with pytest.raises(JoinRefused, match="another certificate"):
        site.fleet.add("real", impostor.address, real.token)
    assert real.joining.has_token


def test_a_token_that_ran_out_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    host = site.host("host1")
    later = datetime.now(UTC).timestamp() + 3700
    monkeypatch.setattr("vmferry.agent.joining.time.time", lambda: later)
    with pytest.raises(JoinRefused, match="has run out"):
        site.fleet.add("host1", host.address, host.token)


def test_a_new_token_replaces_the_one_before(site: Site) -> None:
    host = site.host("host1")
    newer = new_token(host.state)
    with pytest.raises(JoinRefused):
        site.fleet.add("host1", host.address, host.token)
    assert site.fleet.add("host1", host.address, newer).state is HostState.ANSWERS


def test_the_token_is_not_kept_in_clear(site: Site) -> None:
    host = site.host("host1")
    secret = JoinToken.parse(host.token).secret
    kept = b"".join(file.read_bytes() for file in host.state.rglob("*") if file.is_file())
    assert secret not in kept
    assert secret.hex().encode() not in kept
    assert host.token.encode() not in kept


@pytest.mark.slow
def test_an_agent_that_has_joined_gives_no_token_until_it_forgets(site: Site) -> None:
    host = site.added("host1")
    with pytest.raises(UsageError, match="has joined already"):
        new_token(host.state)
    host.close()
    site.hosts.remove(host)
    forget(host.state)
    assert new_token(host.state)


@pytest.mark.parametrize("name", ["", "Host", "a.b", "-a", "a-", "a" * 64, "../a", "host 1"])
def test_a_name_that_no_certificate_can_have_is_refused(site: Site, name: str) -> None:
    with pytest.raises(UsageError):
        site.fleet.add(name, "127.0.0.1:1", JoinToken.make(b"der").text)


def test_a_host_is_added_once(site: Site) -> None:
    site.added("host1")
    other = site.host("host2")
    with pytest.raises(HostKnown):
        site.fleet.add("host1", other.address, other.token)
    assert site.fleet.add("host2", other.address, other.token).state is HostState.ANSWERS


def test_a_host_that_is_not_there_is_not_added(site: Site) -> None:
    with pytest.raises(HostUnreachable):
        site.fleet.add("host1", f"{LOOPBACK}:1", JoinToken.make(b"der").text)
    assert site.fleet.hosts() == []


@pytest.mark.parametrize(
    ("text", "address"),
    [("h", ("h", 8443)), ("h:1", ("h", 1)), ("[::1]:2", ("::1", 2)), ("127.0.0.1", ("127.0.0.1", 8443)), (":0x", None)],
)
def test_an_address_has_a_port_or_gets_ours(text: str, address: tuple[str, int] | None) -> None:
    if address is None:
        with pytest.raises(UsageError):
            split_address(text)
    else:
        assert split_address(text) == address


@pytest.mark.parametrize("needed", ["host1", "host2"])
def test_a_host_that_a_job_comes_from_or_goes_to_is_not_removed(site: Site, needed: str) -> None:
    site.added(needed)
    running = replace(JOB, state=JobState.RUNNING, plan=replace(JOB.plan, connect="host1", to="host2"))
    with pytest.raises(HostBusy, match=running.id):
        remove(needed, site.fleet, Listed([running]))
    assert site.fleet.show(needed).state is HostState.ANSWERS
    remove(needed, site.fleet, Listed([replace(running, state=JobState.DONE)]))
    with pytest.raises(NoSuchHost):
        site.fleet.show(needed)


class Listed(Jobs):
    """Jobs that are only listed."""

    def __init__(self, views: list[JobView]) -> None:
        self._views = views

    def list(self) -> list[JobView]:
        return self._views


# -- certificates


def test_a_certificate_is_renewed_when_a_third_of_its_life_is_left(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    host = site.host("host1")
    site.fleet.add("host1", host.address, host.token, ["host1.lan", "192.0.2.7"])
    before = TlsFolder(host.state).certificate()
    assert not TlsFolder(host.state).due(datetime.now(UTC) + timedelta(days=59))
    assert TlsFolder(host.state).due(datetime.now(UTC) + timedelta(days=61))
    later = (datetime.now(UTC) + timedelta(days=61)).timestamp()
    monkeypatch.setattr("vmferry.agent.peer_policy.time.time", lambda: later)
    site.fleet.show("host1")
    monkeypatch.undo()
    after = TlsFolder(host.state).certificate()
    assert after.serial_number != before.serial_number
    assert after.public_key() != before.public_key()
    assert _names(after) == _names(before)
    assert {"host1.lan", "192.0.2.7"} <= _names(after)
    view = site.fleet.show("host1")
    assert view.state is HostState.ANSWERS
    link = site.fleet.find("host1")
    assert link is not None
    link.close()
    assert link.ask("GET", "about")["serial"] == f"{after.serial_number:x}"


def _names(certificate: x509.Certificate) -> set[str]:
    return {
        str(name.value) for name in certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    }


def test_a_revoked_host_is_refused_by_the_manager_and_by_other_hosts(site: Site) -> None:
    bad, good = site.added("bad"), site.added("good")
    assert site.fleet.revoke("bad").state is HostState.REVOKED
    serial = TlsFolder(bad.state).certificate().serial_number
    assert serial in TlsFolder(good.state).revoked()
    with pytest.raises(PeerRefused):
        site.fleet.over(SimulatedHosts(InMemory(make_world()))).open("bad").exists(SOURCE)
    assert site.fleet.show("good").state is HostState.ANSWERS


@pytest.mark.slow
def test_an_agent_that_was_away_hears_of_a_revocation_with_the_next_call(site: Site) -> None:
    bad, good = site.added("bad"), site.added("good")
    serial = TlsFolder(bad.state).certificate().serial_number
    good.leave()
    site.fleet.revoke("bad")
    assert serial not in TlsFolder(good.state).revoked()
    good.come_back()
    assert site.fleet.show("good").state is HostState.ANSWERS
    assert serial in TlsFolder(good.state).revoked()


@pytest.mark.slow
def test_what_another_manager_revoked_is_heard_of_though_not_every_call_asks_the_records(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = site.added("bad"), site.added("good")
    serial = TlsFolder(bad.state).certificate().serial_number
    records = FleetStore(f"sqlite:///{site.folder}/manager/vmferry.db")
    monkeypatch.setattr(vmferry.manager.fleet.service, "NEWEST_S", 3600.0)
    host = site.fleet.over(SimulatedHosts(InMemory(make_world()))).open("good")
    records.revoke("bad")
    assert host.exists(SOURCE / "guest-a.img")
    assert serial not in TlsFolder(good.state).revoked()
    monkeypatch.setattr(vmferry.manager.fleet.service, "NEWEST_S", 0.0)
    assert host.exists(SOURCE / "guest-a.img")
    assert serial in TlsFolder(good.state).revoked()


@pytest.mark.slow
def test_a_removed_host_is_forgotten_and_can_be_added_again(site: Site) -> None:
    host = site.added("host1")
    san = host.state.parent / "san"
    san.mkdir()
    site.fleet.add_storage("san", "host1", san, "gold")
    site.fleet.remove("host1")
    assert site.fleet.hosts() == []
    assert site.fleet.storages() == []
    with pytest.raises(NoSuchHost):
        site.fleet.show("host1")
    host.close()
    site.hosts.remove(host)
    forget(host.state)
    again = site.host("host1")
    assert site.fleet.add("host1", again.address, again.token).state is HostState.ANSWERS


def test_the_same_storage_of_two_hosts_is_known_by_its_marker(site: Site) -> None:
    site.added("host1")
    site.added("host2")
    san, own = site.folder / "san", site.folder / "own"
    for folder in (san, own):
        folder.mkdir()
    site.fleet.add_storage("gold", "host1", san, "")
    site.fleet.add_storage("own", "host1", own, "")
    assert site.fleet.add_storage("silver", "host2", san, "").shared_with == ("host1:gold",)
    assert {s.name: s.shared_with for s in site.fleet.storages()} == {
        "gold": ("host2:silver",),
        "own": (),
        "silver": ("host1:gold",),
    }
    site.fleet.remove_storage("gold", "host1")
    assert [s.name for s in site.fleet.storages()] == ["own", "silver"]


# -- the authority


def test_keys_are_for_their_user_only_and_the_authority_outlives_the_process(tmp_path: Path) -> None:
    first = Authority(tmp_path / "authority")
    again = Authority(tmp_path / "authority")
    assert first.certificate_pem == again.certificate_pem
    assert (tmp_path / "authority").stat().st_mode & 0o777 == 0o700
    for file in (tmp_path / "authority").iterdir():
        assert file.stat().st_mode & 0o777 == 0o600


def test_a_second_manager_makes_no_authority_beside_that_of_the_first(site: Site) -> None:
    site.added("host1")
    second = site.manager("second", records="manager")
    with pytest.raises(OtherAuthority, match="second/authority"):
        second.check()
    with pytest.raises(PeerRefused, match="put a copy of `authority/`"):
        second.over(SimulatedHosts(InMemory(make_world()))).open("host1").exists(SOURCE)
    assert not (site.folder / "second" / "authority").exists()
    Authority(site.folder / "second" / "authority")  # made before it shared these records
    with pytest.raises(OtherAuthority):
        second.check()
    shutil.rmtree(site.folder / "second" / "authority")
    shutil.copytree(site.folder / "manager" / "authority", site.folder / "second" / "authority")
    second.check()
    assert second.show("host1").state is HostState.ANSWERS


def test_of_two_first_managers_one_signs(tmp_path: Path) -> None:
    records = FleetStore(f"sqlite:///{tmp_path}/vmferry.db")
    assert records.authority() == ""
    assert [records.signs(made) for made in ("a", "b", "a")] == ["a", "a", "a"]
    records.close()


def test_an_authority_that_is_damaged_is_not_made_anew(tmp_path: Path) -> None:
    Authority(tmp_path / "authority")
    (tmp_path / "authority" / "ca-key.pem").write_bytes(b"")
    with pytest.raises(StateUnusable):
        Authority(tmp_path / "authority")


def test_a_request_decides_neither_role_nor_name(tmp_path: Path) -> None:
    key = make_key()
    authority = Authority(tmp_path / "authority")
    issued = authority.issue(make_request(key, "urn:vmferry:manager:evil"), Role.AGENT, "host1")
    tls = TlsFolder(tmp_path / "host1")
    tls.install(key, issued.pem, authority.certificate_pem, authority.revocations({}, 1))
    assert tls.name == "host1"
    for words in (b"", b"no request", issued.pem):
        with pytest.raises(UsageError):
            authority.issue(words, Role.AGENT, "host1")


def test_a_certificate_of_another_key_or_authority_is_not_installed(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    key = make_key()
    good = ours.issue(make_request(key, "host1"), Role.AGENT, "host1").pem
    crl = ours.revocations({}, 1)
    tls = TlsFolder(tmp_path / "host1")
    wrong = [(make_key(), good, ours.certificate_pem), (key, good, theirs.certificate_pem), (key, b"", b"")]
    for other_key, pem, ca in wrong:
        with pytest.raises(ValueError, match=r"."):
            tls.install(other_key, pem, ca, crl)
    assert not tls.there


def test_openssl_and_gnutls_verify_a_certificate_and_see_that_it_was_revoked(tmp_path: Path) -> None:
    """The folder is what QEMU and libnbd are given for disks on their way."""
    authority = Authority(tmp_path / "authority")
    key = make_key()
    issued = authority.issue(make_request(key, "host1"), Role.AGENT, "host1", ["127.0.0.1", "storage.example"])
    tls = TlsFolder(tmp_path / "host1")
    tls.install(key, issued.pem, authority.certificate_pem, authority.revocations({}, 1))
    assert sorted(file.name for file in tls.path.iterdir()) == [
        "ca-cert.pem",
        "ca-crl.pem",
        "client-cert.pem",
        "client-key.pem",
        "dh-params.pem",
        "server-cert.pem",
        "server-key.pem",
    ]
    words: list[str | Path] = [
        "openssl",
        "verify",
        "-crl_check",
        "-CAfile",
        tls.path / "ca-cert.pem",
        "-CRLfile",
        tls.path / "ca-crl.pem",
    ]
    for purpose in ("sslserver", "sslclient"):
        assert _ends_well([*words, "-purpose", purpose, tls.path / "server-cert.pem"])
    gnutls: list[str | Path] = ["certtool", "--verify", "--load-ca-certificate", tls.path / "ca-cert.pem"]
    gnutls += ["--load-crl", tls.path / "ca-crl.pem", "--verify-hostname", "storage.example"]
    assert _ends_well([*gnutls, "--infile", tls.path / "server-cert.pem"])
    tls.set_revocations(authority.revocations({issued.serial: datetime.now(UTC)}, 2))
    assert not _ends_well([*words, tls.path / "server-cert.pem"])
    assert not _ends_well([*gnutls, "--infile", tls.path / "server-cert.pem"])


def _ends_well(words: list[str | Path]) -> bool:
    return subprocess.run(words, capture_output=True, check=False, timeout=DEADLINE_S).returncode == 0


def test_a_managers_certificate_is_no_server(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    key = make_key()
    issued = authority.issue(make_request(key, "m"), Role.MANAGER, "m")
    tls = TlsFolder(tmp_path / "m")
    tls.install(key, issued.pem, authority.certificate_pem, authority.revocations({}, 1))
    words: list[str | Path] = ["openssl", "verify", "-CAfile", tls.path / "ca-cert.pem", "-purpose"]
    assert _ends_well([*words, "sslclient", tls.path / "client-cert.pem"])
    assert not _ends_well([*words, "sslserver", tls.path / "client-cert.pem"])
    assert ssl.PEM_cert_to_DER_cert(issued.pem.decode())
