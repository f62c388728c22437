"""Errors that the user can mend.

A command prints such an error as one line and exits with its `exit_code`; any other exception is a
defect of the program.
"""


class DistcnnError(Exception):
    """The run cannot go on; the message says what was received, what was expected, what to do."""

    exit_code = 1


class UsageError(DistcnnError):
    """The command line or the configuration is wrong."""

    exit_code = 2


class DataError(DistcnnError):
    """The images or labels cannot be used as they are."""
