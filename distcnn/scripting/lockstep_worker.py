"""One process of the doctor's proof: trains the first steps of a script and records the result.

    python -m distcnn.scripting.lockstep_worker OUT FLOAT_TYPE own|all SCRIPT ARGUMENT...

`all` makes batch normalisation use the rows of all workers.

Keras itself limits `fit` to the first steps, by KERAS_MAX_EPOCHS and KERAS_MAX_STEPS_PER_EPOCH.
Dropout is off, and the script ends with its first `fit`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from distcnn.cli.command import run_command
from distcnn.config import DistributeConfig, ScriptConfig
from distcnn.runtime.keras_hooks import DROPOUT, FIT, Hooks
from distcnn.scripting.runner import run_script


def _recording(out: Path, hooks: Hooks) -> None:
    """Makes the first `fit` write what it has trained, and end the script."""

    def make(original: Any) -> Any:
        def fit(model: keras.Model, *arguments: Any, **keywords: Any) -> Any:
            history = original(model, *arguments, **keywords).history
            found: dict[str, Any] = {f"weight {v.path}": np.asarray(v) for v in model.weights}
            found |= {f"metric {name}": np.array(values) for name, values in history.items()}
            with out.open("wb") as file:
                np.savez(file, **found)
            sys.exit(0)

        return fit

    hooks.replace(FIT, make)
    hooks.replace(DROPOUT, lambda original: lambda inputs, *unused, **unused_keywords: inputs)


def main(arguments: Sequence[str]) -> int:
    """Runs the command."""
    out, float_type, rows, script, *rest = arguments
    hooks = Hooks()
    _recording(Path(out), hooks)
    keras.config.set_floatx(float_type)
    distribute = DistributeConfig(sync_batchnorm=rows == "all")
    config = ScriptConfig(fast_path="off", distribute=distribute)
    return run_script(config, Path(script), rest)


if __name__ == "__main__":
    run_command(main)
