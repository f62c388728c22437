"""Runs a command as a process, with an exit code, and an error as one readable line."""

import contextlib
import io
import json
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from typing_extensions import override

from distcnn.errors import DistcnnError, PeerLostError, UsageError
from distcnn.runtime.cluster import Cluster, ClusterError, find_cluster
from distcnn.runtime.files import strict_json
from distcnn.runtime.rank_page import own_page
from distcnn.runtime.text import printable, wrapped_data_error

EXIT_STOPPED = 75
"""Exit code of a run that a signal stopped after saving a checkpoint (EX_TEMPFAIL: retry)."""

_TYPE = r"(float32|bfloat16|float16|float|half)"
_MIXED_TYPES = re.compile(
    rf"Input '\w+' of '\w+' Op has type {_TYPE} that does not match type {_TYPE}"
    rf"|expected to be an? {_TYPE} tensor but is an? {_TYPE} tensor"
    rf"|Tensor conversion requested dtype {_TYPE} for Tensor with dtype {_TYPE}"
)
"""TensorFlow's messages if an operation gets numbers of two precisions."""

GRACE_SECONDS = 5
"""How long a process waits before it reports what another process reports better: the loss of that
process, or an error of every rank. Launchers that stop the others then end with the right line."""


class _PrintableFormatter(logging.Formatter):
    """Escapes control characters, which names of files and classes may contain."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def run_command(command: Callable[[Sequence[str]], int | None]) -> NoReturn:
    """Runs a command on the process's arguments and exits with its exit code.

    Args:
        command: Takes the arguments and returns the exit code (None for 0).
    """
    arguments = sys.argv[1:]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # file names may not be UTF-8
    logging.basicConfig(level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_PrintableFormatter("%(message)s"))
    logging.getLogger("distcnn").setLevel(logging.INFO)
    cluster = Cluster()
    with contextlib.suppress(ClusterError):  # distributed commands will raise it again
        cluster = find_cluster(os.environ)
    try:
        code = command(arguments) or 0
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        code = 130
    except Exception as error:
        own_page().failed(error)
        everywhere = isinstance(error, DistcnnError) and error.on_every_rank
        if isinstance(error, PeerLostError) or (everywhere and not cluster.is_chief):
            time.sleep(GRACE_SECONDS)
        if "--debug" in arguments:
            traceback.print_exc()
        code = _report(error, cluster)
    sys.stdout.flush()
    sys.stderr.flush()
    if cluster.size > 1 and code != 0:
        os._exit(code)  # immediately, so that the other ranks notice
    sys.exit(code)


def _report(error: Exception, cluster: Cluster) -> int:
    """Prints an error on one line and returns its exit code."""
    code, text = 1, describe(error)
    if isinstance(error, DistcnnError):
        code = error.exit_code
    elif not isinstance(error, (OSError, MemoryError)):
        text = f"{type(error).__name__}: {text} (--debug shows where)"
    rank = f"rank {cluster.rank}: " if cluster.size > 1 else ""
    sys.stderr.write(f"error: {rank}{text}\n")
    return code


def describe(error: BaseException) -> str:
    """Returns the message of an error on one line."""
    text = str(error)
    wrapped = wrapped_data_error(text)
    mixed = _MIXED_TYPES.search(text)
    if mixed:
        text = _explain_mixed_types(mixed[0], text)
    return printable(" ".join((wrapped or text).split())) or type(error).__name__


def _explain_mixed_types(message: str, text: str) -> str:
    """Says which layer mixes types, as own layers with float32 constants do in bfloat16."""
    calls = re.findall(r"calling (\w+)\.call\(\)", text)  # the innermost comes last
    where = f"the layer {calls[-1]}" if calls else "the model"
    return (
        f"{where} computes with two types of numbers ({message}); cast its constants with "
        "ops.cast(x, self.compute_dtype), or pass --precision.policy float32"
    )


def require_at_least_one(options: Any, *names: str) -> None:
    """Checks that options are at least 1.

    Raises:
        UsageError: If one is less; the message names the option.
    """
    for name in names:
        if options[name] < 1:
            raise UsageError(f"{name} is {options[name]}; expected at least 1")


def write_json(path: str | None, content: object) -> None:
    """Writes the results of a command to its `--json` file, if one was given.

    NaN and infinity, which JSON does not have, become null.
    """
    if path is not None:
        text = json.dumps(strict_json(content), indent=2) + "\n"
        Path(path).write_text(text, encoding="utf-8")
