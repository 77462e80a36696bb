"""Whatever the protocol of a host takes and returns arrives as it was sent; and so do its errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from vmferry import errors, model
from vmferry.errors import BadRequest, HostRefused, VmferryError
from vmferry.hosts.interface import Host
from vmferry.hosts.wire import CALLS, dump_error, load_error
from vmferry.model import Placed, Url
from vmferry.transfer import Compared, Copied, Place, Transfer, Watch

NAMES = st.text("abz09-_.:/ ü", min_size=1, max_size=12)
PATHS = NAMES.map(lambda name: Path("/") / name.lstrip("/"))
PLACES = st.builds(Place, st.sampled_from(["/a/b", "nbds://h:1/x", "iscsi://h/t/1"]), exists=st.booleans())
ENDS = PATHS | PLACES

st.register_type_strategy(str, NAMES)
st.register_type_strategy(Path, PATHS)
st.register_type_strategy(Place, PLACES)
st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))
st.register_type_strategy(int, st.integers(0, 2**53))
st.register_type_strategy(
    Mapping, lambda kind: st.dictionaries(*(st.from_type(held) for held in get_args(kind)), max_size=3)
)
st.register_type_strategy(Transfer, st.builds(Transfer, ENDS, ENDS, PATHS))


def hints(name: str) -> dict[str, Any]:
    return {n: hint for n, hint in get_type_hints(getattr(Host, name)).items() if hint is not Watch}


@pytest.mark.parametrize("name", sorted(CALLS))
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_arguments_and_answers_arrive_as_they_were_sent(name: str, data: st.DataObject) -> None:
    call = CALLS[name]
    types = hints(name)
    answer = data.draw(st.from_type(types.pop("return")))
    arguments = {n: data.draw(st.from_type(hint)) for n, hint in types.items()}
    assert call.load(_sent(call.dump(arguments))) == arguments
    assert _plain(call.load_answer(_sent(call.dump_answer(answer)))) == _plain(answer)


def _plain(value: object) -> object:
    """A sequence arrives as some sequence."""
    return list(value) if isinstance(value, list | tuple) else value


def _sent(told: object) -> Any:
    return json.loads(json.dumps(told))


@pytest.mark.parametrize(
    "record", [r for r in vars(model).values() if isinstance(r, type) and is_dataclass(r)] + [Copied, Compared]
)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_any_record_can_be_an_argument_of_a_method_to_come(record: type, data: st.DataObject) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(record)
    made = data.draw(st.from_type(record))
    assert adapter.validate_python(_sent(adapter.dump_python(made, mode="json"))) == made


@pytest.mark.parametrize("where", [Path("/a/url"), Url("nbd://h/x"), Path("nbd:/x"), Url("/a")])
def test_a_path_stays_a_path_and_a_url_a_url(where: Path | Url) -> None:
    call = CALLS["users"]
    assert call.load(_sent(call.dump({"path": where}))) == {"path": where}
    point = CALLS["point"]
    told = {"uuid": "u", "disks": {"vda": Placed(where, "raw", 1)}, "files": {Path("/a"): Path("/b")}}
    told["sources"] = {"vda": [where]}
    assert point.load(_sent(point.dump(told))) == told


@pytest.mark.parametrize(
    "told",
    [None, [], {}, {"path": 1}, {"path": "/a", "more": 1}, {"path": {"url": 1}}, {"path": {"at": "/a"}}, {"p": 1}],
)
def test_what_makes_no_sense_is_a_bad_request(told: object) -> None:
    with pytest.raises(BadRequest):
        CALLS["users"].load(told)


def _fields(kind: type[VmferryError]) -> Mapping[str, object]:
    from string import Formatter

    return {name: f"the {name}" for _, name, _, _ in Formatter().parse(kind.says) if name}


@pytest.mark.parametrize(
    "kind", [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, VmferryError)]
)
def test_every_error_is_raised_again_as_it_was(kind: type[VmferryError]) -> None:
    fields = dict(_fields(kind)) | {"path": Path("/a/b"), "offset": 4096}
    sent = kind(**fields)
    arrived = load_error(_sent(dump_error(sent)), "host1")
    assert type(arrived) is kind
    assert str(arrived) == str(sent)
    assert arrived.fields == sent.fields


@pytest.mark.parametrize(
    "told",
    [None, {}, {"kind": "OSError", "fields": {}}, {"kind": "HostRefused", "fields": {}}, {"kind": 1, "fields": 1}],
)
def test_an_error_of_a_kind_that_is_not_known_here_is_one_that_says_so(told: object) -> None:
    assert type(load_error(told, "host1")).__name__ == "AgentFailed"


def test_what_a_host_says_of_its_own_libvirt_it_says_by_its_name_here() -> None:
    sent = HostRefused(host="qemu:///system", action="freeze", reason="on fire")
    assert str(load_error(_sent(dump_error(sent)), "host1")) == "host1 refused to freeze: on fire"
