"""A host on another machine: every method of the interface asks the agent there.

Paths mean files of that host; nothing here looks at this one's. An act that lost its answer is called again: the
agent goes on with the one that runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

from vmferry.errors import AgentFailed, HostUnreachable, NoSuchHost, VmferryError
from vmferry.hosts.forwarding import ForwardingHost
from vmferry.hosts.interface import Host, Hosts
from vmferry.hosts.remote.budget import ByteBudget
from vmferry.hosts.remote.client import AgentLink
from vmferry.hosts.wire import CALLS, Call, Json, ends, load_error
from vmferry.model import FencingToken
from vmferry.model.processors import Platform
from vmferry.transfer import Watch


class AgentLinks(Protocol):
    """The agents that are known here."""

    def find(self, name: str) -> AgentLink | None: ...


class RemoteHost(ForwardingHost):
    """A host on another machine: every method asks its agent. Without a token it can only be looked at."""

    def __init__(self, link: AgentLink, token: FencingToken | None = None) -> None:
        self.name = link.name
        self._link = link
        self._token = token

    def forward(self, method: str, /, *arguments: object, **named: object) -> Any:
        call = CALLS[method]
        return self._call(call, call.bind(*arguments, **named))

    def _call(self, call: Call, arguments: dict[str, Any]) -> Any:
        """Ask the agent, follow the call to its end, and return or raise as the host there did."""
        if self._token is None and not call.looks:
            raise TypeError("this host was opened for looking only")
        watch: Watch | None = arguments.pop(call.watched) if call.watched else None
        token = None if self._token is None else {"job": self._token.job, "epoch": self._token.epoch}
        body = {"token": token, "arguments": call.dump(arguments)}
        with self._link.lines(f"host/{call.name}", body) as lines:
            end = _followed(lines) if watch is None else _Long(self._link, watch).follow(lines)
        if "problem" in end:
            raise load_error(end["problem"], self.name)
        try:
            answer = call.load_answer(end["answer"])
        except VmferryError as error:
            raise AgentFailed(host=self.name, reason=str(error)) from error
        return replace(answer, host=self.name) if isinstance(answer, Platform) else answer


def _followed(lines: Iterator[Json]) -> Json:
    return next(line for line in lines if ends(line))


class _Long:
    """A call that can be steered while it lasts."""

    def __init__(self, link: AgentLink, watch: Watch) -> None:
        self._link = link
        self._steering = ByteBudget(watch, self._order)
        self._operation = ""

    def follow(self, lines: Iterator[Json]) -> Json:
        """Follow the call to its end, and return its last line.

        An error that the watch raises also cancels the call on the host; HostUnreachable, which another host may cause,
        only stops following it.
        """
        for line in lines:
            self._operation = line.get("operation", self._operation)
            if ends(line):
                if "answer" in line:
                    self._acknowledge()
                return line
            try:
                self._steering.heard(line)
            except HostUnreachable:
                raise  # another host is away: what runs here runs on, and is found again
            except VmferryError:
                self._order({"cancel": True})
                _followed(lines)
                raise
        raise AgentFailed(host=self._link.name, reason="an answer had no end")

    def _order(self, order: Json) -> None:
        self._link.ask("POST", f"operations/{self._operation}", order)

    def _acknowledge(self) -> None:
        with suppress(HostUnreachable):  # it forgets the answer by itself, later
            self._order({"heard": True})


class RemoteHosts:
    """Hosts by the name of an agent, or by a libvirt URI through `here`."""

    def __init__(self, here: Hosts, links: AgentLinks) -> None:
        self._here = here
        self._links = links

    def open(self, connect: str, token: FencingToken | None = None) -> Host:
        """Return the host with that agent name or libvirt URI. Raises NoSuchHost for an agent that is not known."""
        if ":" in connect:
            return self._here.open(connect, token)
        link = self._links.find(connect)
        if link is None:
            raise NoSuchHost(host=connect)
        return RemoteHost(link, token)
