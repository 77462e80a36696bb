"""What the documents tell a person to type exists: commands, options, make targets, links, sentences."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path

import pytest
import typer.main

from vmferry import errors
from vmferry.cli.main import app
from vmferry.cli.options import Globals
from vmferry.migration.strategies import STRATEGIES

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
STEPS = {name for strategy in STRATEGIES.values() for name in strategy.names}
PLACEHOLDERS = {"RATE": "200MiB", "TIME": "2s", "SECONDS": "2s", "TARGET=DIR": "vda=/srv"}


def _blocks(page: Path) -> list[str]:
    """Each line that a person types, from the console blocks of a page."""
    blocks = re.findall(r"^ *```console\n(.*?)^ *```", page.read_text(), re.M | re.S)
    return [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines() if line.strip()]


def _words(page: Path) -> list[list[str]]:
    """The words of each command of ours: in console blocks whole, in running text perhaps without its arguments."""
    inline = re.findall(r"(?<!`)`((?:vmferry|make) [^`]+)`", page.read_text())
    typed = [shlex.split(line.removeprefix("sudo ")) for line in _blocks(page)]
    return typed + [[*shlex.split(line), "--help"] for line in inline]


def _commands(program: str) -> list[tuple[str, ...]]:
    found = {tuple(words) for page in PAGES for words in _words(page) if words[0] == program}
    return sorted(found)


def _parse(words: list[str]) -> None:
    """Parse as the command line does, and run nothing. Raises click's UsageError, typer.Exit for --help."""
    command = typer.main.get_command(app)
    context = command.make_context("vmferry", words, obj=Globals())
    while isinstance(command, typer.core.TyperGroup):
        name, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None, name
        command, context = found, found.make_context(name, rest, parent=context)


@pytest.mark.parametrize("words", _commands("vmferry"), ids=" ".join)
def test_a_command_in_the_documents_is_one_that_exists(words: tuple[str, ...]) -> None:
    given = [PLACEHOLDERS.get(word, word) for word in words[1:]]
    if given[-1] != "--help":
        _parse(given)
        return
    with pytest.raises(typer.Exit) as end:
        _parse(given)
    assert end.value.exit_code == 0


def test_the_unit_of_the_agent_starts_a_command_that_exists() -> None:
    unit = (ROOT / "packaging/vmferry-agent.service").read_text()
    started = re.findall(r"^ExecStart=(.*)$", unit, re.M)
    assert len(started) == 1
    _parse(shlex.split(started[0])[1:])


@pytest.mark.parametrize(
    "words", [("fly",), ("jobs", "--fast"), ("job", "limit", "ID"), ("job", "limit", "ID", "soon")]
)
def test_a_command_that_does_not_exist_would_be_found(words: tuple[str, ...]) -> None:
    with pytest.raises(Exception, match=r"fly|--fast|rate|soon"):
        _parse(list(words))


def test_the_documents_name_every_command() -> None:
    told = {" ".join(words) for words in _commands("vmferry")}
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    for name, command in group.commands.items():
        names = [f"{name} {sub}" for sub in command.commands] if isinstance(command, typer.core.TyperGroup) else [name]
        for full in names:
            assert any(re.search(rf"\b{full}\b", line) for line in told), f"no page tells of vmferry {full}"


def test_a_make_target_in_the_documents_exists() -> None:
    there = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    told = {words[1] for words in _commands("make")}
    assert {"demo", "test"} <= told <= there


def test_a_console_block_holds_commands_only() -> None:
    for page in PAGES:
        for block in re.findall(r"^ *```console\n(.*?)^ *```", page.read_text(), re.M | re.S):
            assert all(line.strip().startswith("$ ") for line in block.splitlines() if line.strip()), page


def test_a_link_leads_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert "://" in link or (page.parent / link).exists(), f"{page.name} links to {link}"


def test_a_sentence_of_a_stuck_job_is_one_that_vmferry_says() -> None:
    says = [error.says for _, error in inspect.getmembers(errors, inspect.isclass) if hasattr(error, "says")]
    section = (ROOT / "docs/operations.md").read_text().partition("## Stuck jobs")[2].partition("\n## ")[0]
    told = re.findall(r'^(?:\| )?"([^"]+)"', section, re.M)
    assert len(told) > 10
    for sentence in told:
        parts = [re.escape(part) for part in sentence.split("…")]
        assert any(re.fullmatch(".*".join(parts), text) for text in says), f"nothing says {sentence!r}"


def test_every_step_is_told_of() -> None:
    page = (ROOT / "docs/how-it-works.md").read_text()
    assert set(re.findall(r"\((\w+)\)", page)) & STEPS == STEPS


def test_the_walk_from_the_command_to_the_disk_names_files_and_their_number() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    section = page.partition("## From the command to the disk")[2].partition("\n## ")[0]
    listed = re.findall(r"`([\w/]+\.py)`", section.partition("\n`copying.py`")[0])
    assert [path for path in listed if not (ROOT / "src/vmferry" / path).is_file()] == []
    assert len(set(listed)) == len(listed) == int(re.findall(r"(\d+) files:", section)[0]) <= 35


def test_a_test_in_the_documents_is_one_that_exists() -> None:
    named = [found for page in PAGES for found in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text())]
    assert len(named) > 20
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text(), f"{path} has no {name}"


def test_a_path_of_the_code_exists() -> None:
    for page in PAGES:
        for path in re.findall(r"`((?:src|tests|docs|scripts)/[\w/.]+)`", page.read_text()):
            assert (ROOT / path).exists(), f"{page.name} names {path}"
