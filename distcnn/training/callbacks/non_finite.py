"""Stops a run whose loss is no longer finite."""

from typing import Any

import keras
from typing_extensions import override

from distcnn.errors import DistcnnError
from distcnn.training.step import TrainingStep


class NotFiniteError(DistcnnError):
    """The loss of a step is NaN or infinite; every rank detects it."""

    on_every_rank = True
    mendable = False


class NonFiniteLossGuard(keras.callbacks.Callback):
    """Raises if the loss of a step was NaN or infinite; checks every `every_steps` steps.

    It runs before every callback that saves, so a bad state is never saved.

    Args:
        training: The training step.
        every_steps: Steps between checks.
    """

    reads_logs = False

    def __init__(self, training: TrainingStep, every_steps: int) -> None:
        super().__init__()
        self._training = training
        self._every_steps = every_steps

    @override
    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._training.just_passed(self._every_steps):
            require_finite_loss(self._training)

    @override
    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        require_finite_loss(self._training)

    @override
    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        require_finite_loss(self._training)


def require_finite_loss(training: TrainingStep) -> None:
    """Checks that the loss of every step so far was finite.

    Raises:
        NotFiniteError: Names the first step whose loss was not.
    """
    step = training.first_bad_step
    if step is not None:
        raise NotFiniteError(
            f"the loss of step {step} is not finite, so the run stopped; all checkpoints are from "
            "before that step. Lower --optimizer.lr, or add --optimizer.clip_norm 1 or a warm-up"
        )
