"""Skipping what a `fit` call has done before its checkpoint.

Keras' own loop runs, but the call reads its batches without computing and calls no callbacks until
it is where the checkpoint was; there, everything is set to what it was then. So the data come in
the same order, whatever yields them. Only the first batch is computed, which creates whatever is
created by the first batch.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from distcnn.runtime.keras_fit import validation_iterator
from distcnn.runtime.keras_hooks import EVALUATE, Hooks
from distcnn.scripting.fit_call import FitCall, Position
from distcnn.scripting.fit_state import RandomState
from distcnn.scripting.plain_state import digest


class Skipping:
    """Brings `fit` calls to the place of their checkpoint.

    Args:
        restore: Sets everything to the state in a call's checkpoint.
    """

    def __init__(self, restore: Callable[[FitCall], None]) -> None:
        self._restore = restore

    def install(self, hooks: Hooks, current: Callable[[], FitCall | None]) -> None:
        """Skips validation too.

        Args:
            hooks: Where to install.
            current: Returns the call in progress.
        """
        hooks.replace(EVALUATE, lambda original: _evaluating(original, current))

    def begin(self, call: FitCall) -> None:
        """Makes a call read its batches without computing, from its first one on."""
        call.train_function = call.model.train_function
        call.model.train_function = _reading(call)

    def end(self, call: FitCall) -> None:
        """Makes a call's model compute again."""
        if call.train_function is not None:
            call.model.train_function, call.train_function = call.train_function, None

    def after_batch(self, call: FitCall, target: Position) -> None:
        """Goes on, or ends the epoch or the call, if this execution was the last to skip."""
        position = call.position
        if position.epoch != target.epoch or position.executions != target.executions:
            if target.finished and call.only_arrays:
                call.model.stop_training = True  # there is nothing whose order matters later
            return
        if target.cut:
            call.model.stop_training = True
        elif not target.ended:
            self._go_on(call, in_epoch=True)

    def after_epoch(self, call: FitCall, target: Position, logs: Any) -> None:
        """Goes on, or ends the call, if this epoch was the last to skip.

        Args:
            call: The call.
            target: The place of its checkpoint.
            logs: Receives the results of the epoch.
        """
        if call.position.epoch != target.epoch:
            return
        if target.finished:
            call.model.stop_training = True
        elif target.ended:
            logs.clear()
            logs.update(call.description["logs"])
            self._go_on(call, in_epoch=False)

    def _go_on(self, call: FitCall, *, in_epoch: bool) -> None:
        """Ends the skipping: from here on everything is computed."""
        self.end(call)
        # What the data have drawn from has been drawn from in the same way now, maybe by a thread
        # that is ahead; it is left as it is.
        now = RandomState.save()
        drawn = [n for n in ("python", "numpy") if digest(now[n]) != digest(call.random_state[n])]
        for name in drawn:
            del call.description["random"][name]
        call.target = None
        if in_epoch:
            position = call.position
            call.callbacks.on_epoch_begin(position.epoch)
            call.position = position
        self._restore(call)


def _reading(call: FitCall) -> Callable[[Any], Any]:
    """Returns a train function that reads the batches of an execution without computing."""

    def read(batches: Any) -> Any:
        if call.steps == 0:
            call.train_function(batches)
            return call.description["logs"]
        _take(batches, call.model.steps_per_execution)
        return call.description["logs"]

    return read


def _evaluating(original: Any, current: Callable[[], FitCall | None]) -> Any:
    def evaluate(model: keras.Model, *arguments: Any, **keywords: Any) -> Any:
        call = current()
        is_validation = keywords.get("_use_cached_eval_dataset")
        if call is None or call.target is None or not is_validation:
            return original(model, *arguments, **keywords)
        logs = call.description["logs"]
        found = {k.removeprefix("val_"): v for k, v in logs.items() if k.startswith("val_")}
        if call.is_skipped and call.only_arrays:
            return found
        iterator = validation_iterator(model)
        iterator.reset()
        with iterator.catch_stop_iteration():
            for _, _, batches in iterator:
                _take(batches, iterator.steps_per_execution)
        return found

    return evaluate


def _take(batches: Any, count: int) -> None:
    """Reads batches as an execution does, of which the last of an epoch may have fewer steps."""
    iterator = iter(batches)
    for step in range(count):
        try:
            next(iterator)
        except (StopIteration, tf.errors.OutOfRangeError):
            if step == 0:
                raise
            return
