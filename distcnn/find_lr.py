"""The command `python -m distcnn.find_lr`: tests which learning rates a run can use."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distcnn.cli.command import require_at_least_one, run_command, write_json
from distcnn.cli.outputs import require_writable
from distcnn.cli.parser import parse_run
from distcnn.cli.startup import import_tensorflow
from distcnn.config import Config
from distcnn.errors import UsageError
from distcnn.runtime.cluster import find_cluster

if TYPE_CHECKING:
    from distcnn.training.setup import TrainingSetup
    from distcnn.tuning.rate_curve import RateCurve

_OPTIONS: dict[str, dict[str, Any]] = {
    "low": {"type": float, "default": 1e-6, "help": "The first learning rate."},
    "high": {"type": float, "default": 10.0, "help": "The last learning rate."},
    "steps": {"type": int, "default": 100, "help": "Steps from the first rate to the last."},
    "tolerance": {
        "type": float,
        "default": 4.0,
        "help": "Stop where the smoothed loss exceeds this many times its least value.",
    },
    "plot": {"type": str, "default": None, "help": "PNG file for the loss by learning rate."},
    "json": {"type": str, "default": None, "help": "JSON file for the rates and losses."},
}


def main(arguments: Sequence[str]) -> int:
    """Raises the rate at every step of a run, and prints which one to train with.

    Raises:
        UsageError: If a flag is wrong.
    """
    description = (
        "Learning-rate range test: raises the rate at every step until the loss diverges, and "
        "suggests one. Takes the flags of distcnn.train; leaves no run directory."
    )
    config, options = parse_run("distcnn.find_lr", description, arguments, _OPTIONS)
    if config is None:
        return 0
    _check(config, options)
    import_tensorflow()
    from distcnn.distribute.base import reporting_lost_peers
    from distcnn.distribute.context import join_run
    from distcnn.training.build import build_setup
    from distcnn.tuning.rate_curve import RateCurve
    from distcnn.tuning.rate_range import run_range_test, with_free_rate

    setup = build_setup(with_free_rate(config, options["steps"]), join_run(config))
    curve = RateCurve(options["low"], options["high"], options["steps"], options["tolerance"])
    with reporting_lost_peers(setup.backend):
        run_range_test(setup, curve)
        setup.backend.run_on_chief(lambda: _report(setup, config, curve, options))
    setup.backend.close()
    return 0


def _check(config: Config, options: dict[str, Any]) -> None:
    """Checks the command's own flags, and those that would have no effect."""
    require_at_least_one(options, "steps")
    low, high = options["low"], options["high"]
    if not 0 < low < high < math.inf:
        raise UsageError(f"low is {low:g} and high is {high:g}; expected 0 < low < high")
    if not options["tolerance"] > 1:
        raise UsageError(f"tolerance is {options['tolerance']:g}; expected more than 1")
    if config.out is not None:
        raise UsageError(
            f"out is {config.out}, but a range test has no run directory; drop --out, or use "
            "--json and --plot"
        )
    if config.checkpoint.other_run is not None:
        raise UsageError(
            f"checkpoint.resume is {config.checkpoint.resume}, but a range test begins a new run; "
            "drop it, or take the weights of that run alone by --init_from"
        )
    if config.data.factory is not None:
        raise UsageError(
            f"data.factory is {config.data.factory}, but the range test is for images of a data "
            "set; drop --data.factory"
        )
    if find_cluster(os.environ).is_chief:
        for name in ("plot", "json"):
            require_writable(f"--{name}", options[name])


def _report(
    setup: "TrainingSetup", config: Config, curve: "RateCurve", options: dict[str, Any]
) -> None:
    """Prints the suggestions, and writes the files that were asked for."""
    from distcnn.optim.optimizers import scaled_learning_rate

    optimizer, phases = config.optimizer, config.train.parsed_phases
    batch = setup.sampler.global_batch_size
    scaling = scaled_learning_rate(optimizer, batch) / optimizer.lr
    print(
        f"rates           {curve.low:g} to {curve.high:g} in {curve.steps} steps of {batch} images"
    )
    if phases:
        print(
            f"phase           1 of {len(phases)}, which trains {phases[0].train}; for the rate of "
            "another one, give it alone in --train.phases"
        )
    if curve.diverged:
        print(
            f"stopped         the loss diverged after rate {curve.rates[-1]:.2g}"
            if curve.rates
            else "stopped         the loss was not finite at the first rate"
        )
    suggestions = {
        "steepest": ("where the loss falls fastest", curve.steepest()),
        "tenth_of_least": ("a tenth of the rate with the least loss", curve.tenth_of_least()),
    }
    for text, rate in suggestions.values():
        if rate is not None:
            key = "learning_rate: " if phases else "--optimizer.lr "
            setting = "" if setup.objective.is_own else f"  ({key}{rate / scaling:.2g})"
            print(f"suggestion      {rate:.2g}  {text}{setting}")
    if all(rate is None for _, rate in suggestions.values()):
        print("suggestion      none: the loss did not fall; try a lower --low or more --steps")
    if options["plot"] is not None and curve.rates:
        from distcnn.tuning.rate_curve import curve_figure

        curve_figure(curve).savefig(Path(options["plot"]), format="png", dpi=110)
    write_json(
        options["json"],
        {
            "rates": curve.rates,
            "losses": curve.losses,
            "smoothed": curve.smoothed,
            "diverged": curve.diverged,
            **{name: rate for name, (_, rate) in suggestions.items()},
            "lr_scaling_factor": scaling,
            "global_batch_size": batch,
            "workers": setup.backend.replicas,
        },
    )


if __name__ == "__main__":
    run_command(main)
