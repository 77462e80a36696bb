"""vmferry limit: what all jobs together may move on a host, or from and to a storage."""

from __future__ import annotations

from typing import Annotated

import typer

from vmferry.cli.options import Connect, Json, NewRate, State, connect_uri, place_text
from vmferry.cli.session import answer, client
from vmferry.cli.sizes import rate_text
from vmferry.model import Scope, SharedLimit

Storage = Annotated[
    str, typer.Argument(metavar="PLACE", parser=place_text, help="A folder of the storage, or its device or URL.")
]


def limit_host(
    ctx: typer.Context, *, rate: NewRate, json: Json = False, connect: Connect = None, state: State = None
) -> None:
    """Limit what all jobs of a host move together, from now on."""
    _set(ctx, SharedLimit(Scope.HOST, connect_uri(ctx, connect), "", rate.bytes_s), state, json=json)


def limit_storage(
    ctx: typer.Context,
    *,
    place: Storage,
    rate: NewRate,
    json: Json = False,
    connect: Connect = None,
    state: State = None,
) -> None:
    """Limit what all jobs read from and write to a storage together, from now on."""
    _set(ctx, SharedLimit(Scope.STORAGE, connect_uri(ctx, connect), place, rate.bytes_s), state, json=json)


def limits(ctx: typer.Context, *, json: Json = False, state: State = None) -> None:
    """List the limits of hosts and storages."""
    from rich.text import Text

    found = client(ctx, state, json=json).limits()
    answer(found, Text("\n".join(map(_line, found)) or "no limits"), json=json)


def _set(ctx: typer.Context, limit: SharedLimit, state: State, *, json: bool) -> None:
    from rich.text import Text

    found = client(ctx, state, json=json).set_shared_limit(limit)
    answer(found, Text(_line(found)), json=json)


def _line(limit: SharedLimit) -> str:
    from vmferry.cli.screen import shown

    return shown(f"{limit.scope} {limit.place or limit.connect}: {rate_text(limit.limit_bytes_s)}")
