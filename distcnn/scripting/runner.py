"""Runs a user's script as Python would, inside a session."""

import contextlib
import os
import runpy
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from distcnn.cli.command import GRACE_SECONDS
from distcnn.config import ScriptConfig
from distcnn.distribute.base import Backend
from distcnn.errors import DistcnnError, UsageError
from distcnn.runtime.rank_page import own_page
from distcnn.scripting.session import session

QUIET_LOGGERS = {
    "WANDB_MODE": "disabled",
    "WANDB_SILENT": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",
}
"""Variables that keep third-party loggers quiet in ranks other than 0. MLflow cannot be switched
off; it records in a temporary directory there."""


class ScriptFailedError(Exception):
    """The script has failed and has said why.

    Args:
        code: Its exit code.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def run_script(config: ScriptConfig, script: Path, arguments: Sequence[str]) -> int:
    """Runs a script as `__main__`, with its own `sys.argv` and import path.

    Args:
        config: How to run it.
        script: The script.
        arguments: The script's own arguments.

    Returns:
        The exit code of the script.

    Raises:
        DistcnnError: If the run cannot be joined, or the ranks differ.
    """
    try:
        with (
            session(config=config, command=[str(script), *arguments]) as active,
            _as_main(script, arguments),
            _output_of_rank(active.backend, config.output),
        ):
            _execute(script, active.backend)
    except ScriptFailedError as failed:
        return failed.code
    return 0


@contextlib.contextmanager
def explained(script: Path, strategy: str) -> Iterator[None]:
    """Explains an error of TensorFlow that means that a script cannot run in lockstep.

    Raises:
        UsageError: If a training loop of the script's own runs under `tf.distribute`.
    """
    try:
        yield
    except ValueError as error:
        if "DistributedVariable.handle is not available" not in str(error):
            raise
        raise UsageError(
            f"{script} has a training loop of its own, which {strategy} cannot run; use horovod, "
            "or fit with a train_step"
        ) from error


def _execute(script: Path, backend: Backend) -> None:
    try:
        with explained(script, backend.name):
            runpy.run_path(str(script), run_name="__main__")
    except SystemExit as ended:
        code = _exit_code(ended.code)
        if code:
            failure = ScriptFailedError(code)
            own_page().failed(failure)
            raise failure from ended
    except DistcnnError:
        raise
    except Exception as error:
        own_page().failed(error)
        if not backend.is_chief:
            time.sleep(GRACE_SECONDS)  # a launcher ends the others as soon as one has ended
        _print_traceback(error, script, backend)
        raise ScriptFailedError(1) from error


def _exit_code(code: object) -> int:
    """Returns what `sys.exit` makes of its argument; prints it if it is a message."""
    if code is None or isinstance(code, int):
        return code or 0
    sys.stderr.write(f"{code}\n")
    return 1


def _print_traceback(error: Exception, script: Path, backend: Backend) -> None:
    """Prints a traceback that begins in the script, as without distcnn."""
    frames = traceback.extract_tb(error.__traceback__)
    first = next((i for i, frame in enumerate(frames) if Path(frame.filename) == script), 0)
    lines = [
        "" if backend.is_chief else f"error: rank {backend.rank}:\n",
        "Traceback (most recent call last):\n",
        *traceback.format_list(frames[first:]),
        *traceback.format_exception_only(error),
    ]
    sys.stderr.write("".join(lines))  # at once: ranks share the terminal
    sys.stderr.flush()


@contextlib.contextmanager
def _as_main(script: Path, arguments: Sequence[str]) -> Iterator[None]:
    argv, path = sys.argv, sys.path[:]
    sys.argv = [str(script), *arguments]
    sys.path[0] = str(script.resolve().parent)
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path


@contextlib.contextmanager
def _output_of_rank(backend: Backend, output: str) -> Iterator[None]:
    """Silences standard output, and loggers that send elsewhere, in ranks other than 0."""
    if backend.is_chief:
        yield
        return
    elsewhere = tempfile.TemporaryDirectory()  # removed at the end of the process
    runs = Path(elsewhere.name, "runs")  # which MLflow creates, with all that it needs
    os.environ.update(QUIET_LOGGERS, MLFLOW_TRACKING_URI=runs.as_uri())
    if output == "all":
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)
