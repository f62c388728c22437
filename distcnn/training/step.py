"""The training step on any number of replicas: forward and backward pass, reduction, update."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from distcnn.data.pixels import PixelRange, scale_pixels
from distcnn.engine.shard import Shard
from distcnn.engine.step import StepEngine
from distcnn.optim.ema import WeightEMA
from distcnn.runtime.graph_clock import graph_time
from distcnn.runtime.keras_steps import has_own_train_step
from distcnn.training.objective import Objective

Batch = tuple[tf.Tensor, tf.Tensor, tf.Tensor]
"""One shard of a batch: images, one-hot labels, and weights of shape `(count,)`, each
1 / images of the global batch, or 0 for a placeholder."""

_VOTE_DELAY = 4
"""How many executions later a stop vote is read, so that reading it never blocks on the device."""


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """Options of a training step.

    Attributes:
        pixels: Range of the pixels that the classifier expects.
        steps_per_epoch: Training steps per epoch.
        steps_per_execution: Steps per call into TensorFlow.
        shards_per_replica: Number of shards that each replica computes in turn per step.
        may_be_empty: Whether a shard may have no image, since there are more shards than images.
    """

    pixels: PixelRange
    steps_per_epoch: int
    steps_per_execution: int = 1
    shards_per_replica: int = 1
    may_be_empty: bool = False


class TrainingStep:
    """Trains a compiled classifier step by step, the same on every replica.

    `StepEngine` computes the step, as for a user's script: every shard of a batch counts by its
    fraction of the images, so the sum of the replicas' gradients is the gradient of the mean over
    the global batch, however it is divided. The loss and stop requests are reduced together with
    the gradients. What is reduced is the same on every replica; so is each decision that follows
    from it, such as whether float16 overflowed.

    Args:
        model: The built and compiled classifier, whose weights are trained.
        engine: Computes the step on each replica.
        objective: What the classifier is compiled with.
        options: Options of the step.
        ema: Moving average of the weights to maintain, or None.

    Attributes:
        model: The classifier.
        ema: Moving average of the weights, or None.
        step: Number of global steps done.
        steps_per_execution: Steps per call into TensorFlow.
    """

    def __init__(
        self,
        model: keras.Model,
        engine: StepEngine,
        objective: Objective,
        options: StepOptions,
        *,
        ema: WeightEMA | None = None,
    ) -> None:
        self.model = model
        self.ema = ema
        self.step = 0
        self.steps_per_execution = options.steps_per_execution
        self._engine = engine
        self._backend = engine.backend
        self._objective = objective
        self._options = options
        self._step_before = 0
        self._votes: deque[tf.Tensor] = deque(maxlen=_VOTE_DELAY)
        with tf.device("CPU:0"):
            self._input_wait = tf.Variable(0.0, dtype=tf.float64, trainable=False)
            self._first_bad_step = tf.Variable(-1, dtype=tf.int64, trainable=False)
            self._metric_totals = [
                tf.Variable(total, trainable=False) for total in engine.metrics.totals(model)
            ]
        self.retrace()

    def retrace(self) -> None:
        """Makes the next execution trace the step anew, for another optimizer or other layers."""
        self._run_steps = tf.function(self._make_run_steps(), reduce_retracing=True)

    @property
    def step_in_epoch(self) -> int:
        """Number of steps done in the current epoch."""
        return self.step % self._options.steps_per_epoch

    @property
    def metric_totals(self) -> list[tf.Variable]:
        """The states of the epoch's metrics over all replicas, for checkpoints."""
        return self._metric_totals

    @property
    def first_bad_step(self) -> int | None:
        """The first global step whose loss was NaN or infinite, counted from 1, or None."""
        step = int(self._first_bad_step.numpy())
        return step if step >= 0 else None

    def wait(self) -> None:
        """Waits until the device has done what it was given."""
        self._first_bad_step.numpy()

    def metrics(self) -> dict[str, Any]:
        """Returns the metrics over the epoch so far, on all replicas; for all processes together.

        Returns:
            The loss and the metrics that the classifier is compiled with, by name.
        """
        return self._engine.metrics.results(self.model)

    def reset_metrics(self) -> None:
        """Resets the epoch's metrics."""
        self._engine.metrics.reset(self.model)

    def collect_metrics(self) -> None:
        """Sets `metric_totals`; called in all processes together."""
        totals = self._engine.metrics.totals(self.model)
        for variable, total in zip(self._metric_totals, totals, strict=True):
            variable.assign(total)

    def continue_metrics(self) -> None:
        """Continues the metrics from `metric_totals`."""
        totals = [variable.numpy() for variable in self._metric_totals]
        self._engine.metrics.assign_totals(self.model, totals)

    def just_passed(self, interval: int) -> bool:
        """Returns whether the last execution reached or passed a multiple of `interval` steps."""
        return self.step // interval > self._step_before // interval

    def pop_input_wait(self) -> float:
        """Returns the seconds spent waiting for input since the last call, and starts anew."""
        seconds = float(self._input_wait.numpy())
        self._input_wait.assign(0.0)
        return seconds

    @contextlib.contextmanager
    def evaluated_weights(self) -> Iterator[None]:
        """Puts the weights to evaluate into the model for the context: the averages, if any."""
        with self.ema.swapped_in() if self.ema else contextlib.nullcontext():
            yield

    def weights_for_callbacks(self) -> contextlib.AbstractContextManager[None]:
        """Puts the averaged weights, if there are any, into the model for the user's callbacks."""
        return self.ema.lent() if self.ema else contextlib.nullcontext()

    def run(self, batches: Any, *, stop: bool = False) -> None:
        """Runs one execution, which ends at the latest with the epoch.

        Args:
            batches: The backend's iterator over shards of batches, from the current step on.
            stop: Whether this process has been asked to stop.
        """
        remaining = self._options.steps_per_epoch - self.step_in_epoch
        count = min(self.steps_per_execution, remaining)
        votes = self._run_steps(
            batches, tf.constant(self.step, tf.int64), tf.constant(count), tf.constant(float(stop))
        )
        self._votes.append(votes)
        self._step_before = self.step
        self.step += count

    def voted_to_stop(self) -> bool:
        """Returns whether any process was asked to stop some executions ago; equal on all ranks."""
        return len(self._votes) == _VOTE_DELAY and float(self._votes[0]) > 0

    def _make_run_steps(self) -> Callable[..., tf.Tensor]:
        @tf.autograph.experimental.do_not_convert
        def run_steps(
            batches: Any, step: tf.Tensor, count: tf.Tensor, stop: tf.Tensor
        ) -> tf.Tensor:
            if self.steps_per_execution == 1:
                return self._one_step(batches, step, stop)

            def body(done: tf.Tensor, votes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                vote = self._one_step(batches, step + tf.cast(done, tf.int64), stop)
                return done + 1, votes + vote

            start = (tf.constant(0), tf.constant(0.0))
            # One iteration at a time, since the next reduction may overwrite the last one's result.
            _, votes = tf.while_loop(
                lambda done, _: done < count, body, start, parallel_iterations=1
            )
            return votes

        return run_steps

    def _one_step(self, batches: Any, step: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        requested = graph_time()
        shards = [batches.get_next() for _ in range(self._options.shards_per_replica)]
        with tf.control_dependencies(_first_tensors(shards)):
            arrived = graph_time()
        # The step begins after this time is taken, so that only the waiting is measured.
        with tf.control_dependencies([arrived]):
            self._input_wait.assign_add(arrived - requested)
            with self._engine.installed():
                sums = self._backend.run(self._in_replica, shards, stop)[0]
        loss, votes = tf.unstack(sums)
        is_first = ~tf.math.is_finite(loss) & (self._first_bad_step < 0)
        self._first_bad_step.assign(tf.where(is_first, step + 1, self._first_bad_step))
        return votes

    def _in_replica(self, shards: Sequence[Batch], stop: tf.Tensor) -> tf.Tensor:
        parts = [self._part(shard, position) for position, shard in enumerate(shards)]
        if has_own_train_step(self.model):
            sums = self._engine.train_by_own_step(self.model, parts[0], [stop])
        else:
            sums = self._engine.train(self.model, parts, [stop])[1]
        if self.ema is not None:
            self.ema.update()
        return tf.stack(sums)

    def _part(self, shard: Batch, position: int) -> tuple[Any, Shard]:
        """Returns the data of a shard as the model takes it, and what is known of its images."""
        virtual = self._engine.virtual
        images, labels, weights = shard
        rows = tf.math.count_nonzero(weights, dtype=tf.int32)
        # The weight of a placeholder is 0, so that it does not tell how many images there are.
        total = tf.cast(tf.round(1.0 / tf.maximum(weights[0], 1e-9)), tf.int32)
        data = self._objective.training_data(scale_pixels(images, self._options.pixels), labels)
        index = virtual.index(position) if virtual else None
        return data, Shard(rows, total, self._options.may_be_empty, index=index)


def _first_tensors(shards: Sequence[Any]) -> list[tf.Tensor]:
    """Returns one tensor of each shard on each replica, to wait for."""
    tensors = []
    for shard in shards:
        images = shard[0]
        tensors += list(getattr(images, "values", (images,)))
    return tensors
