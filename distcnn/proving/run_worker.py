"""One process of the proof: trains the first steps of a run and records the result.

    python -m distcnn.proving.run_worker OUT FLOAT_TYPE CONFIG.yaml

The run is set up as `distcnn.train` does, which writes nothing: there is no run directory.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distcnn.cli.command import run_command
from distcnn.cli.parser import load_config
from distcnn.distribute.base import reporting_lost_peers
from distcnn.distribute.context import join_run
from distcnn.proving.record import AVERAGE, OPTIMIZER, WEIGHT
from distcnn.proving.recording import named, prepare, record, strategy_of_process
from distcnn.proving.subjects import STEPS
from distcnn.runtime.keras_hooks import Hooks
from distcnn.training.build import build_setup
from distcnn.training.loop import run_first_steps
from distcnn.training.setup import TrainingSetup


def _variables_of(setup: TrainingSetup) -> list[tuple[str, Any]]:
    groups = setup.state.variables
    found = named(WEIGHT, groups["model"]) + named(OPTIMIZER, groups["optimizer"])
    if setup.ema is not None:
        found += named(AVERAGE, setup.ema.averages, setup.ema.averaged)
    return found


def main(arguments: Sequence[str]) -> None:
    """Runs the command."""
    out, float_type, recipe = arguments
    config = load_config(recipe, distribute={"strategy": strategy_of_process()})
    prepare(Hooks(), float_type)
    setup = build_setup(config, join_run(config))
    backend = setup.backend
    with reporting_lost_peers(backend):
        *_, steps = run_first_steps(setup, STEPS)
        metrics = setup.training.metrics()
        setup.state.synchronise()
        record(
            Path(out),
            setup.model,
            _variables_of(setup),
            metrics,
            steps=steps,
            sync_batchnorm=config.distribute.sync_batchnorm,
        )


if __name__ == "__main__":
    run_command(main)
