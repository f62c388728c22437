"""One process of a group: runs several command lines of `distcnn.run` in turn.

Usage: python -m tests.scripting.command_worker OUT PLAN
"""

import contextlib
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from distcnn import run
from distcnn.errors import DistcnnError
from distcnn.runtime.cluster import find_cluster


def call(arguments: Sequence[str]) -> dict[str, Any]:
    """Runs one command line; returns its exit code, its error and what it has printed."""
    keras.backend.clear_session()
    code, error = 1, ""
    output, warnings = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(warnings):
        try:
            code = run.main(arguments)
        except DistcnnError as raised:
            error = str(raised)
    printed = {"output": output.getvalue(), "warnings": warnings.getvalue()}
    return {"code": code, "error": error, **printed}


def main(out: Path, plan: dict[str, Sequence[str]]) -> None:
    rank = find_cluster(os.environ).rank
    for name, arguments in plan.items():
        (out / f"{name}-{rank}.json").write_text(json.dumps(call(arguments)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
