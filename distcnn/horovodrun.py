"""The command `python -m distcnn.horovodrun`: Horovod's launcher, made safe.

It takes the arguments of `horovodrun`. The store through which the ranks find each other admits the
processes of the run only, where Horovod's own admits everyone; the last line gives the cause of a
failure; the ranks stop when the launcher is killed.
"""

import sys
from collections.abc import Sequence
from typing import NoReturn

from distcnn.cli.command import run_command
from distcnn.errors import UsageError


def main(arguments: Sequence[str]) -> NoReturn:
    """Runs the command.

    Raises:
        UsageError: If Horovod is not installed.
    """
    from distcnn.runtime.horovod_internals import run_launcher

    try:
        import horovod.runner  # noqa: F401
    except ImportError:
        raise UsageError("Horovod is not installed; run distcnn install-horovod") from None
    if not sys.argv[0].startswith("distcnn "):  # set by `distcnn.cli.commands.main`
        sys.argv[0] = "python -m distcnn.horovodrun"
    run_launcher()


if __name__ == "__main__":
    run_command(main)
