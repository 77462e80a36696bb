"""Makes docs/pictures/move.svg: `vmferry migrate-storage` on a terminal, against a lab's guest that writes.

    sudo .venv/bin/pip install pyte
    sudo .venv/bin/python scripts/picture.py docs/pictures/move.svg

What the picture shows was on the terminal in this order: the live view when about 60 % were copied (vmferry
takes it away at the end), then what was left there when the command had ended.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shlex
import struct
import subprocess
import sys
import termios
import time
from html import escape, unescape
from io import StringIO
from itertools import groupby
from pathlib import Path

import pyte  # type: ignore[import-not-found,unused-ignore]
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from vmferry.lab import DiskSpec, GuestSpec, LabHost
from vmferry.lab.vmferry_command import COMMAND, Ferry

COLUMNS, LINES = 104, 40
LIMIT = "60MiB"
TAKEN_AT = (55, 75)
"""The live view is taken when the first bar stands between these percents."""
DEADLINE_S = 180
DIM, GREY = b"\x1b[2m", b"\x1b[90m"
"""pyte knows no faint letters."""
GUEST = GuestSpec(
    "web01",
    disks=(
        DiskSpec("vda", format="qcow2", size_mib=640, data_mib=288, internal_snapshot="before"),
        DiskSpec("vdb", format="raw", size_mib=384, data_mib=128),
    ),
    rate=0,
)
GROUND, LETTERS, GREY_LETTERS = (24, 27, 31), (205, 209, 214), (132, 138, 146)
COLOURS = [(240, 113, 120), (126, 198, 153), (229, 192, 123), (97, 175, 239), (198, 120, 221), (86, 182, 194)]
THEME = TerminalTheme(GROUND, LETTERS, [GROUND, *COLOURS, LETTERS], [GREY_LETTERS, *COLOURS, LETTERS])
CELL = 12.2
TEXT = r'<text (class="vmferry-r[^"]*") x="([^"]*)" (y="[^"]*") textLength="[^"]*" (clip-path="[^"]*")>([^<]*)</text>'
FORMAT = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<title>vmferry migrate-storage on a terminal</title>
<style>
.{unique_id}-matrix {{
  font-family: "DejaVu Sans Mono", Menlo, Consolas, "Liberation Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width;
}}
.{unique_id}-title {{ font-size: 18px; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
"""Rich's own, without the fonts that it loads from elsewhere."""


def main(svg: Path) -> int:
    host = LabHost().up(owner_pid=os.getpid())
    try:
        with Ferry(host.at / "state", host.uri) as ferry:
            guest = host.guest(GUEST)
            folder = host.storage("san2") / GUEST.name
            folder.mkdir()
            guest.wait_acks(200)
            ferry.run("vms")  # the worker is up already
            words = ("migrate-storage", GUEST.name, "--path", str(folder), "--limit", LIMIT)
            live, end = on_terminal((*COMMAND, *words), ferry.environment | {"TERM": "xterm-256color"})
    finally:
        host.down()
    prompt = Text.assemble(("# ", "bright_black"), (f"vmferry {shlex.join(words)}", "bold"))
    draw(svg, [prompt, *live, Text(), Text("(a few seconds later)", style="bright_black"), *end])
    return 0


def on_terminal(command: tuple[str, ...], environment: dict[str, str]) -> tuple[list[Text], list[Text]]:
    """Run it on a terminal of its own. Returns the live view while it copies, and what was left at the end."""
    environment = {name: value for name, value in environment.items() if name != "COLUMNS"}
    terminal, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    running = subprocess.Popen(command, env=environment, stdin=inner, stdout=inner, stderr=inner, close_fds=True)
    os.close(inner)
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    live: list[Text] = []
    until = time.monotonic() + DEADLINE_S
    while (read := _read(terminal, until)) is not None:
        stream.feed(read.replace(DIM, GREY))
        seen = _lines(screen)
        if not live and _percent(seen):
            live = seen
    if running.wait(10) != 0 or not live:
        raise SystemExit("\n".join(line.plain for line in _lines(screen)) or "nothing was seen")
    return live, _lines(screen)


def _read(terminal: int, until: float) -> bytes | None:
    """A redraw's worth of bytes; None at the end."""
    ready, _, _ = select.select([terminal], [], [], max(0.0, until - time.monotonic()))
    if not ready:
        raise SystemExit("the command took too long")
    try:
        return os.read(terminal, 1 << 16) or None
    except OSError:  # EIO: nobody has the other end any more
        return None


def _percent(lines: list[Text]) -> bool:
    """Is this the moment: all of the view there, the base on its way, the first bar about half?"""
    text = "\n".join(line.plain for line in lines)
    found = re.search(r"^vda .* (\d+) %", text, re.M)
    whole = all(word in text for word in ("copying the base", "next", "left", "limit"))
    return bool(found) and whole and TAKEN_AT[0] <= int(found[1] if found else 0) <= TAKEN_AT[1]


def _lines(screen: pyte.Screen) -> list[Text]:
    """The screen as styled lines, without the empty ones at its end."""
    lines = [_line(screen, y) for y in range(screen.lines)]
    while lines and not lines[-1].plain:
        lines.pop()
    return lines


def _line(screen: pyte.Screen, y: int) -> Text:
    chars = [screen.buffer[y][x] for x in range(screen.columns)]
    runs = groupby(chars, lambda char: Style(color=_colour(char.fg), bold=char.bold))
    line = Text.assemble(*(("".join(char.data for char in run), style) for style, run in runs))
    line.rstrip()
    return line


def _colour(name: str) -> str | None:
    """As rich names it: pyte says "brown" for yellow, and six hex digits for the 256 colours."""
    if name == "default":
        return None
    if re.fullmatch(r"[0-9a-f]{6}", name):
        return f"#{name}"
    return {"brown": "yellow", "brightbrown": "bright_yellow"}.get(name, name.replace("bright", "bright_"))


def draw(svg: Path, lines: list[Text]) -> None:
    """Write the lines as one picture."""
    console = Console(record=True, width=COLUMNS, color_system="truecolor", force_terminal=True, file=StringIO())
    for line in lines:
        console.print(line, soft_wrap=True)
    made = console.export_svg(title="vmferry", theme=THEME, code_format=FORMAT, unique_id="vmferry")
    made = re.sub(TEXT, _placed, made)
    svg.parent.mkdir(parents=True, exist_ok=True)
    svg.write_text("\n".join(line.strip() for line in made.splitlines() if line.strip()) + "\n")


def _placed(found: re.Match[str]) -> str:
    """Each group of words at its own column: some programs drop the blanks that a text begins with."""
    head, x, y, clip, content = found.groups()
    at = float(x)
    texts = []
    for words in re.finditer(r"\S+(?: \S+)*", unescape(content).replace("\xa0", " ")):
        left, length = at + words.start() * CELL, len(words[0]) * CELL
        place = f'x="{left:g}" {y} textLength="{length:g}" {clip}'
        texts.append(f"<text {head} {place}>{escape(words[0], quote=False)}</text>")
    return "\n".join(texts)


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
