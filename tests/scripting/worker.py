"""One process of a group: runs scripts in turn, so that many of them share a group.

Usage: python -m tests.scripting.worker OUT plain|session SCRIPT...
"""

import contextlib
import json
import os
import pickle
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import keras
import numpy as np

from distcnn.config import DistributeConfig, ScriptConfig
from distcnn.runtime.cluster import find_cluster
from distcnn.scripting.session import session

SCRIPTS = Path(__file__).parent / "scripts"


def outcome(names: dict[str, Any]) -> dict[str, Any]:
    """Returns what a script has computed: its histories, predictions and weights."""
    found: dict[str, Any] = {}
    for name, value in sorted(names.items()):
        if isinstance(value, keras.callbacks.History):
            found[name] = value.history
        elif isinstance(value, keras.Model):
            found[name] = [np.asarray(weight) for weight in value.get_weights()]
        elif name in ("history", "predictions", "evaluation"):
            found[name] = value
    return found


def run(name: str, kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """Runs one script, plainly or in a session."""
    keras.backend.clear_session()
    context: Any = contextlib.nullcontext()
    if kind == "session":
        context = session(ScriptConfig(distribute=DistributeConfig(**options)))
    try:
        with context:
            return outcome(runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__"))
    except Exception:
        return {"error": traceback.format_exc()}


def main(out: Path, kind: str, options: str, names: list[str]) -> None:
    rank = find_cluster(os.environ).rank
    for name in names:
        result = run(name, kind, json.loads(options))
        (out / f"{name}-{rank}.pickle").write_bytes(pickle.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:])
