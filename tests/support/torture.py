"""One run of the torture: a foreign act at a random instant of a job, what an operator does then, and the judges.

All that is random comes from the seed. The instant is a step of the job and a moment in it, so the same seed strikes
the same place, as far as two runs of one machine are alike.
"""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import libvirt
from lxml import etree
from tests.support.torture_acts import ACTS, DEFINITION, Act, Scene, clones, images, images_in, saved_at

from vmferry.errors import LabLate, NoSuchVm, VmferryError
from vmferry.lab import DiskSpec, GuestSpec, LabGuest, LabHost, wait_for
from vmferry.lab.guests.bare import BARE_GUEST
from vmferry.lab.programs import run
from vmferry.lab.vmferry_command import ENDS, VmferryCommand
from vmferry.migration.strategies import STRATEGIES
from vmferry.model import OTHER_HOST, Technology

HERE = (Technology.LIVE, Technology.QUICK, Technology.OFFLINE)
APART = (Technology.LIVE_RELOCATION, Technology.QUICK_RELOCATION, Technology.LAN)
OFF = (Technology.OFFLINE, Technology.LAN)
OFTEN = frozenset({"CopyBase", "Rounds", "Mirror", "Save"})
"""Steps that are struck twice as often as others: most of a job's time passes in them."""
REACHED_S, SILENT_S, ENDED_S, STARTED_S = 90, 25, 150, 120
HELPED = 3
"""So often an operator does what a stuck job says, before that counts as its end."""


@dataclass(frozen=True)
class Draw:
    """What a seed stands for."""

    seed: int
    technology: Technology
    act: Act
    step: str
    """The job's step that the act waits for."""
    delay_s: float
    raw: bool
    """Whether the second disk is raw; then libvirt makes no internal snapshots."""
    keep_source: bool

    @property
    def via(self) -> str:
        return self.technology.value.split()[0]


@dataclass
class Report:
    """What one run came to; a line of JSON."""

    seed: int
    technology: str
    act: str
    step: str = ""
    """The job's step when the act began; empty when the job had ended."""
    until: str = ""
    """Its step when the act had ended."""
    libvirt: str = ""
    """What libvirt refused it for; empty when it did it."""
    outcome: str = ""
    sentence: str = ""
    asked: list[str] = field(default_factory=list)
    """What the job asked an operator for on its way."""
    found: list[str] = field(default_factory=list)
    """What is broken, and must not be."""
    changed: str = ""
    """What of the act does not hold any more."""
    acknowledged: int = 0

    def line(self) -> str:
        """For people."""
        place = self.step or "after the end"
        refused = f" (refused: {self.libvirt})" if self.libvirt else ""
        said = f": {self.sentence}" if self.sentence else ""
        judged = "; ".join(self.found) or "clean"
        changed = f"; {self.changed}" if self.changed else ""
        return (
            f"torture seed={self.seed} {self.technology} `{self.act}` in {place}{refused} -> "
            f"{self.outcome}{said} | {judged}{changed}"
        )

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{self.seed} {self.technology}.jsonl").open("w") as file:
            file.write(json.dumps(asdict(self)) + "\n")


def draw(seed: int, technologies: Sequence[Technology] = HERE) -> Draw:
    """All that is random of a run, but how it turns out."""
    luck = random.Random(seed)
    technology = luck.choice(technologies)
    off = technology in OFF
    acts = [act for act in ACTS.values() if (act.off if off else act.on)]
    act = acts[seed % len(acts)]  # each in its turn: none is left to luck
    if technology in OTHER_HOST and act.words == "change-media":
        act = ACTS["setmem"]  # a disc is one more file to be declared there: not what is tried here
    steps = [name for name in STRATEGIES[technology].names for _ in range(1 + (name in OFTEN))]
    return Draw(
        seed,
        technology,
        act,
        luck.choice(steps),
        luck.choice((0.0, luck.uniform(0, 0.1), luck.uniform(0, 1.0))),
        raw=luck.random() < 0.5,
        keep_source=luck.random() < 0.2,
    )


def spec_of(drawn: Draw, disc: Path | None) -> GuestSpec:
    """The guest; a live relocation takes one that KVM can run, on hosts where it runs no stock kernel too."""
    name = f"tortured {drawn.seed}"
    if drawn.technology is Technology.LIVE_RELOCATION:
        disks = tuple(replace(disk, size_mib=64, data_mib=8, region_mib=8) for disk in BARE_GUEST.disks)
        return replace(BARE_GUEST, name=name, disks=disks, memory_mib=64, touch_mib=16, dirty_mib_s=4)
    second = DiskSpec("vdb", format="raw" if drawn.raw else "qcow2", size_mib=128, data_mib=16)
    disks = (DiskSpec("vda", size_mib=128, data_mib=24), second)
    return GuestSpec(name, disks=disks, rate=30, cdrom=disc)


# -- one run


@dataclass
class Torture:
    """A guest, the job that moves it, and the hosts that it may be on."""

    drawn: Draw
    guest: LabGuest
    hosts: Sequence[LabHost]
    ferry: VmferryCommand
    folder: Path
    """Of files that the act makes, on the first host."""
    submit: Callable[[], str]
    """Begin the job, slowly. Returns its id."""

    def run(self) -> Report:
        drawn, guest = self.drawn, self.guest
        report = Report(drawn.seed, drawn.technology.value, drawn.act.words)
        guest.wait_acks(20)
        with closing(self.hosts[0].connect()) as connection:
            domain = connection.lookupByUUIDString(guest.place.uuid)
            if drawn.technology in OFF:
                _power_off(guest, domain)
            luck = random.Random(f"{drawn.seed} act")
            self.scene = Scene(domain, self.folder, luck, domain.XMLDesc(DEFINITION))
            job = self.submit()
            self._strike(job, report)
            self._see_through(job, report)
        Judge(self.scene, guest, self.hosts, drawn, report).judge()
        return report

    def _strike(self, job: str, report: Report) -> None:
        """Do the act as soon as the job's step has come, or the job has ended before."""
        with suppress(LabLate):
            wait_for(lambda: self._over(job) or self.drawn.step in self.ferry.steps(job), self.drawn.step, REACHED_S)
        time.sleep(self.drawn.delay_s)  # the moment is what is random here; nothing is waited for
        report.step = "" if self._over(job) else self.ferry.step(job)
        if self.drawn.act.stale and (not report.step or not self._as_before()):
            report.act += ", and the source had gone before"  # it would name files that are gone for good
            report.libvirt = "not done"
            return
        try:
            self.drawn.act.do(self.scene)
        except libvirt.libvirtError as error:
            report.libvirt = str(error)
        except LabLate as late:
            report.libvirt = f"begun, and not seen to end: {late.fields['what']}"
        except VmferryError as error:
            report.libvirt = str(error)
        report.until = "" if self._over(job) else self.ferry.step(job)
        self.ferry.run("job", "limit", job, "none")

    def _as_before(self) -> bool:
        return all(image.exists() for image in images_in(self.scene.before).values())

    def _over(self, job: str) -> bool:
        return self.ferry.state(job) in ENDS

    def _see_through(self, job: str, report: Report) -> None:
        """To its end; whenever it asks for something, or is silent for long, do what an operator does."""
        until = time.monotonic() + ENDED_S
        helped = 0
        while (state := self._next_state(job)) not in ("done", "undone", "failed"):
            told = self._told(job)
            report.asked += [told] if told not in report.asked else []
            helped += state == "stuck"
            if helped > HELPED or time.monotonic() > until:
                break
            self._help(told)
            if state == "stuck":
                self.ferry.run("job", "retry", job)
        record = self.ferry.job(job)
        report.outcome = state if state in ENDS else "waits"
        report.sentence = record["sentence"] or (self._told(job) if report.outcome == "waits" else "")
        if report.outcome in ("stuck", "waits"):
            report.found += [] if report.sentence.strip() else ["it does not say why"]
            self._give_up(job)
        elif report.asked:
            report.outcome = f"asks, then {report.outcome}"

    def _next_state(self, job: str) -> str:
        """Its end, or what it is in when nothing has happened for long."""
        steps = len(self.ferry.steps(job))
        with suppress(LabLate):
            wait_for(lambda: self.ferry.state(job) in ENDS or len(self.ferry.steps(job)) > steps, job, SILENT_S)
        state = self.ferry.state(job)
        return self._next_state(job) if state not in ENDS and len(self.ferry.steps(job)) > steps else state

    def _told(self, job: str) -> str:
        record = self.ferry.job(job)
        return str(record["sentence"] or record["progress"]["held"] or record["progress"]["now"])

    def _help(self, told: str) -> None:
        """What a person does who reads that."""
        with suppress(libvirt.libvirtError, VmferryError):
            domain = self.scene.domain
            state = domain.state()[0]
            if "restart libvirtd" in told:
                self.hosts[0].kill_libvirtd()
                self.hosts[0].start_libvirtd()
            elif "resume" in told and state == libvirt.VIR_DOMAIN_PAUSED:
                domain.resume()
            elif "shut" in told and state == libvirt.VIR_DOMAIN_PAUSED:
                domain.resume()
                _power_off(self.guest, domain)
            elif "shut" in told and state == libvirt.VIR_DOMAIN_RUNNING:
                _power_off(self.guest, domain)
            elif "start" in told and state == libvirt.VIR_DOMAIN_SHUTOFF:
                domain.create()

    def _give_up(self, job: str) -> None:
        """So that nothing changes while the judges look."""
        self.ferry.run("job", "cancel", job)
        self.ferry.kill_worker()


# -- the judges


@dataclass
class Judge:
    """What must be so, whatever anybody did: looked at when the job has ended, or asks for what nobody here can do."""

    scene: Scene
    guest: LabGuest
    hosts: Sequence[LabHost]
    drawn: Draw
    report: Report

    def judge(self) -> None:
        host = self._host()
        if host is None:
            self._undefined()
            return
        if host is not self.guest.host:
            self.guest.moved_to(host)
        with closing(host.connect()) as connection:
            self.scene.domain = connection.lookupByUUIDString(self.guest.place.uuid)
            self._holds()
            self._named(connection)
            self._cloned()
            self._leftovers()
            saved = saved_at(self.scene)
            if saved.exists() and not self.scene.domain.isActive():
                self._loads(lambda: connection.restore(str(saved)), "the state that was saved by hand cannot be loaded")
            elif not self.scene.domain.isActive() and self.scene.domain.hasManagedSaveImage():
                self._loads(self.scene.domain.create, "the managed save cannot be loaded")
            self._writes(connection)

    def _found(self, what: str) -> None:
        self.report.found += [what] if what not in self.report.found else []

    def _host(self) -> LabHost | None:
        """Where libvirt knows the VM, and no placeholder of it; where it runs, if it does."""
        known = []
        for host in self.hosts:
            with closing(host.connect()) as connection, suppress(libvirt.libvirtError):
                domain = connection.lookupByUUIDString(self.guest.place.uuid)
                if domain.isActive() or images(domain, DEFINITION):
                    known.append((bool(domain.isActive()), host))
        if sum(runs for runs, _ in known) > 1:
            self._found("it runs on two hosts")
        return max(known, key=lambda item: item[0])[1] if known else None

    def _undefined(self) -> None:
        """Nobody knows it any more: that is right of one that was undefined, off or on; its disks are there then."""
        if self.drawn.act.words != "undefine" or self.report.libvirt:
            self._found("no host knows the VM any more")
            return
        if lost := [str(image) for image in self.guest.place.images.values() if not self._somewhere(image)]:
            self._found(f"it was undefined, and its disk is nowhere: {', '.join(lost)}")

    def _somewhere(self, image: Path) -> bool:
        folders = [host.storage(name) / self.guest.name for host in self.hosts for name in host.storages]
        return any(image.name == there.name for folder in folders if folder.exists() for there in folder.iterdir())

    def _holds(self) -> None:
        if not self.report.libvirt:
            try:
                self.report.changed = self.drawn.act.gone(self.scene)
            except libvirt.libvirtError as error:
                self.report.changed = str(error)

    def _named(self, connection: libvirt.virConnect) -> None:
        """Every image that the VM, its snapshots or its saved states name is there, and every chain below it."""
        for what, xml in self._definitions(connection):
            root = etree.fromstring(xml)
            for source in root.iterfind(".//disk//source[@file]"):
                path = Path(source.get("file", ""))
                if not path.exists():
                    self._found(f"{what} names {path}, which is not there: {xml}")
                elif trouble := _broken_chain(path):
                    self._found(f"{what} names {path.name}: {trouble}")
        for snapshot in self.scene.domain.listAllSnapshots():
            self._internal(snapshot)

    def _cloned(self) -> None:
        """What somebody made of the VM's image has all that it lies on, and reads as it did."""
        for clone in clones(self.scene):
            then = clone.with_suffix(".then")
            if self.report.libvirt:
                continue
            if trouble := _broken_chain(clone):
                self._found(f"{clone.name} cannot be read: {trouble}")
            elif then.exists() and not _same(clone, then):
                self._found(f"{clone.name} does not read as it did")

    def _definitions(self, connection: libvirt.virConnect) -> Iterator[tuple[str, str]]:
        domain = self.scene.domain
        yield "the VM", domain.XMLDesc(0)
        if domain.isPersistent():
            yield "its definition", domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        for snapshot in domain.listAllSnapshots():
            yield f"snapshot {snapshot.getName()}", snapshot.getXMLDesc(0)
        if domain.hasManagedSaveImage():
            yield "its managed save", domain.managedSaveGetXMLDesc(0)
        if saved_at(self.scene).exists() and not domain.isActive():
            yield "the state saved by hand", connection.saveImageGetXMLDesc(str(saved_at(self.scene)))

    def _internal(self, snapshot: libvirt.virDomainSnapshot) -> None:
        root = etree.fromstring(snapshot.getXMLDesc(0))
        for disk in root.iterfind("./disks/disk[@snapshot='internal']"):
            image = images(self.scene.domain).get(disk.get("name", ""))
            if image is not None and image.exists() and snapshot.getName() not in _snapshots_in(image):
                self._found(f"snapshot {snapshot.getName()} is listed, and not in {image.name}")

    def _leftovers(self) -> None:
        """Of a job that has ended nothing is left that nobody names."""
        if not self.report.outcome.endswith(("done", "undone")):
            return
        named = self.scene.domain.XMLDesc(0) + "".join(s.getXMLDesc(0) for s in self.scene.domain.listAllSnapshots())
        if saved_at(self.scene).exists():
            named += self.scene.domain.connect().saveImageGetXMLDesc(str(saved_at(self.scene)))
        for host in self.hosts:
            for name in host.storages:
                for path in (host.storage(name) / self.guest.name).rglob("*vmferry-*"):
                    tops = [*images(self.scene.domain).values(), *clones(self.scene)]
                    if path.name not in named and not _in_a_chain(path, tops):
                        self._found(f"{path.name} is left over on {name}")

    def _loads(self, load: Callable[[], object], otherwise: str) -> None:
        """The memory of a VM that somebody saved is good still."""
        ups = self.guest.console.read().ups
        try:
            load()
            self.guest.wait_acks(5)
        except (libvirt.libvirtError, LabLate) as error:
            self._found(f"{otherwise}: {error}")
            return
        if self.guest.console.read().ups != ups:
            self._found(f"{otherwise}: it booted anew")

    def _writes(self, connection: libvirt.virConnect) -> None:
        """Every acknowledged write is there, now and after it was started again."""
        domain = self.scene.domain
        xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE)
        self._end(domain)
        self._verdict(xml)
        try:
            if not _known(connection, self.guest.place.uuid):
                connection.defineXML(xml)
            domain = connection.lookupByUUIDString(self.guest.place.uuid)
            if not domain.isActive():
                domain.create()
            self._wait_written(domain)
        except (libvirt.libvirtError, LabLate) as error:
            self._found(f"it does not start again: {error}")
            return
        self._end(domain)
        self._verdict(domain.XMLDesc(0))

    def _wait_written(self, domain: libvirt.virDomain) -> None:
        """Until each disk that it has now has acknowledged a write."""
        stamped = {disk.target for disk in self.guest.spec.stamped}
        wanted, before = stamped & images(domain).keys(), len(self.guest.acks())
        said = self.guest.place.console
        wait_for(lambda: {a.disk for a in self.guest.acks()[before:]} >= wanted, "it to write", STARTED_S, said)

    def _end(self, domain: libvirt.virDomain) -> None:
        """Shut it down as a person does; one that stands is let run before."""
        try:
            if domain.isActive() and domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                domain.resume()
            if domain.isActive():
                _power_off(self.guest, domain)
        except (libvirt.libvirtError, LabLate) as error:
            self._found(f"the guest does not answer: {error}")
            with suppress(libvirt.libvirtError):
                domain.destroy()

    def _verdict(self, xml: str) -> None:
        now = images_in(xml)
        wanted = {disk.target: now.get(disk.target) or self._detached(disk) for disk in self.guest.spec.stamped}
        try:
            verdict = self.guest.verdict({target: path for target, path in wanted.items() if path is not None})
        except VmferryError as error:
            self._found(f"its disks cannot be read: {error}")
            return
        self.report.acknowledged = verdict.acknowledged
        if not verdict.clean:
            self._found(
                f"{verdict.lost} of {verdict.acknowledged} acknowledged writes are lost, {verdict.torn} torn "
                f"({'; '.join(verdict.examples[:2])})"
            )

    def _detached(self, disk: DiskSpec) -> Path | None:
        """Where the image of a disk is that the VM does not have any more: where its name says."""
        image = self.guest.place.images[disk.target]
        moved = [host.storage("san2") / self.guest.name / image.name for host in self.hosts]
        return next((path for path in (image, *moved) if path.exists()), image)


def _power_off(guest: LabGuest, domain: libvirt.virDomain) -> None:
    guest.stop_writing()  # or its kernel may refuse a write while it shuts the disks down
    guest.command("poweroff")
    wait_for(lambda: not _is_active(domain), f"{guest.name} to power off", 60)


def _is_active(domain: libvirt.virDomain) -> bool:
    """One that was undefined while it ran is not known any more once it has ended."""
    try:
        return bool(domain.isActive())
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return False
        raise


def _known(connection: libvirt.virConnect, uuid: str) -> bool:
    return any(domain.UUIDString() == uuid for domain in connection.listAllDomains())


def _chain(image: Path) -> list[dict[str, object]]:
    return list(json.loads(run("qemu-img", "info", "-U", "--backing-chain", "--output=json", image)))


def _broken_chain(image: Path) -> str:
    try:
        _chain(image)
    except (VmferryError, NoSuchVm) as error:
        return str(error.fields.get("reason", error))
    return ""


def _same(clone: Path, then: Path) -> bool:
    return subprocess.run(["qemu-img", "compare", "-U", clone, then], capture_output=True).returncode == 0


def _in_a_chain(path: Path, tops: Iterable[Path]) -> bool:
    chains = [_chain(top) for top in tops if top.exists() and not _broken_chain(top)]
    return any(str(path) == image.get("filename") for chain in chains for image in chain)


def _snapshots_in(image: Path) -> set[str]:
    found: set[str] = set()
    for each in _chain(image):
        snapshots = each.get("snapshots", [])
        assert isinstance(snapshots, list)
        found |= {str(snapshot["name"]) for snapshot in snapshots}
    return found
