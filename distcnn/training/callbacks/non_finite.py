"""Stops a run whose loss is no longer a number."""

from typing import Any

import keras

from distcnn.errors import DistcnnError
from distcnn.training.step import TrainingStep


class NotFiniteError(DistcnnError):
    """The loss of a step is NaN or infinite; every rank sees the same."""

    on_every_rank = True


class NonFiniteLossGuard(keras.callbacks.Callback):
    """Raises when the loss of a step was NaN or infinite; asks every `every_steps` steps.

    It stands before everything that saves, so a bad state is never saved.

    Args:
        training: The training step.
        every_steps: Steps between questions.
    """

    reads_logs = False

    def __init__(self, training: TrainingStep, every_steps: int) -> None:
        super().__init__()
        self._training = training
        self._every_steps = every_steps

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Asks when it is time."""
        if self._training.just_passed(self._every_steps):
            require_finite_loss(self._training)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Asks before the validation of an epoch."""
        require_finite_loss(self._training)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Asks before the epoch is saved."""
        require_finite_loss(self._training)


def require_finite_loss(training: TrainingStep) -> None:
    """Raises if the loss of a step was not finite.

    Raises:
        DistcnnError: Names the step.
    """
    step = training.first_bad_step
    if step is not None:
        raise NotFiniteError(
            f"the loss of step {step} is not finite, so the run stopped; the checkpoints are from "
            "before it. Lower --optimizer.lr, or add --optimizer.clip_norm 1 or a warm-up"
        )
