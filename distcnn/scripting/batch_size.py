"""`--batch per_worker`: the script's batch is each worker's own, and the rate may grow with it."""

import math
import weakref
from typing import Any

import keras
import tensorflow as tf

from distcnn.config import ScriptConfig
from distcnn.errors import UsageError
from distcnn.runtime.keras_internals import follows_schedule

_DEFAULT_BATCH = 32
"""Keras' batch size for arrays."""


class BatchPerWorker:
    """Multiplies the script's batches by the number of workers.

    Args:
        config: How the script runs.
        replicas: Number of workers.
    """

    def __init__(self, config: ScriptConfig, replicas: int) -> None:
        self._replicas = replicas if config.batch == "per_worker" else 1
        self._scaling = config.lr_scaling
        self._scaled: weakref.WeakSet[Any] = weakref.WeakSet()

    def enlarge(self, arguments: dict[str, Any]) -> None:
        """Enlarges the batches of one of Keras' epoch iterators.

        Args:
            arguments: The arguments `x` and `batch_size` of the iterator, which are changed.

        Raises:
            UsageError: If the size of the batches is the data's own, or unknown.
        """
        if self._replicas == 1:
            return
        data = arguments.get("x")
        if isinstance(data, tf.data.Dataset):
            arguments["x"] = self._rebatched(data)
        elif isinstance(data, keras.utils.PyDataset) or hasattr(data, "__next__"):
            raise UsageError(
                f"batch is per_worker, but fit takes a {type(data).__name__}, which makes its "
                "batches itself; let it make batches for all workers, and drop --batch per_worker"
            )
        else:
            size = arguments.get("batch_size") or _DEFAULT_BATCH
            arguments["batch_size"] = size * self._replicas

    def scale_rate(self, optimizer: Any) -> None:
        """Scales an optimizer's learning rate to the larger batch, once.

        Raises:
            UsageError: If the rate is a schedule.
        """
        factor = {"none": 1.0, "linear": self._replicas, "sqrt": math.sqrt(self._replicas)}
        if self._replicas == 1 or self._scaling == "none" or optimizer in self._scaled:
            return
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        if follows_schedule(inner):
            raise UsageError(
                f"lr_scaling is {self._scaling}, but the script's learning rate is a schedule; "
                "scale it in the script, or drop --lr_scaling"
            )
        inner.learning_rate = float(inner.learning_rate) * factor[self._scaling]
        self._scaled.add(optimizer)

    def _rebatched(self, data: tf.data.Dataset) -> tf.data.Dataset:
        sizes = {spec.shape[0] for spec in tf.nest.flatten(data.element_spec) if spec.shape.rank}
        if len(sizes) == 1 and None not in sizes:
            return data.unbatch().batch(sizes.pop() * self._replicas)
        raise UsageError(
            "batch is per_worker, but the size of the data set's batches is not fixed; use "
            "batch(size, drop_remainder=True), or make batches for all workers and drop "
            "--batch per_worker"
        )
