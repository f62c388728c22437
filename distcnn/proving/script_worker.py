"""One process of the proof: trains the first steps of a script and records the result.

    python -m distcnn.proving.script_worker OUT FLOAT_TYPE own|all SCRIPT ARGUMENT...

`all` makes batch normalisation use the rows of all workers.

Keras itself limits `fit` to the first steps, by KERAS_MAX_EPOCHS and KERAS_MAX_STEPS_PER_EPOCH. The
script ends with its first `fit`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from distcnn.cli.command import run_command
from distcnn.config import DistributeConfig, ScriptConfig, ScriptPrecisionConfig
from distcnn.engine.optimizers import optimizers_of
from distcnn.proving.record import OPTIMIZER, WEIGHT
from distcnn.proving.recording import named, prepare, record, strategy_of_process
from distcnn.proving.subjects import STEPS
from distcnn.runtime.keras_hooks import FIT, Hooks
from distcnn.scripting.runner import run_script


def _record_first_fit(out: Path, hooks: Hooks, *, sync_batchnorm: bool) -> None:
    """Makes the first `fit` write what it has trained, and end the script."""

    def make(original: Any) -> Any:
        def fit(model: keras.Model, *arguments: Any, **keywords: Any) -> Any:
            history = original(model, *arguments, **keywords)
            variables = named(WEIGHT, model.weights)
            for optimizer in optimizers_of(model):
                variables += named(OPTIMIZER, optimizer.variables)
            steps = min(STEPS, history.params.get("steps") or STEPS)
            every = sync_batchnorm
            record(out, model, variables, history.history, steps=steps, sync_batchnorm=every)
            sys.exit(0)

        return fit

    hooks.replace(FIT, make)


def main(arguments: Sequence[str]) -> int:
    """Runs the command."""
    out, float_type, rows, script, *rest = arguments
    hooks = Hooks()
    _record_first_fit(Path(out), hooks, sync_batchnorm=rows == "all")
    prepare(hooks, float_type)
    config = ScriptConfig(
        fast_path="off",
        distribute=DistributeConfig(strategy=strategy_of_process(), sync_batchnorm=rows == "all"),
        precision=ScriptPrecisionConfig(policy="float32", tf32=False),
    )
    return run_script(config, Path(script), rest)


if __name__ == "__main__":
    run_command(main)
