"""An error that came back from the worker; apart, so that the border of a command imports nothing heavy."""

from __future__ import annotations


class ServerError(Exception):
    """What the worker answered instead of a record: the sentence is the error's text."""

    def __init__(self, kind: str, sentence: str, exit_code: int) -> None:
        super().__init__(sentence)
        self.kind = kind
        self.exit_code = exit_code
