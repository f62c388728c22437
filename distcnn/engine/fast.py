"""The fast path: models compute in their fast form while a step is traced."""

import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import keras

from distcnn.distribute.layers import SynchronisedBatchNorm
from distcnn.fast import fast_model
from distcnn.optim.fused_updates import fuse_updates
from distcnn.runtime.keras_internals import all_layers, functional_graph, input_structure

# The replicas of a process are traced in threads, which take turns where they reduce.
_lock = threading.Lock()
_users: weakref.WeakKeyDictionary[keras.Model, int] = weakref.WeakKeyDictionary()


def can_be_fast(model: Any) -> bool:
    """Returns whether a model computes the same in its fast form.

    The fast form has no masks and takes a single input, so that the order of inputs is clear.
    """
    graph = functional_graph(model) if isinstance(model, keras.Model) and model.built else None
    if graph is None or keras.tree.is_nested(input_structure(graph)):
        return False
    return not any(_makes_mask(layer) for layer in all_layers(model))


def _makes_mask(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.layers.Masking) or bool(getattr(layer, "mask_zero", False))


@contextlib.contextmanager
def computing_fast(
    model: keras.Model, synchronised: SynchronisedBatchNorm | None
) -> Iterator[None]:
    """Makes a model compute in its fast form in the context, whatever calls it.

    Args:
        model: Built Sequential or functional model.
        synchronised: The layers that normalise over all replicas, or None.
    """
    with _lock:
        users = _users.get(model, 0)
        if not users:
            network = fast_model(model, synchronised)

            def call(inputs: Any, training: bool | None = None, mask: Any = None, **_: Any) -> Any:
                return network.call(inputs, training=bool(training))

            model.call = call
        _users[model] = users + 1
    try:
        yield
    finally:
        with _lock:
            _users[model] -= 1
            if not _users[model]:
                del _users[model], model.call


def fuse_optimizer(optimizer: Any) -> None:
    """Makes Adam, AdamW or SGD update each variable in a single operation."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if isinstance(inner, keras.optimizers.Optimizer) and not getattr(inner, "amsgrad", False):
        fuse_updates(inner)
