"""vmferry copy --detach: the worker copies, and who asked can go."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from vmferry.cli.options import priority_text, saying
from vmferry.cli.render.sizes import parse_days
from vmferry.cli.session import answer
from vmferry.model import NOBODY, Receivers

if TYPE_CHECKING:
    from vmferry.api.client.transfers import TransferClient
    from vmferry.model.transfers import TransferRequest
    from vmferry.transfer import Place

SHORTEST_RETRY_S = 5


def _days(text: str | float) -> float:
    return text if isinstance(text, float) else parse_days(text)


def _delay(text: str | float) -> float:
    found = _days(text)
    if found < SHORTEST_RETRY_S:
        raise ValueError(f"{text!r} is less than {SHORTEST_RETRY_S}s")
    return found


Detach = Annotated[bool, typer.Option("--detach", help="Let the worker do it, and return at once with an id.")]
RetryDelay = Annotated[
    float | None,
    typer.Option(
        "--retry-delay", metavar="TIME", parser=saying(_delay), help="With --detach: between two tries [10m]."
    ),
]
NoProgress = Annotated[
    float | None,
    typer.Option(
        "--no-progress",
        metavar="TIME",
        parser=saying(_days),
        help="With --detach: given up when it fails for so long; 0 at the first failure [14d].",
    ),
]
DetachedPriority = Annotated[
    str | None,
    typer.Option(
        "--priority",
        metavar="LEVEL",
        parser=priority_text,
        help="With --detach: foreground, high, normal or low [normal].",
    ),
]
Acknowledge = Annotated[
    bool, typer.Option("--acknowledge", help="With --detach: DST gets its name as soon as it is whole.")
]


@dataclass(frozen=True)
class RetryOptions:
    """The options that only --detach takes."""

    retry_delay_s: float | None
    no_progress_s: float | None
    priority: str | None
    hand_over: bool
    notify: Receivers

    def refuse(self) -> None:
        """Raise BadParameter if one was given all the same."""
        patience = (self.retry_delay_s, self.no_progress_s, self.priority)
        if self.hand_over or patience != (None, None, None) or self.notify != NOBODY:
            raise typer.BadParameter(
                "--retry-delay, --no-progress, --priority, --acknowledge and --notify-... need --detach"
            )

    def given(self) -> dict[str, object]:
        """What was given, by the names of TransferRequest."""
        named: dict[str, object] = {
            "retry_delay_s": self.retry_delay_s,
            "no_progress_s": self.no_progress_s,
            "priority": self.priority,
        }
        named |= {"hand_over": self.hand_over, "notify": self.notify}
        return {name: value for name, value in named.items() if value is not None}


def request_of(source: Place, destination: Place, connect: str, patience: RetryOptions) -> TransferRequest:
    """What the worker is asked, of what was given on the command line."""
    from vmferry.model.transfers import TransferRequest

    made = TransferRequest(
        source=source.at,
        destination=destination.at,
        connect=connect,
        source_format=source.format,
        destination_format=destination.format,
        tls=source.tls or destination.tls,
    )
    return replace(made, **patience.given())  # type: ignore[arg-type]


def submit(worker: TransferClient, request: TransferRequest, *, json: bool) -> None:
    """Queue it, and say how it can be followed."""
    from rich.text import Text

    found = worker.submit_transfer(request)
    page = Text(f"transfer {found.id} is {found.state}: `vmferry transfer watch {found.id}` shows it")
    answer(found, page, json=json)
