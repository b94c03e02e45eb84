"""Errors a person meets: one sentence each, naming the fix, with the exit code the command line ends with."""


class WinnowError(Exception):
    """The work failed (exit code 1). The message is one sentence that names the fix."""

    exit_code = 1


class InputError(WinnowError, ValueError):
    """An argument, a file or a model cannot be used as given (exit code 2)."""

    exit_code = 2


class FormatError(WinnowError):
    """A stored artifact is truncated, altered, or of an unknown version (exit code 1)."""


class GateError(WinnowError):
    """A quality gate said no, and nothing was replaced (exit code 3)."""

    exit_code = 3
