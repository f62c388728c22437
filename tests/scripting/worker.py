"""One process of a group: runs scripts in turn, so that many of them share a group.

Usage: python -m tests.scripting.worker OUT PLAN
"""

import contextlib
import json
import os
import pickle
import runpy
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import keras
import numpy as np

from distcnn.config import DistributeConfig, ScriptConfig
from distcnn.engine import losses, metrics, reduction
from distcnn.runtime.cluster import find_cluster
from distcnn.scripting.runner import explained
from distcnn.scripting.session import Session, session
from tests.lockstep.worker import replacing

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


def own_gradients(_: Any, gradients: Any) -> list[Any]:
    """Stands for `GradientReduction.reduce`."""
    return list(gradients)


def own_weighted_gradients(
    reducing: Any, gradients: Any, also: Any = (), *, computed: Any, factors: Any
) -> tuple[list[Any], list[Any]]:
    """Stands for `GradientReduction.reduce_weighted`; the rest is still summed."""
    del computed, factors
    return list(gradients), reducing._backend.reduce_sum(list(also))


@contextlib.contextmanager
def broken(fault: str | None) -> Iterator[None]:
    """Switches off a part of what keeps the replicas in lockstep, for negative controls."""
    with contextlib.ExitStack() as stack:
        if fault == "gradients":  # every rank applies its own; nothing else changes
            stack.enter_context(replacing(reduction.GradientReduction, "reduce", own_gradients))
            stack.enter_context(
                replacing(reduction.GradientReduction, "reduce_weighted", own_weighted_gradients)
            )
            stack.enter_context(replacing(Session, "check", lambda *_: None))
        if fault == "losses":
            stack.enter_context(replacing(losses, "_factor", lambda *_: None))
        if fault == "metrics":
            stack.enter_context(replacing(metrics, "_weighting_scalars", lambda original: original))
            stack.enter_context(replacing(metrics.GlobalMetrics, "track", lambda *_: None))
        yield


def run(entry: str, how: str, distribute: dict[str, Any]) -> dict[str, Any]:
    """Runs one script, plainly or in a session.

    NAME:FAULT breaks a part of the session; NAME:fast runs the fast form, and NAME:shard makes each
    worker compute its own rows of a pipeline.
    """
    name, _, fault = entry.partition(":")
    keras.backend.clear_session()
    script = SCRIPTS / f"{name}.py"
    config = ScriptConfig(
        distribute=DistributeConfig(**distribute),
        fast_path="auto" if fault == "fast" else "off",
        input="shard" if fault == "shard" else "whole",
    )
    in_session = session(config=config) if how == "session" else contextlib.nullcontext()
    try:
        with broken(fault), in_session, explained(script, distribute.get("strategy", "")):
            return outcome(runpy.run_path(str(script), run_name="__main__"))
    except Exception:
        return {"error": traceback.format_exc()}


def main(out: Path, plan: dict[str, Any]) -> None:
    rank = find_cluster(os.environ).rank
    for entry in plan["scripts"]:
        result = run(entry, plan["how"], plan["distribute"])
        (out / f"{entry}-{rank}.pickle").write_bytes(pickle.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
