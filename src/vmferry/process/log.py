"""The worker's log: one JSON object a line, in STATE/worker.log, at most four files of 8 MiB."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path

import structlog

FILE_BYTES = 8 << 20
OLD_FILES = 3


class _Log(RotatingFileHandler):
    """A rotated log that also takes what C libraries and the interpreter print, after `take_over`."""

    _took_over = False

    def take_over(self) -> None:
        """Make file descriptors 1 and 2 this file: nothing keeps the starter's terminal or pipe open."""
        self._took_over = True
        if self.stream is not None:
            for number in (1, 2):
                os.dup2(self.stream.fileno(), number)

    def doRollover(self) -> None:
        super().doRollover()
        if self._took_over:
            self.take_over()


def start(path: Path, *, foreground: bool) -> None:
    """Send structlog's and the standard library's records to the file; `foreground`: to the terminal instead.

    Standard error stays where it is until `take_over`, so that the starter of a worker sees why it could not start.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = _terminal() if foreground else _file(path)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(default=str),
            ],
        )
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each call to an agent tells nothing
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def take_over() -> None:
    """Send all further output to the log file, if there is one, and enable faulthandler."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Log):
            handler.take_over()
    faulthandler.enable()


def _terminal() -> logging.Handler:
    return logging.StreamHandler(sys.stderr)


def _file(path: Path) -> logging.Handler:
    handler = _Log(path, maxBytes=FILE_BYTES, backupCount=OLD_FILES, encoding="utf-8")
    path.chmod(0o600)
    return handler
