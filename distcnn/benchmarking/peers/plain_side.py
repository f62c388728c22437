"""The step as a plain Keras script trains it, in the precision of the run."""

from typing import Any

from distcnn.benchmarking.peers.distcnn_side import build_setup_of
from distcnn.benchmarking.peers.side import Task
from distcnn.benchmarking.progress import Say


class PlainSide:
    """Trains by `fit`.

    Args:
        setup: The run that provides the model, the optimizer and the batch.
        say: Takes lines of progress.
    """

    def __init__(self, setup: Any, say: Say) -> None:
        import keras

        from distcnn.benchmarking.peers.keras_graph import parameters_of
        from distcnn.benchmarking.plain_keras import PlainScript

        say("tracing the step")
        self.precision = setup.precision.policy
        self._script = PlainScript(
            setup, setup.sampler.global_batch_size, policy=setup.precision.policy
        )
        self._batches = self._script.resident_batches()
        self.title = f"plain Keras {keras.__version__}"
        self.parameters = parameters_of(self._script.model)
        self.settings = ["compile and fit"]
        self.run(1)

    def run(self, steps: int) -> list[float]:
        """Trains; returns the seconds of each step."""
        times: list[float] = []
        history = self._script.fit_batches(self._batches, steps, times)
        self._loss = float(history["loss"][-1])
        return times

    def loss(self) -> float:
        """Returns the mean loss of the last turn."""
        return self._loss


def build(task: Task, say: Say) -> PlainSide:
    """Builds the side of this module."""
    return PlainSide(build_setup_of(task, say), say)
