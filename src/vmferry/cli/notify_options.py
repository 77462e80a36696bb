"""The options that name who is told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vmferry.model import Receivers

_COMMAND = "CMD"
_COMMAND_HELP = "Run this, without a shell; the event is JSON on its standard input, and in VMFERRY_ variables."
_URL_HELP = "POST the event there, as JSON."
_SECRET_HELP = "A file whose content signs what --notify-url gets."

NotifyCommand = Annotated[str, typer.Option("--notify-command", metavar=_COMMAND, help=_COMMAND_HELP)]
NotifyUrl = Annotated[str, typer.Option("--notify-url", metavar="URL", help=_URL_HELP)]
NotifySecret = Annotated[Path | None, typer.Option("--notify-secret", metavar="FILE", help=_SECRET_HELP)]
Command = Annotated[str, typer.Option("--command", metavar=_COMMAND, help=_COMMAND_HELP)]
Webhook = Annotated[str, typer.Option("--url", metavar="URL", help=_URL_HELP)]
Secret = Annotated[Path | None, typer.Option("--secret", metavar="FILE", help=_SECRET_HELP.replace("notify-", ""))]


def receivers(command: str, url: str, secret: Path | None) -> Receivers:
    """What was named; the file from where the user stands."""
    return Receivers(command.strip(), url.strip(), secret.expanduser().absolute() if secret else None)
