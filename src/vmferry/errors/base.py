"""What every error is: fields, and one sentence that says what to do.

An error is raised where the fact is known and caught at three borders only: a step, a request, a command.
"""

from __future__ import annotations

from string import Formatter
from typing import ClassVar


class VmferryError(Exception):
    """An error with fields; `says` is the sentence, formatted with them."""

    says: ClassVar[str] = "{reason}"
    exit_code: ClassVar[int] = 1
    passing: ClassVar[bool] = False
    """It may pass by itself, or by what somebody does to a storage or a link: the same call may succeed later."""

    def __init__(self, **fields: object) -> None:
        missing = {name for _, name, _, _ in Formatter().parse(self.says) if name} - fields.keys()
        if missing:
            raise TypeError(f"{type(self).__name__} needs {', '.join(sorted(missing))}")
        self.fields = fields
        super().__init__(self.says.format(**fields))


class UsageError(VmferryError):
    """The request itself is wrong; nothing was looked at."""

    exit_code = 2
