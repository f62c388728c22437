"""The training loop: epochs, executions, validation, and the callbacks in Keras' order."""

from collections.abc import Callable, Iterator
from typing import Any

from distcnn.training.callbacks.callback_list import TrainingCallbacks
from distcnn.training.resuming import take_initial_weights
from distcnn.training.setup import TrainingSetup


def run_epochs(
    setup: TrainingSetup,
    batches: Any,
    callbacks: TrainingCallbacks,
    *,
    asked_to_stop: Callable[[], bool],
) -> dict[str, float]:
    """Trains from the current step to the end of the last epoch.

    A callback ends the training by setting `model.stop_training`: a single process then stops after
    the current execution, several after the epoch, since all must stop at the same step. Signals do
    not set it: they are passed on to every execution, and `CheckpointSaver` handles them.

    Args:
        setup: The run; its training step holds the current step.
        batches: The backend's iterator over shards of batches, from the current step on.
        callbacks: Called during the run.
        asked_to_stop: Returns whether a signal has asked this process to stop.

    Returns:
        The logs of the last epoch.
    """
    model, training = setup.model, setup.training
    steps_per_epoch = setup.sampler.steps_per_epoch
    logs: dict[str, float] = {}
    for epoch in range(training.step // steps_per_epoch, setup.config.train.epochs):
        if setup.phases is not None:
            setup.phases.enter(training.step)
        if training.step_in_epoch == 0:
            training.reset_metrics()
        callbacks.on_epoch_begin(epoch)
        while True:
            callbacks.on_train_batch_begin(training.step_in_epoch)
            training.run(batches, stop=asked_to_stop())
            callbacks.on_train_batch_end((training.step - 1) % steps_per_epoch)
            ended_early = model.stop_training and setup.backend.size == 1
            if training.step_in_epoch == 0 or ended_early:
                break
        logs = training.metrics() | _validate(setup, callbacks)
        callbacks.on_epoch_end(epoch, logs)
        if model.stop_training:
            break
    return logs


def run_first_steps(setup: TrainingSetup, steps: int) -> Iterator[int]:
    """Trains the first steps of a run, without callbacks, validation or a run directory.

    They start from the weights that the run starts from. In a run of phases, these are the first
    steps of each phase. The metrics are those since the beginning of an epoch, or since the caller
    has reset them.

    Args:
        setup: The run, which has not begun; with one step per execution.
        steps: How many steps, at most those of the run, or of each phase.

    Yields:
        The number of steps done, after each of them.
    """
    training, done = setup.training, 0
    setup.backend.run_on_chief(lambda: take_initial_weights(setup))
    setup.state.broadcast()
    for first, end in setup.phases.borders if setup.phases else [(0, setup.total_steps)]:
        if setup.phases is not None:
            setup.phases.enter(first)
        training.step = first
        batches = setup.backend.iterate(setup.training_batches(first))
        while training.step < min(first + steps, end):
            if training.step_in_epoch == 0:
                training.reset_metrics()
            training.run(batches)
            done += 1
            yield done


def _validate(setup: TrainingSetup, callbacks: TrainingCallbacks) -> dict[str, float]:
    """Synchronises the replicas, then evaluates them on the validation images, if there are any."""
    if setup.dataset.validation is None:
        setup.state.synchronise()
        return {}
    callbacks.on_test_begin()
    setup.state.synchronise()
    results = setup.validate()
    callbacks.on_test_end(results)
    return {f"val_{name}": value for name, value in results.items()}
