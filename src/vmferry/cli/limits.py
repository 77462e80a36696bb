"""vmferry limit: what all jobs together may move on a host, or from and to a storage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from vmferry.cli.calendars import EXAMPLE, parse_window, window_text
from vmferry.cli.options import Connect, Json, Rate, State, connect_uri, place_text, rate_given, saying
from vmferry.cli.render.sizes import rate_text
from vmferry.cli.session import answer, client
from vmferry.model import LimitView, Scope, Window

Storage = Annotated[
    str, typer.Argument(metavar="PLACE", parser=place_text, help="A folder of the storage, or its device or URL.")
]
PerhapsRate = Annotated[
    Rate | None, typer.Argument(metavar="RATE", parser=rate_given, help="As 200MiB; none for no limit.")
]
During = Annotated[
    list[str] | None,
    typer.Option(
        "--during",
        metavar="WINDOW",
        help=f'Lower it each week, as "{EXAMPLE}"; with =0 nothing moves then. May be repeated; none for never.',
    ),
]


def limit_host(
    ctx: typer.Context,
    *,
    rate: PerhapsRate = None,
    during: During = None,
    json: Json = False,
    connect: Connect = None,
    state: State = None,
) -> None:
    """Limit what all jobs of a host move together, from now on, or at certain hours of the week."""
    change = _change(rate, during)
    _set(ctx, (Scope.HOST, connect_uri(ctx, connect), ""), change, state, json=json)


def limit_storage(
    ctx: typer.Context,
    *,
    place: Storage,
    rate: PerhapsRate = None,
    during: During = None,
    json: Json = False,
    connect: Connect = None,
    state: State = None,
) -> None:
    """Limit what all jobs read from and write to a storage together, from now on, or at certain hours of the week."""
    change = _change(rate, during)
    _set(ctx, (Scope.STORAGE, connect_uri(ctx, connect), place), change, state, json=json)


def limits(ctx: typer.Context, *, json: Json = False, state: State = None) -> None:
    """List the limits of hosts and storages."""
    from rich.text import Text

    found = client(ctx, state, json=json).limits()
    answer(found, Text("\n".join(map(limit_text, found)) or "no limits"), json=json)


def _set(
    ctx: typer.Context, of: tuple[Scope, str, str], change: dict[str, object], state: str | None, *, json: bool
) -> None:
    from rich.text import Text

    found = client(ctx, state, json=json).set_shared_limit(*of, change)
    answer(found, Text(limit_text(found)), json=json)


def _change(rate: Rate | None, during: Sequence[str] | None) -> dict[str, object]:
    """Return the rate and windows that were given, as the API takes them. Raises BadParameter if there are none."""
    from vmferry.api.codec import to_json

    change: dict[str, object] = {} if rate is None else {"limit_bytes_s": rate.bytes_s}
    if during:
        change["during"] = to_json(_windows(during))
    if not change:
        raise typer.BadParameter(f'give a rate, as 200MiB or none, or --during "{EXAMPLE}", or both')
    return change


def _windows(given: Sequence[str]) -> list[Window]:
    if any(text.strip().lower() == "none" for text in given):
        if len(given) > 1:
            raise typer.BadParameter("--during none stands alone: it takes all windows away")
        return []
    return [saying(parse_window)(text) for text in given]


def limit_text(limit: LimitView) -> str:
    """Return "host qemu:///system: 200 MiB/s; mon-fri 08:00-18:00 20 MiB/s; now 20 MiB/s until Mon 18:00"."""
    from vmferry.cli.render.screen import shown

    parts = [f"{limit.name}: {rate_text(limit.limit_bytes_s)}", *map(window_text, limit.during)]
    if limit.during:
        now = "nothing moves" if limit.now_bytes_s == 0 else rate_text(limit.now_bytes_s)
        parts.append(f"now {now}{_until(limit.until)}")
    return shown("; ".join(parts))


def _until(until: str | None) -> str:
    from datetime import datetime

    return "" if until is None else f" until {datetime.fromisoformat(until).astimezone():%a %H:%M}"
