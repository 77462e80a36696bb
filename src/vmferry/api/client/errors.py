"""An error that the worker answered; in a file of its own, so that a command's error handling imports nothing heavy."""

from __future__ import annotations


class ServerError(Exception):
    """An error that the worker answered; its text is the sentence for people."""

    def __init__(self, kind: str, sentence: str, exit_code: int) -> None:
        super().__init__(sentence)
        self.kind = kind
        self.exit_code = exit_code
