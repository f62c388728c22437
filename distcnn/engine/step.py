"""Steps of a compiled Keras model on several replicas, each of which computes a shard."""

import contextlib
import functools
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from distcnn.distribute.base import Backend
from distcnn.distribute.layers import SynchronisedBatchNorm
from distcnn.engine.compiled_pass import CompiledPass
from distcnn.engine.fast import can_be_fast, computing_fast
from distcnn.engine.losses import install_loss_hooks
from distcnn.engine.metrics import GlobalMetrics
from distcnn.engine.pointwise import as_products
from distcnn.engine.randomness import different_on_each_replica
from distcnn.engine.reduction import GradientReduction
from distcnn.engine.shard import Shard, computing, current_shard
from distcnn.engine.shard_state import ShardState
from distcnn.engine.virtual_workers import VirtualWorkers, require_divisible
from distcnn.runtime.keras_hooks import ASSIGN, NEXT_SEED, Hooks
from distcnn.runtime.keras_steps import (
    evaluated_loss,
    forward_backward,
    has_own_test_step,
    has_own_train_step,
    unpacked,
    update_metrics,
)

Part = tuple[Any, Shard]
"""Inputs, targets and sample weights of one shard, and what is known of its rows."""


class StepEngine:
    """Makes steps on several replicas compute what one device computes of the whole batch.

    Recipes and users' scripts share it: the shard is current while the model computes, losses count
    by it, gradients are summed before the optimizer takes them, and metrics are added up.

    Args:
        backend: Runs the replicas.
        fast: Whether models compute in their fast form where they have one. None: unless XLA
            compiles them.
        sync_batchnorm: Whether every batch normalisation uses the rows of all replicas.
        virtual_workers: Number of shards of every batch, whatever the number of replicas. Default:
            one for each replica, or several if it accumulates gradients.
        shard_rows: The most rows of a shard, if that is known before the step.

    Attributes:
        backend: Runs the replicas.
        reduction: Sums gradients over the replicas.
        metrics: Adds up metrics over the replicas.
        virtual: Divides the shards among the replicas, or None without virtual workers.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        fast: bool | None,
        sync_batchnorm: bool,
        virtual_workers: int | None = None,
        shard_rows: int | None = None,
    ) -> None:
        self.backend = backend
        self.reduction = GradientReduction(backend, shard_rows)
        self.metrics = GlobalMetrics(backend)
        self.virtual = VirtualWorkers(virtual_workers, backend) if virtual_workers else None
        self._fast = fast
        self._every_batchnorm = sync_batchnorm
        self._synchronised: weakref.WeakKeyDictionary[keras.Model, SynchronisedBatchNorm]
        self._synchronised = weakref.WeakKeyDictionary()

    def install(self, hooks: Hooks) -> None:
        """Makes Keras' losses, optimizers, metrics and random numbers take account of the shard."""
        install_loss_hooks(hooks, self.backend)
        self.reduction.install(hooks)
        self.metrics.install(hooks)
        if self.backend.replicas > 1 or self.virtual:
            hooks.replace(NEXT_SEED, different_on_each_replica(self.backend))
        if self.virtual:
            hooks.replace(ASSIGN, _noting_changes)

    def require_virtual(self, model: keras.Model) -> None:
        """Checks that virtual workers, if there are any, can compute a model's steps.

        Raises:
            UsageError: If a step or a layer of the model uses several shards at once.
        """
        if self.virtual is not None:
            require_divisible(model, self.virtual.count)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Installs the hooks for the context: the tracing of a step."""
        hooks = Hooks()
        try:
            self.install(hooks)
            yield
        finally:
            hooks.restore()

    def synchronised_batchnorm(self, model: keras.Model) -> SynchronisedBatchNorm:
        """Returns the layers of a model that normalise over all replicas; changes them at first."""
        if model not in self._synchronised:
            self._synchronised[model] = SynchronisedBatchNorm(
                model, self.backend, every_layer=self._every_batchnorm
            )
        return self._synchronised[model]

    @contextlib.contextmanager
    def computing(self, model: keras.Model, shard: Shard) -> Iterator[None]:
        """Makes the model compute a shard in the context, which is part of a step on a replica."""
        if shard.may_be_empty and not self.virtual:
            self._remember(shard, self._changed_by(model))
        with computing(shard), self._synchronising(model, shard), self.fast_form(model):
            yield

    def fast_form(self, model: keras.Model) -> contextlib.AbstractContextManager[None]:
        """Returns a context in which the model computes in its fast form, if it has one."""
        if not (self._is_fast(model) and can_be_fast(model)):
            return contextlib.nullcontext()
        return computing_fast(model, self._synchronised.get(model))

    def _is_fast(self, model: keras.Model) -> bool:
        return not model.jit_compile if self._fast is None else self._fast

    def train(
        self, model: keras.Model, parts: Sequence[Part], also: Sequence[tf.Tensor] = ()
    ) -> tuple[Any, list[tf.Tensor]]:
        """Updates a model as Keras' own `train_step` does, from what all replicas compute.

        With `jit_compile`, XLA compiles the forward and backward pass, in a piece for each bucket
        of gradients; the rest stays outside.

        Args:
            model: The compiled model.
            parts: The shards that this replica computes, one after the other.
            also: float32 tensors to sum over the replicas with the gradients.

        Returns:
            The metrics by name; and the loss of the batch, followed by the sums of `also`.
        """
        losses, gradients, state = [], [], self._shard_state(model)
        self.synchronised_batchnorm(model)
        compute = self._compute(model)
        faster = as_products if self._is_fast(model) else list
        with self.fast_form(model):  # made once for all shards
            for data, shard in parts:
                if state is not None:  # seeds are constants of the shard
                    compute = self._compute(model)
                with self._updating(state, shard), self.computing(model, shard):
                    y_pred, loss, own = compute(data, shard.weight)
                    logs = update_metrics(model, data, y_pred, loss)
                    shard.restore()
                weighted = tf.cast(loss, tf.float32) * tf.cast(shard.weight, tf.float32)
                losses.append(shard.counted(weighted))
                gradients.append([shard.counted(gradient) for gradient in faster(own)])
        variables = model.trainable_weights  # some models are only built by their first call
        if state is None:
            summed = [_add_up(parts) for parts in zip(*gradients, strict=True)]
            also = [tf.add_n(losses), *also]
            factors = self.reduction.factors(own, shard) if len(parts) == 1 else None
            reduced, sums = self.reduction.reduce_weighted(
                summed, also, computed=own, factors=factors
            )
        else:
            reduced, sums = self._reduce_shards(state, gradients, losses, also, computed=own)
        if variables:
            with self.reduction.already_done():
                model.optimizer.apply(reduced, variables)
        else:
            warnings.warn("The model does not have any trainable weights.", stacklevel=1)
        return logs, sums

    def _compute(self, model: keras.Model) -> Callable[..., Any]:
        """Returns the forward and backward pass of a shard."""
        compute = functools.partial(forward_backward, model)
        if model.jit_compile and model.built:
            return CompiledPass(compute, self.backend, in_buckets=self.virtual is None)
        return compute

    def _reduce_shards(
        self,
        state: ShardState,
        gradients: Sequence[Sequence[Any]],
        losses: Sequence[tf.Tensor],
        also: Sequence[tf.Tensor],
        computed: Sequence[Any],
    ) -> tuple[list[Any], list[tf.Tensor]]:
        """Sums over all shards what the replica's own have computed; `also` counts once."""
        assert self.virtual is not None
        values = []
        for k, (loss, part) in enumerate(zip(losses, state.parts, strict=True)):
            more = [tensor if k == 0 else tf.zeros_like(tensor) for tensor in also]
            values.append([loss, *more, *part])
        reduced, sums = self.virtual.reduce(gradients, values, computed=computed)
        count = 1 + len(also)
        self._assign_state(state, sums[count:])
        return reduced, sums[:count]

    def _shard_state(self, model: keras.Model) -> ShardState | None:
        if self.virtual is None:
            return None
        return ShardState(self.metrics.variables(model), model.non_trainable_variables)

    def _updating(
        self, state: ShardState | None, shard: Shard
    ) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if state is None else state.updating(shard)

    def _assign_state(self, state: ShardState, sums: Sequence[tf.Tensor]) -> None:
        assert self.virtual is not None
        state.assign(sums, self.virtual.count, is_first=self.virtual.is_first_replica)

    def train_by_own_step(
        self, model: keras.Model, part: Part, also: Sequence[tf.Tensor] = ()
    ) -> list[tf.Tensor]:
        """Updates a model by its overridden `train_step`, whose optimizers' gradients are reduced.

        Args:
            model: The compiled model.
            part: The shard that this replica computes.
            also: float32 tensors to sum over the replicas.

        Returns:
            As the second result of `train`. The loss is what the step returns as `loss`, or the sum
            of all scalars that it returns.
        """
        data, shard = part
        with self.computing(model, shard):
            logs = model.train_step(data)
            shard.restore()
        if isinstance(logs, Mapping):
            logs = logs.get("loss", logs)
        scalars = [v for v in keras.tree.flatten(logs) if getattr(v, "shape", ()) == ()]
        loss = tf.add_n([tf.cast(value, tf.float32) for value in scalars or [0.0]])
        weighted = shard.counted(loss * tf.cast(shard.weight, tf.float32))
        return self.backend.reduce_sum([weighted, *also])

    def evaluate(
        self,
        model: keras.Model,
        parts: Sequence[Part],
        outputs: Callable[[Any], Any] | None = None,
    ) -> None:
        """Adds shards to the metrics of a model, as its `test_step` does.

        Args:
            model: The compiled model.
            parts: The shards that this replica computes, one after the other.
            outputs: Computes the outputs for the inputs in place of the model; not for a model that
                overrides `test_step`.
        """
        state = self._shard_state(model)
        with self.fast_form(model):
            for data, shard in parts:
                if shard.may_be_empty and state is None:
                    self._remember(shard, self.metrics.variables(model))
                with self._updating(state, shard), computing(shard):
                    _test(model, data, outputs)
                    shard.restore()
        if self.virtual is not None and state is not None:
            self._assign_state(state, self.virtual.sum(state.parts))

    @contextlib.contextmanager
    def _synchronising(self, model: keras.Model, shard: Shard) -> Iterator[None]:
        """Makes batch normalisation use the rows of all replicas, where that is asked for."""
        counts = tf.cast(tf.greater(shard.rows, 0), tf.float32)
        weight = shard.weight if has_own_train_step(model) else None
        with self.synchronised_batchnorm(model).counting(counts, weight):
            yield

    def _changed_by(self, model: keras.Model) -> list[Any]:
        """Returns what a training step of a row that does not count would change.

        Statistics over the rows of all replicas are right on each of them.
        """
        layers = self.synchronised_batchnorm(model).layers
        right = {id(variable) for layer in layers for variable in layer.variables}
        changed = [*self.metrics.variables(model), *model.non_trainable_variables]
        return [variable for variable in changed if id(variable) not in right]

    def _remember(self, shard: Shard, variables: Sequence[Any]) -> None:
        """Keeps the values of float variables from before the step."""
        for variable in variables:
            if variable.dtype in ("float16", "bfloat16", "float32", "float64"):
                value = tf.identity(tf.convert_to_tensor(variable.value))
                shard.before[id(variable)] = (variable, value)


def _test(model: keras.Model, data: Any, outputs: Callable[[Any], Any] | None) -> None:
    if has_own_test_step(model):
        model.test_step(data)
        return
    x = unpacked(data)[0]
    y_pred = outputs(x) if outputs else model(x, training=False)
    update_metrics(model, data, y_pred, evaluated_loss(model, data, y_pred))


def _noting_changes(original: Any) -> Any:
    """Notes which variables are assigned while a shard is computed."""

    def assign(variable: Any, value: Any) -> Any:
        shard = current_shard()
        if shard is not None:
            shard.changed[id(variable)] = variable
        return original(variable, value)

    return assign


def _add_up(gradients: Sequence[Any]) -> Any:
    """Returns the sum of the gradients of one variable; None if the loss does not depend on it."""
    if len(gradients) == 1 or gradients[0] is None:
        return gradients[0]
    return tf.add_n([tf.convert_to_tensor(gradient) for gradient in gradients])
