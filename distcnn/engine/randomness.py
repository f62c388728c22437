"""Random numbers inside a step: each shard draws its own, though replicas hold the same seeds."""

from typing import Any

import tensorflow as tf

from distcnn.distribute.base import Backend
from distcnn.distribute.layers import seed_of
from distcnn.engine.shard import current_shard
from distcnn.runtime.keras_hooks import FunctionMaker


def different_on_each_replica(backend: Backend) -> FunctionMaker:
    """Returns the hook that makes seed generators draw another seed for every shard of a step."""

    def make(original: Any) -> Any:
        def next_seed(generator: Any, ordered: bool = True) -> tf.Tensor:
            seed = original(generator, ordered)
            shard = current_shard()
            if shard is None:
                return seed
            return seed_of(seed, backend.replica_id() if shard.index is None else shard.index)

        return next_seed

    return make
