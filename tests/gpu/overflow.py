"""A worker of a float16 run whose first step overflows on the last rank alone."""

import json
import sys

from distcnn.cli.parser import load_config
from distcnn.cli.startup import import_tensorflow


def main() -> str:
    """Trains two steps; returns what happened, in words.

    Raises:
        AssertionError: If the first one updates anything, or the second one nothing.
    """
    import keras
    import numpy as np

    from distcnn.distribute.context import join_run
    from distcnn.training.build import build_setup
    from distcnn.training.loop import run_first_steps

    config = load_config(
        "quickstart",
        precision={"policy": "mixed_float16"},
        train={"steps_per_execution": 1},
        optimizer={"schedule": "constant", "warmup_epochs": 0},
    )
    setup = build_setup(config, join_run(config))
    optimizer, backend = setup.optimizer, setup.backend
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer), type(optimizer)
    steps = run_first_steps(setup, 2)
    usual, too_large = 2.0**10, 2.0**60

    def weights() -> list[np.ndarray]:
        return [keras.ops.convert_to_numpy(w).copy() for w in setup.model.trainable_weights]

    scales = [float("nan")]
    before = weights()
    # The generator copies the chief's state before the first step.
    setup.state.broadcast()
    optimizer.dynamic_scale.assign(too_large)
    next(steps)
    after = weights()
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True)), "it was applied"
    assert int(optimizer.iterations.numpy()) == 0
    scales[0] = float(optimizer.dynamic_scale.numpy())
    assert scales[0] == too_large / 2, scales
    optimizer.dynamic_scale.assign(usual)
    next(steps)
    assert int(optimizer.iterations.numpy()) == 1
    moved = max(float(np.abs(a - b).max()) for a, b in zip(after, weights(), strict=True))
    assert moved > 0
    text = json.dumps({"moved": moved, "workers": backend.replicas})
    backend.close()
    return f"the first step was skipped, the second moved weights by up to {moved:.2g} ({text})"


if __name__ == "__main__":
    import_tensorflow()
    sys.stdout.write(main() + "\n")
