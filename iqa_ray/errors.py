"""The two ways in which a job ends badly; the command line turns them into exit codes."""

from __future__ import annotations


class UsageError(ValueError):
    """Unusable input or arguments (exit code 2). The message is one line that says what to do."""


class IncompleteError(RuntimeError):
    """The run could not finish (exit code 1). The message names what is missing."""
