"""The folders of vmferry, from the ground up, and their chart in docs/architecture.md.

`python -m tests.support.chart` writes the chart; tests/unit/test_imports.py holds the code to the list.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "vmferry"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- chart: make chart -->", "<!-- end of chart -->"

LAYERS = (
    ("model", "errors"),
    ("durable",),
    ("process", "qemu", "authority", "tunnel"),
    ("transfer",),
    ("hosts",),
    ("migration",),
    ("preflight",),
    ("manager.store",),
    ("manager.limits", "manager.notify"),
    ("manager.fleet", "manager.transfers"),
    ("manager.jobs",),
    ("api",),
    ("agent", "server"),
    ("cli",),
)
"""A folder imports from itself and from the folders above it in this list."""
APART = ("lab",)
"""Tools that stand beside the spine: nothing of it imports them, but the command."""


def chart() -> str:
    """The list as a page shows it, what imports above what it imports."""
    lines = []
    for layer in reversed(LAYERS):
        lines += [f"| `{name.replace('.', '/')}` | {_says(name)} |" for name in layer]
    return "\n".join(["| folder | what it is |", "|---|---|", *lines])


def page_with_chart(text: str) -> str:
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{chart()}\n\n{END}{rest.partition(END)[2]}"


def _says(name: str) -> str:
    """The first line of a module's or a folder's docstring."""
    place = SRC.joinpath(*name.split("."))
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    said = ast.get_docstring(ast.parse(file.read_text())) or ""
    return said.splitlines()[0]


if __name__ == "__main__":
    PAGE.write_text(page_with_chart(PAGE.read_text()))
