"""Options that several commands share, and what their values mean."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from vmferry.cli.render.sizes import parse_rate, parse_seconds
from vmferry.model import Priority, Receivers, Url, Where
from vmferry.process.state import StateLocation, home

T = TypeVar("T")

VIA = ("auto", "live", "quick", "offline", "lan")


@dataclass
class Globals:
    """The options before the command, and whether the command answers in JSON, for the handling of its errors."""

    state: str | None = None
    runtime: Path | None = None
    connect: str | None = None
    json: bool = False


@dataclass(frozen=True)
class Rate:
    """A limit that was given, in bytes per second; None means no limit."""

    bytes_s: int | None


@dataclass(frozen=True)
class DiskTo:
    target: str
    to: Where
    """A folder, a block device, or a volume over the network."""


def saying(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Return the parser with its ValueError turned into a usage error."""

    def parsed(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    return parsed


def _named(text: str) -> str:
    if not text:
        raise ValueError("it is empty: is a variable of a script not set?")
    return text


def _rate(text: str | Rate) -> Rate:
    return text if isinstance(text, Rate) else Rate(parse_rate(text))


def _via(text: str) -> str:
    if text not in VIA:
        raise ValueError(f"{text!r} is not one of {', '.join(VIA)}")
    return text


def _seconds(text: str | float) -> float:
    return text if isinstance(text, float) else parse_seconds(text)


def _folder(text: str | Path) -> Path:
    """Return an absolute path; symbolic links stay, since stable names may rest on them. Raises ValueError if empty."""
    path = Path(text).expanduser()
    if not str(text).strip():
        raise ValueError("it is empty: name a folder")
    return path.resolve() if ".." in path.parts else path.absolute()


def _disk_to(text: str | DiskTo) -> DiskTo:
    if isinstance(text, DiskTo):
        return text
    target, equals, to = text.partition("=")
    if not (target and equals and to):
        raise ValueError(f"{text!r} is not TARGET=PLACE: write it as vdb=/srv/fast or vdb=/dev/sdx")
    return DiskTo(target, Url(to) if "://" in to else _folder(to))


def _priority(text: str) -> str:
    if text not in list(Priority):
        raise ValueError(f"{text!r} is not one of {', '.join(Priority)}")
    return text


def place_text(text: str) -> str:
    """Return a URL as it is, a path made absolute."""
    return text if "://" in text else str(_folder(text))


def _format(text: str | None) -> str | None:
    if text not in (None, "raw", "qcow2"):
        raise ValueError(f"{text!r} is not one of raw, qcow2")
    return text


rate_given = saying(_rate)
State = Annotated[
    str | None,
    typer.Option(
        "--state",
        metavar="DIR|URL",
        help="Folder of jobs and worker, or postgresql://USER@HOST/NAME for several managers"
        " [VMFERRY_STATE; /var/lib/vmferry for root, else the XDG state folder].",
        show_default=False,
    ),
]
Runtime = Annotated[
    Path | None,
    typer.Option(
        "--runtime",
        metavar="DIR",
        parser=saying(_folder),
        help="Folder of this machine's manager, where --state is a database [VMFERRY_RUNTIME].",
        show_default=False,
    ),
]
Connect = Annotated[
    str | None,
    typer.Option(
        "--connect",
        "-c",
        metavar="URI",
        help="libvirt to talk to, or a host's name [LIBVIRT_DEFAULT_URI; qemu:///system].",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
JobId = Annotated[
    str, typer.Argument(metavar="ID", callback=saying(_named), help="The job's id, or its first letters.")
]
TransferId = Annotated[
    str, typer.Argument(metavar="ID", callback=saying(_named), help="The transfer's id, or its first letters.")
]
VmName = Annotated[str, typer.Argument(metavar="VM", callback=saying(_named), help="Name or UUID.")]
HostArgument = Annotated[str, typer.Argument(metavar="HOST", help="A libvirt URI, or the name of an added host.")]
Folder = Annotated[
    Path | None,
    typer.Option("--path", metavar="DIR", parser=saying(_folder), help="Where all the VM's files go."),
]
Disks = Annotated[
    list[DiskTo] | None,
    typer.Option(
        "--disk",
        metavar="TARGET=PLACE",
        parser=saying(_disk_to),
        help="Where one disk goes instead: a folder, a block device, iscsi://, nbd:// or nfs://; may be repeated.",
    ),
]
OverlayDir = Annotated[
    Path | None,
    typer.Option(
        "--overlay-dir",
        metavar="DIR",
        parser=saying(_folder),
        help="Where the guest's writes gather meanwhile, for a disk on a device or over the network.",
    ),
]
priority_text = saying(_priority)
PriorityLevel = Annotated[
    str,
    typer.Option(
        "--priority",
        metavar="|".join(Priority),
        parser=priority_text,
        help="A higher one goes first, those below trickle meanwhile; all but foreground give way to guests.",
    ),
]
Format = Annotated[
    str | None,
    typer.Option("--format", metavar="raw|qcow2", parser=saying(_format), help="Of the disks at the new place."),
]
RemoveBases = Annotated[
    bool,
    typer.Option(
        "--remove-bases",
        help="Remove base images with the source too, where nobody else needs them; else only those beside the disks.",
    ),
]
_PAUSE = typer.Option(
    "--max-pause",
    metavar="TIME",
    parser=saying(_seconds),
    help="The longest the guest may stand still, as 2s or 500ms.",
)
MaxPause = Annotated[float, _PAUSE]
NewMaxPause = Annotated[float | None, _PAUSE]
Limit = Annotated[
    Rate | None,
    typer.Option(
        "--limit",
        metavar="RATE",
        parser=saying(_rate),
        help="At most so much a second, as 200MiB; none for no limit.",
        show_default=False,
    ),
]
Via = Annotated[
    str,
    typer.Option(
        "--via",
        metavar="|".join(VIA),
        parser=saying(_via),
        help="How; auto takes the way with the shortest pause that is possible.",
    ),
]
NewRate = Annotated[Rate, typer.Argument(metavar="RATE", parser=saying(_rate), help="As 200MiB; none for no limit.")]


def globals_of(ctx: typer.Context) -> Globals:
    found = ctx.find_root().obj
    assert isinstance(found, Globals)
    return found


def state_place(ctx: typer.Context, state: str | None) -> StateLocation:
    """Return the state's location: the command's option, the global one, VMFERRY_STATE or the user's default."""
    given = state or globals_of(ctx).state or os.environ.get("VMFERRY_STATE")
    if given is not None and "://" in given:
        runtime = globals_of(ctx).runtime or os.environ.get("VMFERRY_RUNTIME")
        return StateLocation.of(given, _folder(runtime) if runtime else None)
    return StateLocation(_folder(given) if given else home())


def connect_uri(ctx: typer.Context, connect: str | None) -> str:
    """Return the hypervisor's URI, chosen as virsh does: the option, LIBVIRT_DEFAULT_URI, qemu:///system."""
    given = connect or globals_of(ctx).connect or os.environ.get("LIBVIRT_DEFAULT_URI")
    return given or "qemu:///system"


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
    """Return the receivers of notices that were named, with the secret's file as an absolute path."""
    return Receivers(command.strip(), url.strip(), secret.expanduser().absolute() if secret else None)
