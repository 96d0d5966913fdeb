"""How things fail: a job, which the command line turns into an exit code, and a single image."""

from __future__ import annotations

from typing import Literal

# of an image in a table; one that is listed and has no valid row is `unscored`
Status = Literal["ok", "unreadable", "too_large", "too_small", "undefined", "unscored"]


class UsageError(ValueError):
    """Unusable input or arguments (exit code 2). The message is one line that says what to do."""


class IncompleteError(RuntimeError):
    """The run could not finish (exit code 1). The message names what is missing."""


class StatusError(ValueError):
    """An image has no value: `status` is that of its row, `str(error)` the reason, on one line."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status: Status = status

    def __reduce__(self) -> tuple[type[StatusError], tuple[Status, str]]:
        # workers send errors back pickled, and the default would lose the status
        return type(self), (self.status, str(self))
