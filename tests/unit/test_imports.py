"""The plan of the house: imports point one way, files and functions stay short."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.support.chart import APART, LAYERS, PAGE, SRC, page_with_chart

FILES = sorted(SRC.rglob("*.py"))
MOST_LINES = 400
MOST_FUNCTION_LINES = 50

HEAVY = {"dbos", "libvirt", "libvirt_qemu", "nbd", "sqlalchemy"}
ONLY = {"dbos": "manager/jobs/engine.py", "sqlalchemy": "manager/store/"}


def part(names: Sequence[str]) -> str:
    """The folder of a module, by the names of its path below vmferry; of the manager, the folder in it."""
    return ".".join(names[: 2 if names[0] == "manager" else 1])


def folder(path: Path) -> str:
    return part(path.relative_to(SRC).with_suffix("").parts)


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "vmferry":
                yield from (f"vmferry.{alias.name}" for alias in node.names)
            else:
                yield node.module


def layer(name: str) -> int:
    for number, names in enumerate(LAYERS):
        if name in names:
            return number
    raise AssertionError(f"{name} has no place in the layers: give it one")


def ours(path: Path) -> set[str]:
    return {part(name.split(".")[1:]) for name in imports(path) if name.startswith("vmferry.")}


@pytest.mark.parametrize("path", [f for f in FILES if f.name != "__init__.py" or f.parent != SRC], ids=str)
def test_imports_point_one_way(path: Path) -> None:
    here = folder(path)
    if here in APART:
        return
    for name in ours(path) - {here}:
        if name in APART:
            assert here == "cli", f"{path} imports the lab"
        else:
            assert layer(name) < layer(here), f"{here} must not import {name}"


def test_the_command_sees_only_the_client_of_the_api() -> None:
    """The lab's commands load the lab, and with it libvirt, but only once they are called."""
    seen, todo = set(), [f for f in FILES if folder(f) == "cli" and f.name not in ("lab.py", "lab_page.py")]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        wrong = {name.split(".")[0] for name in _at_start(path)} & HEAVY
        assert not wrong, f"{path}, which the command imports, imports {wrong}"
        todo += [file for name in _at_start(path) for file in _files(name)]


def test_each_library_stays_in_its_place() -> None:
    for path in FILES:
        for name in {name.split(".")[0] for name in imports(path)} & ONLY.keys():
            assert path.relative_to(SRC).as_posix().startswith(ONLY[name]), f"{path} imports {name}"


def test_the_chart_in_the_documents_is_the_one_that_holds() -> None:
    text = PAGE.read_text()
    assert page_with_chart(text) == text, "make chart"


def test_the_hosts_of_the_lab_do_not_know_its_guests() -> None:
    for path in SRC.glob("lab/hosts/*.py"):
        assert not [name for name in imports(path) if name.startswith("vmferry.lab.guests")], path


def test_a_class_name_is_there_once() -> None:
    where: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                where.setdefault(node.name, []).append(str(path.relative_to(SRC)))
    assert {name: paths for name, paths in where.items() if len(paths) > 1} == {}


def test_what_is_at_the_root_is_a_folder() -> None:
    assert {path.name for path in SRC.glob("*.py")} <= {"__init__.py", "durable.py"}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < MOST_FUNCTION_LINES, node.name


def _at_start(path: Path) -> set[str]:
    """What a file imports when it is imported itself: not what a function imports when it is called."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _files(module: str) -> list[Path]:
    """The files that importing a module of ours runs."""
    if not module.startswith("vmferry."):
        return []
    place = SRC.joinpath(*module.split(".")[1:])
    packages = [folder / "__init__.py" for folder in [place, *place.parents] if folder.is_relative_to(SRC)]
    return [path for path in [place.with_suffix(".py"), *packages] if path.exists()]
