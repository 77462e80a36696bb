"""vmferry verify: is what a receipt names still what it was?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmferry.api.client.errors import ServerError
from vmferry.cli.copy import TlsFolder
from vmferry.cli.options import Json, Limit, State, globals_of
from vmferry.cli.render.screen import print_json, shown
from vmferry.cli.render.sizes import bytes_text
from vmferry.cli.render.words import DONE, UNDONE, WRITTEN
from vmferry.cli.session import transfer_client
from vmferry.errors import NoSuchJob

if TYPE_CHECKING:
    from vmferry.transfer.ranges import Range
    from vmferry.transfer.verification.verify import DiskVerdict

MOST_SHOWN = 20

Named = Annotated[str, typer.Argument(metavar="RECEIPT", help="A file with a receipt, or the id of a job or transfer.")]


def verify(
    ctx: typer.Context,
    *,
    receipt: Named,
    limit: Limit = None,
    tls_dir: TlsFolder = None,
    json: Json = False,
    state: State = None,
) -> None:
    """Read what a receipt names again, and compare it by hash; unless it was written since.

    Ends with 0 if all is the same, 1 if something differs, 6 if something was written since: nothing can
    be said of that.
    """
    from vmferry.cli.receipt_file import seals_of
    from vmferry.cli.render.copy_page import CopyView
    from vmferry.transfer import Throttle
    from vmferry.transfer.verification.verify import verify as verify_one

    globals_of(ctx).json = json
    seals = seals_of(_receipt(ctx, receipt, state, json=json), receipt)
    verdicts = []
    with CopyView(Throttle(limit.bytes_s if limit else None), json=json) as view:
        for seal in seals:
            verdicts.append(verify_one(seal, view.phase("verifying"), tls_dir.absolute() if tls_dir else None))
    for verdict in verdicts:
        _say(verdict, json=json)
    raise typer.Exit(exit_code(verdicts))


def exit_code(verdicts: list[DiskVerdict]) -> int:
    """Return the exit code for the worst verdict: a difference weighs most. Pure."""
    outcomes = {str(verdict.outcome) for verdict in verdicts}
    if "differs" in outcomes:
        return UNDONE
    return WRITTEN if "written" in outcomes or not outcomes else DONE


def _receipt(ctx: typer.Context, name: str, state: str | None, *, json: bool) -> Mapping[str, object]:
    """Return the receipt of that name: from a file if there is one, else of a job, else of a transfer."""
    from vmferry.api.codec import to_json
    from vmferry.cli.receipt_file import read_receipt

    path = Path(name).expanduser()
    if "/" in name or path.exists():
        return read_receipt(path)
    worker = transfer_client(ctx, state, json=json)
    try:
        receipt: Mapping[str, object] = to_json(worker.receipt(name))
    except ServerError as error:
        if error.kind != NoSuchJob.__name__:
            raise
        return worker.transfer_receipt(name)
    return receipt


def _say(verdict: DiskVerdict, *, json: bool) -> None:
    if json:
        print_json(told(verdict))
    else:
        print("\n".join(map(shown, lines(verdict))), flush=True)


def told(verdict: DiskVerdict) -> dict[str, object]:
    """Return the verdict on one disk as a JSON object, for programs. Pure."""
    return {
        "event": "verified",
        "at": verdict.at,
        "outcome": str(verdict.outcome),
        "why": verdict.why,
        "compared_bytes": verdict.compared_bytes,
        "wrong": [_part(part) for part in verdict.wrong],
        "unreadable": [_part(part) for part in verdict.unreadable],
    }


def lines(verdict: DiskVerdict) -> list[str]:
    """Return the verdict on one disk as lines for people. Pure."""
    if verdict.outcome == "same":
        return [f"{verdict.at}: the same, {bytes_text(verdict.compared_bytes)} read and compared by hash"]
    if verdict.outcome == "written":
        return [f"{verdict.at}: cannot be verified, {verdict.why}"]
    if not verdict.wrong and not verdict.unreadable:
        return [f"{verdict.at}: differs, where cannot be told", *([f"  {verdict.why}"] if verdict.why else [])]
    found = [f"{verdict.at}: differs in {len(verdict.wrong) + len(verdict.unreadable)} chunks"]
    found += [f"  {verdict.why}: that may be the reason"] if verdict.why else []
    found += [f"  {_words(part)} differs" for part in verdict.wrong[:MOST_SHOWN]]
    found += [f"  {_words(part)} cannot be read" for part in verdict.unreadable[:MOST_SHOWN]]
    left = len(verdict.wrong[MOST_SHOWN:]) + len(verdict.unreadable[MOST_SHOWN:])
    return [*found, *([f"  and {left} more: --json has all"] if left else [])]


def _part(part: Range) -> dict[str, int]:
    from vmferry.transfer import CHUNK

    return {"chunk": part.start // CHUNK, "offset": part.start, "length": part.length}


def _words(part: Range) -> str:
    from vmferry.transfer import CHUNK

    return f"chunk {part.start // CHUNK}, bytes {part.start} to {part.end}"
