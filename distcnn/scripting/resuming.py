"""Resuming a script: `fit` saves its state, and goes on where the last checkpoint was.

The script runs again from its beginning; `Skipping` brings a `fit` call to its checkpoint, in the
middle of an epoch too.
"""

import contextlib
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distcnn.distribute.base import Backend
from distcnn.errors import DistcnnError, UsageError
from distcnn.runtime.keras_fit import fit_arguments, has_only_arrays, plain_logs, wait_for_callbacks
from distcnn.runtime.keras_hooks import (
    EPOCH_BEGIN,
    EPOCH_END,
    FIT,
    OPERATION_SEED,
    TRAIN_BATCH_BEGIN,
    TRAIN_BATCH_END,
    TRAIN_BEGIN,
    TRAIN_END,
    Hooks,
)
from distcnn.runtime.rank_page import own_page
from distcnn.runtime.signals import StopRequest
from distcnn.scripting.callback_state import (
    digests,
    encode_callbacks,
    go_on_writing,
    restore_callbacks,
)
from distcnn.scripting.fit_call import FitCall, Position, describe, name_of
from distcnn.scripting.fit_state import ModelState, RandomState, Variables, pack, unpack
from distcnn.scripting.resume_folder import ResumeFolder
from distcnn.scripting.skipping import Skipping
from distcnn.scripting.stop_vote import StopVote
from distcnn.training.callbacks.checkpointing import StoppedBySignal
from distcnn.training.callbacks.save_intervals import SaveIntervals
from distcnn.training.saving import BackgroundSaving, Write

log = logging.getLogger("distcnn")


class Resuming:
    """Saves the `fit` calls of a script, and resumes them.

    Args:
        folder: The checkpoints.
        backend: Runs the replicas.
        synchronise: Makes a model the same on all replicas.
        metric_variables: Returns the variables of a model's metrics.
        every_steps: Steps between checkpoints inside an epoch; 0 for none.
        every_minutes: Minutes between them; 0 for none.
        stop: Whether somebody has asked to stop.
    """

    def __init__(
        self,
        folder: ResumeFolder,
        backend: Backend,
        synchronise: Callable[[keras.Model], None],
        metric_variables: Variables,
        every_steps: int,
        every_minutes: float = 0.0,
        stop: StopRequest | None = None,
    ) -> None:
        self._folder = folder
        self._backend = backend
        self._synchronise = synchronise
        self._metric_variables = metric_variables
        self._every_steps = every_steps
        self._intervals = SaveIntervals(backend, 0, 60 * every_minutes, 0)
        self._stop = stop or StopRequest()
        self._vote = StopVote(backend, self._stop)
        self._saving = BackgroundSaving(backend)
        self._buffers: dict[str, np.ndarray] = {}
        self._skipping = Skipping(self._restore)
        self._call: FitCall | None = None
        self._count = 0
        self._steps_before = 0
        self._epochs_before = 0
        self._in_step = False
        self._drawing: weakref.WeakSet[keras.Model] = weakref.WeakSet()
        self._warned: weakref.WeakSet[keras.Model] = weakref.WeakSet()

    @contextlib.contextmanager
    def active(self, hooks: Hooks) -> Iterator[None]:
        """Saves and resumes what the script fits in the context."""
        try:
            self._folder.open()
        except DistcnnError:
            self._folder.close()
            raise
        hooks.replace(FIT, self._fitting)
        self._skipping.install(hooks, lambda: self._call)
        for point, make in (
            (TRAIN_BEGIN, self._train_begin),
            (TRAIN_END, self._train_end),
            (EPOCH_BEGIN, self._epoch_begin),
            (EPOCH_END, self._epoch_end),
            (TRAIN_BATCH_BEGIN, self._batch_begin),
            (TRAIN_BATCH_END, self._batch_end),
            (OPERATION_SEED, self._operation_seed),
        ):
            hooks.replace(point, make)
        try:
            with self._stop.listening():
                yield
            if self._count == 0 and self._backend.is_chief:
                log.warning(
                    "warning: resume is %s, but the script has called no fit, so that nothing was "
                    "saved; loops with train_on_batch or GradientTape cannot be resumed",
                    self._folder.path,
                )
        finally:
            self._folder.close()

    def _fitting(self, original: Any) -> Any:
        def fit(model: keras.Model, *arguments: Any, **keywords: Any) -> Any:
            if self._call is not None:  # a callback's own
                return original(model, *arguments, **keywords)
            call = self._call = self._begin(model, fit_arguments(model, arguments, keywords))
            try:
                with self._saving.active():  # the script goes on when its state is written
                    history = original(model, *arguments, **keywords)
                    self._end(call)
            finally:
                self._call = None
                self._skipping.end(call)
            return history

        return fit

    def _begin(self, model: keras.Model, given: dict[str, Any]) -> FitCall:
        stored, serial = self._folder.load(self._count)
        validation = given.get("validation_data")
        data = [given.get("x"), given.get("y"), given.get("sample_weight"), validation]
        call = FitCall(self._count, model, has_only_arrays(data), stored, serial)
        call.random_state = RandomState.save()
        self._count += 1
        if stored:
            call.description = unpack(stored)
            call.target = Position(**call.description["position"])
            if self._backend.is_chief:
                log.info("resuming        %s", describe(call))
        return call

    def _end(self, call: FitCall) -> None:
        """Restores the state at the end of a call that was skipped, or saves that of another."""
        if call.is_skipped:
            self._restore(call)
            self._count_steps(call)
            return
        if call.target is not None:
            raise DistcnnError(
                f"the data of {name_of(call)} ended before the place of the checkpoint in "
                f"{self._folder.path}; restore the data, or start anew in another directory"
            )
        call.position.finished = True
        self._save(call)
        self._count_steps(call)
        if self._vote.now():
            self._leave(call)

    def _count_steps(self, call: FitCall) -> None:
        """Adds a call that has ended to the steps of the script, which a launcher is told."""
        self._steps_before += call.steps
        self._epochs_before += call.position.epoch + 1

    def _current(self, callbacks: Any) -> FitCall | None:
        """Returns the call that a list of callbacks belongs to, if it is one to save."""
        call = self._call
        return call if call is not None and call.callbacks is callbacks else None

    def _train_begin(self, original: Any) -> Any:
        def on_train_begin(callbacks: Any, logs: Any = None) -> None:
            call = self._call
            if call is None or call.callbacks is not None:
                original(callbacks, logs)
                return
            call.callbacks = callbacks
            users = call.of_the_script
            if any(isinstance(c, keras.callbacks.BackupAndRestore) for c in users):
                raise UsageError(
                    "the script has a BackupAndRestore callback, which resumes by itself; remove "
                    "it, or run without resume"
                )
            call.known = digests(users)
            if call.target is not None:
                self._skipping.begin(call)
            if call.is_skipped:
                return
            if call.target is not None:
                epoch = call.target.epoch + call.target.ended
                go_on_writing(users, epoch, is_chief=self._backend.is_chief)
                self._backend.barrier()
            original(callbacks, logs)

        return on_train_begin

    def _train_end(self, original: Any) -> Any:
        def on_train_end(callbacks: Any, logs: Any = None) -> None:
            call = self._current(callbacks)
            if call is None or not call.is_skipped:
                original(callbacks, logs)

        return on_train_end

    def _epoch_begin(self, original: Any) -> Any:
        def on_epoch_begin(callbacks: Any, epoch: int, logs: Any = None) -> None:
            call = self._current(callbacks)
            if call is not None:
                call.position = Position(epoch)
            if call is None or call.target is None:
                original(callbacks, epoch, logs)

        return on_epoch_begin

    def _batch_begin(self, original: Any) -> Any:
        def on_train_batch_begin(callbacks: Any, batch: int, logs: Any = None) -> None:
            call = self._current(callbacks)
            if call is None or call.target is None:
                original(callbacks, batch, logs)
            self._in_step = call is not None

        return on_train_batch_begin

    def _batch_end(self, original: Any) -> Any:
        def on_train_batch_end(callbacks: Any, batch: int, logs: Any = None) -> None:
            call = self._current(callbacks)
            self._in_step = False
            if call is None:
                original(callbacks, batch, logs)
                return
            call.position.executions += 1
            steps = call.model.steps_per_execution
            call.steps += steps
            if call.target is not None:
                self._skipping.after_batch(call, call.target)
                return
            original(callbacks, batch, logs)
            own_page().stepped(
                self._steps_before + call.steps, self._epochs_before + call.position.epoch
            )
            call.logs = logs
            call.position.cut = bool(call.model.stop_training)
            if call.position.cut:
                return
            every = self._every_steps
            is_due = bool(every) and call.steps // every > (call.steps - steps) // every
            is_due = self._intervals.is_due(self._steps_before + call.steps) or is_due
            stop = self._vote.after_execution()
            if is_due or stop:
                self._save(call)
            if stop:
                self._leave(call)

        return on_train_batch_end

    def _operation_seed(self, original: Any) -> Any:
        """Notices random operations in a step whose state is hidden in TensorFlow."""

        def get_seed(op_seed: Any) -> Any:
            if (
                self._in_step
                and self._call is not None
                and not tf.executing_eagerly()
                and threading.current_thread() is threading.main_thread()
            ):
                self._drawing.add(self._call.model)
            return original(op_seed)

        return get_seed

    def _epoch_end(self, original: Any) -> Any:
        def on_epoch_end(callbacks: Any, epoch: int, logs: Any = None) -> None:
            call = self._current(callbacks)
            if call is None:
                original(callbacks, epoch, logs)
                return
            call.position.ended = True
            if call.target is not None:
                self._skipping.after_epoch(call, call.target, logs)
                return
            original(callbacks, epoch, logs)
            is_last = epoch + 1 >= (callbacks.params or {}).get("epochs", 0)
            if call.model.stop_training or is_last:
                return  # saved when the call ends
            call.logs = logs
            self._save(call)
            if self._vote.now():
                self._leave(call)

        return on_epoch_end

    def _save(self, call: FitCall) -> None:
        """Saves the state; called in all processes together."""
        wait_for_callbacks(call.callbacks)
        self._synchronise(call.model)
        self._saving.wait()  # before its buffers are used again
        arrays, trained = self._state_of(call).save(self._buffers)
        self._buffers = dict(arrays) if self._backend.is_chief else {}
        users = call.of_the_script
        call.serial += 1

        def copy() -> Write:
            description = {
                "position": vars(call.position),
                "trained": trained,
                "steps": call.steps,
                "stop_training": bool(call.model.stop_training),
                "logs": plain_logs(call.logs or {}),
                "callbacks": encode_callbacks(users, call.known, arrays),
                "random": RandomState.save(),
            }
            packed = pack(description, arrays)
            finished = call.position.finished
            return self._folder.prepare(call.number, packed, call.serial, finished=finished)

        self._saving.save(copy)
        self._intervals.saved(self._steps_before + call.steps)

    def _restore(self, call: FitCall) -> None:
        stored, description = call.stored, call.description
        origin = f"the checkpoint of {name_of(call)} in {self._folder.path}"
        self._state_of(call).restore(stored, description["trained"], origin)
        restore_callbacks(call.of_the_script, description["callbacks"], stored)
        call.model.stop_training = description["stop_training"]
        call.steps = description["steps"]
        own_page().restored(
            self._steps_before + call.steps, self._epochs_before + call.position.epoch
        )
        RandomState.restore(description["random"])
        call.stored = {}
        if call.model in self._drawing and call.model not in self._warned:
            self._warned.add(call.model)
            if self._backend.is_chief:
                log.warning(
                    "warning: the training step of %s draws from TensorFlow's own random "
                    "operations (such as tf.random.normal), whose state cannot be saved; it goes "
                    "on with other random numbers than uninterrupted; use keras.random with a "
                    "SeedGenerator to avoid this",
                    name_of(call),
                )

    def _state_of(self, call: FitCall) -> ModelState:
        return ModelState(call.model, self._backend, self._metric_variables)

    def _leave(self, call: FitCall) -> None:
        self._saving.wait()
        if self._backend.is_chief:
            log.info(
                "stopped by %s in %s; run the same command again to continue",
                self._stop.name or "a signal to another rank",
                name_of(call),
            )
        raise StoppedBySignal
