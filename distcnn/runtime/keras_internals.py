"""The one place that uses attributes of Keras which are not part of its public interface.

Tested with Keras 3.15.x, to which pyproject.toml limits the dependency. `tests/runtime/
test_keras_internals.py` checks each of them, and names what a new version breaks.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
from keras.src.backend.common import global_state


def _functional_class() -> type:
    image = keras.Input((1,))
    return type(keras.Model(image, image))


_FUNCTIONAL = _functional_class()


def functional_graph(model: keras.Model) -> keras.Model | None:
    """Returns the functional model of a functional or Sequential model, None for any other."""
    graph = model._functional if type(model) is keras.Sequential else model
    return graph if type(graph) is _FUNCTIONAL else None


def calls_in_order(graph: keras.Model) -> Iterator[Any]:
    """Yields the calls that make up a functional model, each after those that it depends on.

    A call has `operation`, `arguments`, `input_tensors` and `outputs`.
    """
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        yield from (node for node in graph._nodes_by_depth[depth] if not node.is_input)


def in_evaluation(operation: Any) -> dict[str, bool]:
    """Returns the keyword that makes an operation compute as in evaluation, if it takes it."""
    takes_training = getattr(operation, "_call_has_training_arg", False)
    return {"training": False} if takes_training else {}


def input_structure(graph: keras.Model) -> Any:
    """Returns a functional model's inputs, nested as it takes them; a single one is not nested."""
    inputs = graph._inputs_struct
    return inputs[0] if isinstance(inputs, list | tuple) and len(inputs) == 1 else inputs


def output_structure(graph: keras.Model) -> Any:
    """Returns a functional model's outputs, nested as it returns them."""
    return graph._outputs_struct


def all_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Yields all layers of a model, nested ones included, but not the model itself."""
    return model._flatten_layers(include_self=False)


def layers_in_order(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Yields the layers that a model calls, in order; a layer may be yielded several times.

    Those of a model without a graph come in the order in which it holds them.
    """
    graph = model._functional if isinstance(model, keras.Sequential) else model
    if not isinstance(graph, _FUNCTIONAL):
        yield from model.layers
        return
    for call in calls_in_order(graph):
        if isinstance(call.operation, keras.layers.Layer):
            yield call.operation


def learned_variables(layer: keras.layers.Layer) -> list[Any]:
    """Returns the variables that a layer and its inner ones train, unless they are frozen."""
    return [v for each in layer._flatten_layers() for v in each._trainable_variables]


def scale_weight_decay(
    optimizer: keras.optimizers.Optimizer, factor_of: Callable[[Any], float]
) -> None:
    """Makes an optimizer decay each variable by another fraction of its weight decay.

    Args:
        optimizer: Optimizer that decays weights by itself, or not at all.
        factor_of: From a variable to the fraction.
    """
    plain, decay = optimizer._apply_weight_decay, optimizer.weight_decay
    if decay is None:
        return

    def apply(variables: Sequence[Any]) -> None:
        # The replicas of a process are traced in threads that take turns, all in the same order.
        for variable in variables:
            optimizer.weight_decay = decay * factor_of(variable)
            plain([variable])
        optimizer.weight_decay = decay

    optimizer._apply_weight_decay = apply


def seed_generators(layer: keras.layers.Layer) -> Sequence[Any]:
    """Returns the seed generators that a layer tracks."""
    return getattr(layer, "_seed_generators", ())


def normalised_axes(layer: keras.layers.BatchNormalization) -> Sequence[int]:
    """Returns the axes over which a batch normalisation reduces."""
    return layer._reduction_axes


def batch_moments(layer: keras.layers.BatchNormalization) -> Callable[[Any, Any], Any]:
    """Returns the function by which a batch normalisation takes its batch's mean and variance."""
    moments: Callable[[Any, Any], Any] = layer._moments
    return moments


def replace_batch_moments(
    layer: keras.layers.BatchNormalization, moments: Callable[[Any, Any], tuple[Any, Any]]
) -> None:
    """Lets a batch normalisation take its batch's mean and variance from a function.

    Args:
        layer: The layer.
        moments: From inputs and mask to mean and variance of shape `(channels,)`.
    """
    layer._moments = moments


def variable_index(optimizer: keras.optimizers.Optimizer, variable: Any) -> int:
    """Returns the place of a variable among those that an optimizer was built for."""
    index: int = optimizer._get_variable_index(variable)
    return index


def adam_moments(optimizer: keras.optimizers.Adam, variable: Any) -> tuple[Any, Any]:
    """Returns the first and second moment that Adam or AdamW keeps of a variable."""
    index = variable_index(optimizer, variable)
    return optimizer._momentums[index], optimizer._velocities[index]


def skip_gradient_reduction(optimizer: keras.optimizers.Optimizer) -> None:
    """Keeps an optimizer under `tf.distribute` from reducing gradients that are reduced already."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    inner._all_reduce_sum_gradients = lambda grads_and_vars: list(grads_and_vars)


def call_synchronously(callbacks: keras.callbacks.CallbackList) -> None:
    """Keeps a list of callbacks from calling them in a thread of its own."""
    callbacks._async_train = False


def forget_dtype_policy() -> None:
    """Makes Keras' dtype policy follow `keras.config.set_floatx` again, as in a new process."""
    global_state.set_global_attribute("dtype_policy", None)


def follows_schedule(optimizer: keras.optimizers.Optimizer) -> bool:
    """Returns whether an optimizer's learning rate is a schedule rather than a number."""
    return not isinstance(optimizer._learning_rate, keras.Variable)
