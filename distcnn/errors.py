"""Errors that the user can fix.

A command prints such an error as one line and exits with its `exit_code`; any other exception is a
defect of the program.
"""


class DistcnnError(Exception):
    """The run cannot go on; the message says what was received, what was expected, what to do.

    Attributes:
        exit_code: Exit code of a command that ends with it.
        on_every_rank: Whether all processes of a run meet it at once; the chief then reports it
            first.
        mendable: Whether the same command may succeed when it is run again.
    """

    exit_code = 1
    on_every_rank = False
    mendable = True


class UsageError(DistcnnError):
    """The command line or the configuration is wrong."""

    exit_code = 2
    mendable = False


class PeerLostError(DistcnnError):
    """Another process of the run is gone; the cause is in its own message, which comes first."""


class DataError(DistcnnError):
    """The images or labels cannot be used as they are."""

    mendable = False
