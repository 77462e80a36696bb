"""One run of the torture: a foreign act at a random instant of a job, and what an operator does then.

All that is random comes from the seed. The instant is a step of the job and a moment in it, so the same seed strikes
the same place, as far as two runs of one machine are alike.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import libvirt
from tests.support.torture_acts import DEFINITION, Scene, images_in
from tests.support.torture_draw import OFF, Draw, Report
from tests.support.torture_judge import Judge, shut_down

from vmferry.errors import LabLate, VmferryError
from vmferry.lab import LabGuest, LabHost, wait_for
from vmferry.lab.vmferry_command import ENDS, VmferryCommand

REACHED_S, SILENT_S, ENDED_S = 90, 25, 150
HELPED = 3
"""So often an operator does what a stuck job says, before that counts as its end."""


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
    there: Path
    """The folder that the job copies to."""

    def run(self) -> Report:
        drawn, guest = self.drawn, self.guest
        report = Report(drawn.seed, drawn.technology.value, drawn.act.words)
        guest.wait_acks(20)
        with closing(self.hosts[0].connect()) as connection:
            domain = connection.lookupByUUIDString(guest.place.uuid)
            if drawn.technology in OFF:
                shut_down(guest, domain)
            luck = random.Random(f"{drawn.seed} act")
            self.scene = Scene(domain, self.folder, luck, domain.XMLDesc(DEFINITION), there=self.there)
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
            if "put it back" in told and self.scene.moved is not None and self.scene.moved[1].exists():
                copy, away = self.scene.moved
                away.rename(copy)
            elif "restart libvirtd" in told:
                self.hosts[0].kill_libvirtd()
                self.hosts[0].start_libvirtd()
            elif "resume" in told and state == libvirt.VIR_DOMAIN_PAUSED:
                domain.resume()
            elif "shut" in told and state == libvirt.VIR_DOMAIN_PAUSED:
                domain.resume()
                shut_down(self.guest, domain)
            elif "shut" in told and state == libvirt.VIR_DOMAIN_RUNNING:
                shut_down(self.guest, domain)
            elif "start" in told and state == libvirt.VIR_DOMAIN_SHUTOFF:
                domain.create()

    def _give_up(self, job: str) -> None:
        """So that nothing changes while the judges look."""
        self.ferry.run("job", "cancel", job)
        self.ferry.kill_worker()
