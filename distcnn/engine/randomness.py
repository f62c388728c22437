"""Random numbers inside a step: each replica draws its own, though all hold the same seeds."""

from typing import Any

import tensorflow as tf

from distcnn.distribute.base import Backend
from distcnn.distribute.layers import seed_of_replica
from distcnn.engine.shard import current_shard
from distcnn.runtime.keras_hooks import FunctionMaker


def different_on_each_replica(backend: Backend) -> FunctionMaker:
    """Returns the hook that makes seed generators draw another seed on every replica in a step."""

    def make(original: Any) -> Any:
        def next_seed(generator: Any, ordered: bool = True) -> tf.Tensor:
            seed = original(generator, ordered)
            return seed if current_shard() is None else seed_of_replica(seed, backend)

        return next_seed

    return make
