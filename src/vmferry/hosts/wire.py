"""The calls of hosts.interface.Host as JSON, derived from its signatures: a method added there is carried at once.

Paths stay distinct from other places: a path travels as a string, a Url or a Place as an object.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from vmferry import errors
from vmferry.errors import AgentFailed, BadRequest, VmferryError
from vmferry.hosts.interface import Host
from vmferry.hosts.interface.query import is_query
from vmferry.transfer import Watch

PROTOCOL = 9
"""Version of requests, answers and the calls in them; raised whenever an older agent or manager would misread them."""

Json = dict[str, Any]


def ends(line: Json) -> bool:
    """Is it the last line of an answer?"""
    return "answer" in line or "problem" in line


@dataclass(frozen=True)
class Call:
    """One method of hosts.interface.Host, and how its arguments and its answer travel as JSON."""

    name: str
    signature: inspect.Signature
    hints: Mapping[str, Any]
    """The types of the arguments that travel, which is all but a Watch, and of what is returned."""
    watched: str | None
    """The argument that is a Watch: such a call is long."""
    looks: bool
    """The method is a query: it changes nothing."""

    @cached_property
    def types(self) -> Mapping[str, TypeAdapter[Any]]:
        """Type adapters of the arguments that travel, by name.

        Made when first needed: a worker without agents needs none, and making all of them takes 0.1 s.
        """
        return {name: TypeAdapter(hint) for name, hint in self.hints.items() if name != "return"}

    @cached_property
    def answer(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.hints["return"])

    def bind(self, *args: object, **kwargs: object) -> dict[str, Any]:
        """Return the arguments by name, including those left at their defaults."""
        bound = self.signature.bind(None, *args, **kwargs)
        bound.apply_defaults()
        return {name: value for name, value in bound.arguments.items() if name != "self"}

    def dump(self, arguments: Mapping[str, Any]) -> Json:
        return {name: _dump(self.types[name], arguments[name]) for name in self.types}

    def load(self, values: object) -> dict[str, Any]:
        """Return the arguments by name, read from their JSON. Raises BadRequest."""
        if not isinstance(values, dict) or values.keys() != self.types.keys():
            raise BadRequest(reason=f"{self.name} takes {', '.join(self.types) or 'nothing'}")
        return {name: _load(type_, values[name], f"{self.name}: {name}") for name, type_ in self.types.items()}

    def dump_answer(self, answer: object) -> Any:
        return _dump(self.answer, answer)

    def load_answer(self, answer: object) -> Any:
        """Return the method's answer, read from its JSON. Raises BadRequest."""
        return _load(self.answer, answer, f"the answer to {self.name}")


def _dump(type_: TypeAdapter[Any], value: object) -> Any:
    plain = dict(value) if isinstance(value, Mapping) else value  # pydantic takes a Mapping, but writes only a dict
    return type_.dump_python(plain, mode="json", by_alias=False)


def _load(type_: TypeAdapter[Any], value: object, what: str) -> Any:
    try:
        return type_.validate_python(value, by_alias=False, by_name=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadRequest(reason=f"{what} {where}: {first['msg']}") from error


def _call(name: str) -> Call:
    method = getattr(Host, name)
    hints = get_type_hints(method)
    watched = next((n for n, hint in hints.items() if hint is Watch), None)
    travels = {n: hint for n, hint in hints.items() if n != watched}
    return Call(name, inspect.signature(method), travels, watched, is_query(method))


CALLS: Mapping[str, Call] = {
    name: _call(name)
    for name, found in inspect.getmembers(Host, inspect.isfunction)  # those of its groups too
    if not name.startswith("_")
}


# -- errors


def dump_error(error: VmferryError) -> Json:
    """Return an error as JSON: class name and fields, from which the same class is raised again on the other side.

    Its sentence goes along for an older reader, which may not have the class.
    """
    fields = {name: _plain(value) for name, value in error.fields.items()}
    return {"kind": type(error).__name__, "fields": fields, "sentence": str(error)}


def load_error(problem: object, host: str) -> VmferryError:
    """Return the error that `host` raised; AgentFailed with its sentence if this side has no such class.

    A libvirt URI in its field `host`, which would mean another libvirt here, is replaced by the host's name.
    """
    if not isinstance(problem, dict) or not isinstance(fields := problem.get("fields"), dict):
        return AgentFailed(host=host, reason=f"it answered {str(problem)[:200]}")
    kind = getattr(errors, str(problem.get("kind")), None)
    if not (isinstance(kind, type) and issubclass(kind, VmferryError)):
        return AgentFailed(host=host, reason=f"{problem.get('kind')}: {problem.get('sentence')}")
    if ":" in str(fields.get("host", "")):
        fields = fields | {"host": host}
    try:
        return kind(**{str(name): _unplain(value) for name, value in fields.items()})
    except (TypeError, ValueError):
        return AgentFailed(host=host, reason=f"{problem.get('kind')}: {problem.get('sentence')}")


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return {"path": str(value)}
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _unplain(value: object) -> object:
    return Path(str(value["path"])) if isinstance(value, dict) and "path" in value else value
