"""The training step on any number of replicas: forward and backward pass, reduction, update."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from distcnn.data.pixels import PixelRange, scale_pixels
from distcnn.distribute.base import Backend
from distcnn.distribute.layers import SynchronisedBatchNorm
from distcnn.optim.ema import WeightEMA
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
        accumulation_steps: Number of shards that each replica computes in turn per step.
        xla: Whether to compile the forward and backward pass with XLA.
    """

    pixels: PixelRange
    steps_per_epoch: int
    steps_per_execution: int = 1
    accumulation_steps: int = 1
    xla: bool = False


class TrainingStep:
    """Trains a classifier step by step, the same on every replica.

    Every shard of a batch weights its images by 1 / (images in the global batch), so the sum of the
    replicas' gradients is the gradient of the mean over the global batch, however it is divided.
    The sums for loss and accuracy, and stop requests, are reduced together with the gradients. What
    is reduced is the same on every replica; so is each decision that follows from it, such as
    whether float16 overflowed.

    Args:
        model: The built classifier, whose weights are trained.
        network: Computes its outputs: the classifier itself, or its fast form.
        optimizer: Its built optimizer.
        backend: Runs the replicas.
        objective: The loss to minimise.
        options: Options of the step.
        ema: Moving average of the weights to maintain, or None.
        sync_batchnorm: The layers that normalise over the images of all replicas, or None.

    Attributes:
        model: The classifier.
        ema: Moving average of the weights, or None.
        step: Number of global steps done.
        steps_per_execution: Steps per call into TensorFlow.
    """

    def __init__(
        self,
        model: keras.Model,
        network: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        backend: Backend,
        objective: Objective,
        options: StepOptions,
        *,
        ema: WeightEMA | None = None,
        sync_batchnorm: SynchronisedBatchNorm | None = None,
    ) -> None:
        self.model = model
        self.ema = ema
        self.step = 0
        self.steps_per_execution = options.steps_per_execution
        self._network = network
        self._optimizer = optimizer
        self._backend = backend
        self._objective = objective
        self._options = options
        self._sync_batchnorm = sync_batchnorm
        self._step_before = 0
        self._votes: deque[tf.Tensor] = deque(maxlen=_VOTE_DELAY)
        self._compute = self._forward_backward
        if options.xla:
            self._compute = tf.function(
                self._forward_backward, reduce_retracing=True, jit_compile=True
            )
        with tf.device("CPU:0"):
            self._input_wait = tf.Variable(0.0, dtype=tf.float64, trainable=False)
            self._first_bad_step = tf.Variable(-1, dtype=tf.int64, trainable=False)
            # Sums over the epoch so far: loss times images, hits, images.
            self._epoch_sums = tf.Variable([0.0, 0.0, 0.0], dtype=tf.float64, trainable=False)
        self._run_steps = tf.function(self._make_run_steps(), reduce_retracing=True)

    @property
    def step_in_epoch(self) -> int:
        """Number of steps done in the current epoch."""
        return self.step % self._options.steps_per_epoch

    @property
    def epoch_variables(self) -> list[tf.Variable]:
        """The variables behind the epoch's metrics, for checkpoints."""
        return [self._epoch_sums]

    @property
    def first_bad_step(self) -> int | None:
        """The first global step whose loss was NaN or infinite, counted from 1, or None."""
        step = int(self._first_bad_step.numpy())
        return step if step >= 0 else None

    def metrics(self) -> dict[str, float]:
        """Returns loss and accuracy over the images of the epoch so far, on all replicas."""
        loss, correct, images = self._epoch_sums.numpy()
        count = max(images, 1.0)
        return {"loss": float(loss / count), "accuracy": float(correct / count)}

    def reset_metrics(self) -> None:
        """Resets the epoch's metrics."""
        self._epoch_sums.assign([0.0, 0.0, 0.0])

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
        requested = tf.timestamp()
        shards = [batches.get_next() for _ in range(self._options.accumulation_steps)]
        with tf.control_dependencies(_first_tensors(shards)):
            arrived = tf.timestamp()
        # The step begins after this time is taken, so that only the waiting is measured.
        with tf.control_dependencies([arrived]):
            self._input_wait.assign_add(arrived - requested)
            sums = self._backend.run(self._in_replica, shards, stop)[0]
        loss, correct, images, votes = tf.unstack(tf.cast(sums, tf.float64))
        self._epoch_sums.assign_add(tf.stack([loss * images, correct, images]))
        is_first = ~tf.math.is_finite(loss) & (self._first_bad_step < 0)
        self._first_bad_step.assign(tf.where(is_first, step + 1, self._first_bad_step))
        return tf.cast(votes, tf.float32)

    def _in_replica(self, shards: Sequence[Batch], stop: tf.Tensor) -> tf.Tensor:
        weights = self.model.trainable_variables
        gradients, sums = self._compute(*shards[0])
        for shard in shards[1:]:
            shard_gradients, shard_sums = self._compute(*shard)
            gradients = [a + b for a, b in zip(gradients, shard_gradients, strict=True)]
            sums += shard_sums
        used = [index for index, gradient in enumerate(gradients) if gradient is not None]
        sums = tf.concat([sums, [stop]], 0)
        own = [*(gradients[index] for index in used), sums]
        *reduced, sums = self._backend.reduce_sum(own, compressible=len(used))
        self._optimizer.apply(reduced, [weights[index] for index in used])
        if self.ema is not None:
            self.ema.update()
        return sums

    def _forward_backward(
        self, images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Returns the gradients of a shard, and the sums of its losses, hits and images."""
        counts = tf.cast(weights > 0, tf.float32)
        if self._sync_batchnorm is not None:
            self._sync_batchnorm.counts = counts[0]
        with tf.GradientTape() as tape:
            outputs = self._network(scale_pixels(images, self._options.pixels), training=True)
            outputs = tf.cast(outputs, tf.float32)
            losses = self._objective.losses(labels, outputs)
            parts = self._backend.replicas * self._options.accumulation_steps
            penalty = [tf.cast(loss, tf.float32) / parts for loss in self._network.losses]
            loss = tf.add_n([tf.reduce_sum(weights * losses), *penalty])
            scaled = self._optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, self.model.trainable_variables)
        dense = [None if g is None else tf.convert_to_tensor(g) for g in gradients]
        correct = tf.reduce_sum(self._objective.hits(labels, outputs) * counts)
        return dense, tf.stack([loss, correct, tf.reduce_sum(counts)])


def _first_tensors(shards: Sequence[Any]) -> list[tf.Tensor]:
    """Returns one tensor of each shard on each replica, to wait for."""
    tensors = []
    for shard in shards:
        images = shard[0]
        tensors += list(getattr(images, "values", (images,)))
    return tensors
