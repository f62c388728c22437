"""The training loop: epochs, batches, validation, and the callbacks in the order that Keras has."""

from collections.abc import Callable
from typing import Any

import keras

from distcnn.training.callbacks.callback_list import TrainingCallbacks
from distcnn.training.step import TrainingStep


def run_epochs(
    training: TrainingStep,
    model: keras.Model,
    batches: Any,
    callbacks: TrainingCallbacks,
    *,
    epochs: int,
    steps_per_epoch: int,
    asked_to_stop: Callable[[], bool],
    synchronise: Callable[[], None],
    validate: Callable[[], dict[str, float]] | None,
    one_process: bool,
) -> None:
    """Trains from the present step to the end of the last epoch.

    Args:
        training: The training step, at the step where the run goes on.
        model: The classifier; its `stop_training`, which callbacks set, ends the training.
        batches: The backend's iterator over shares of batches from the present step on.
        callbacks: What observes the run.
        epochs: Epochs of the whole run.
        steps_per_epoch: Steps of an epoch.
        asked_to_stop: Tells whether a signal asked this process to stop.
        synchronise: Brings the replicas together after an epoch.
        validate: Evaluates the validation images, or None.
        one_process: Whether `stop_training` may end an epoch early. With several processes it ends
            the training after the epoch, as all must stop at the same step.
    """
    model.stop_training = False
    callbacks.on_train_begin()
    logs: dict[str, float] = {}
    for epoch in range(training.step // steps_per_epoch, epochs):
        if training.step_in_epoch == 0:
            training.reset_metrics()
        callbacks.on_epoch_begin(epoch)
        while True:
            callbacks.on_train_batch_begin(training.step_in_epoch)
            training.run(batches, stop=asked_to_stop())
            callbacks.on_train_batch_end((training.step - 1) % steps_per_epoch)
            if training.step_in_epoch == 0 or (one_process and model.stop_training):
                break
        logs = training.metrics()
        if validate is None:
            synchronise()
        else:
            callbacks.on_test_begin()
            synchronise()
            results = validate()
            callbacks.on_test_end(results)
            logs |= {f"val_{name}": value for name, value in results.items()}
        callbacks.on_epoch_end(epoch, logs)
        if model.stop_training:
            break
    callbacks.on_train_end(logs)
