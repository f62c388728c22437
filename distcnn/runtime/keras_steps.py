"""The pieces of which Keras' own steps are made, for models whose step is computed in parts.

Like `keras_hooks`, it uses what is not part of Keras' public interface.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf
from keras.src import tree
from keras.src.backend.tensorflow import trainer as trainer_module
from keras.src.trainers.data_adapters import (
    data_adapter_utils,
)

_TRAINER = trainer_module.TensorFlowTrainer


def has_own_train_step(model: keras.Model) -> bool:
    """Returns whether a model overrides Keras' `train_step`."""
    return getattr(model.train_step, "__func__", None) is not _TRAINER.train_step


def has_own_test_step(model: keras.Model) -> bool:
    """Returns whether a model overrides Keras' `test_step`."""
    return getattr(model.test_step, "__func__", None) is not _TRAINER.test_step


def has_own_predict_step(model: keras.Model) -> bool:
    """Returns whether a model overrides Keras' `predict_step`."""
    return getattr(model.predict_step, "__func__", None) is not _TRAINER.predict_step


def unpacked(data: Any) -> tuple[Any, Any, Any]:
    """Returns inputs, targets and sample weights of a batch, as Keras' iterators yield them."""
    found: tuple[Any, Any, Any] = data_adapter_utils.unpack_x_y_sample_weight(data)
    return found


def forward_backward(model: keras.Model, data: Any, weight: Any) -> tuple[Any, Any, Any]:
    """Computes the loss of a batch as Keras' own `train_step` does, and its weighted gradients.

    Args:
        model: The compiled model.
        data: Inputs, targets and sample weights, as an iterator of Keras yields them.
        weight: Factor of the loss before it is differentiated.

    Returns:
        The outputs, the loss, and the gradients of the scaled and weighted loss.
    """
    x, y, sample_weight = unpacked(data)
    with tf.GradientTape() as tape:
        y_pred = model(x, training=True) if model._call_has_training_arg else model(x)
        loss = model._compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True
        )
        scaled = model.optimizer.scale_loss(loss * tf.cast(weight, loss.dtype))
    return y_pred, loss, tape.gradient(scaled, model.trainable_weights)


def evaluated_loss(model: keras.Model, data: Any, y_pred: Any) -> Any:
    """Returns the loss of outputs as Keras' own `test_step` computes it."""
    x, y, sample_weight = unpacked(data)
    return model._compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=False)


def update_metrics(model: keras.Model, data: Any, y_pred: Any, loss: Any) -> Any:
    """Updates the metrics of a model, the loss among them, as Keras' own steps do.

    Args:
        model: The compiled model.
        data: Inputs, targets and sample weights, as an iterator of Keras yields them.
        y_pred: The outputs for them.
        loss: Their loss.

    Returns:
        The results of the metrics by name.
    """
    x, y, sample_weight = unpacked(data)
    count = tf.shape(next(i for i in tree.flatten(x) if i is not None))[0]
    model._loss_tracker.update_state(loss, sample_weight=count)
    return model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)


@contextlib.contextmanager
def predicting_by(model: keras.Model, step: Callable[[Any], Any]) -> Iterator[None]:
    """Makes functions that Keras makes in the context predict by another step."""
    model.predict_step = step
    try:
        yield
    finally:
        del model.predict_step


def without_optionals(model: keras.Model, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a function of a batch so that missing parts of the batch arrive as None."""
    wrapped: Callable[..., Any] = model._autoconvert_optionals(function)
    return wrapped


@contextlib.contextmanager
def without_xla(model: keras.Model) -> Iterator[None]:
    """Makes functions that Keras makes in the context leave XLA to the session."""
    before = model._jit_compile
    model._jit_compile = False
    try:
        yield
    finally:
        model._jit_compile = before


@contextlib.contextmanager
def one_step_an_execution(model: keras.Model) -> Iterator[None]:
    """Makes a model's functions run a single step in the context."""
    before = model.steps_per_execution
    model.steps_per_execution = 1
    try:
        yield
    finally:
        model.steps_per_execution = before


def forget_functions(model: keras.Model) -> None:
    """Makes a model build its compiled functions anew."""
    model.train_function = model.test_function = model.predict_function = None


def build_symbolically(model: keras.Model, batch: Any, *, build_optimizer: bool = True) -> None:
    """Creates the variables of a model, its metrics and its optimizer.

    Args:
        model: The compiled model.
        batch: Inputs, targets and sample weights: tensors, or their specifications.
        build_optimizer: Whether to build the optimizer too, for all trainable weights.
    """

    def symbolic(part: Any) -> Any:
        if part is None or isinstance(part, tf.OptionalSpec):
            return None
        dtype = keras.backend.standardize_dtype(part.dtype)
        return keras.KerasTensor(tuple(part.shape), dtype)

    with contextlib.ExitStack() as stack:
        stack.enter_context(_watching_frozen(model))
        if not build_optimizer:
            stack.enter_context(_without_optimizer(model))
        model._symbolic_build(data_batch=tree.map_structure(symbolic, batch))


@contextlib.contextmanager
def _watching_frozen(model: keras.Model) -> Iterator[None]:
    """Lets gradient tapes watch the variables that frozen layers create in the context.

    Keras creates them after their layers have frozen them, and TensorFlow does not watch a variable
    that is frozen when it is created. Without this, unfreezing them would not train them.
    """
    owner = keras.Variable
    original = owner._deferred_initialize

    def initialize(variable: Any) -> None:
        by_layer = (layer._trainable_variables for layer in model._flatten_layers())
        frozen = not variable.trainable and any(v is variable for vs in by_layer for v in vs)
        variable._trainable = frozen or variable.trainable
        original(variable)
        variable._trainable = not frozen and variable.trainable

    owner._deferred_initialize = initialize
    try:
        yield
    finally:
        owner._deferred_initialize = original


@contextlib.contextmanager
def _without_optimizer(model: keras.Model) -> Iterator[None]:
    optimizer = model.optimizer
    vars(model)["optimizer"] = None  # Keras' own assignment would record it as a part of the model
    try:
        yield
    finally:
        vars(model)["optimizer"] = optimizer


def replace_optimizer(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
    """Gives a compiled model another optimizer; its loss and metrics stay as they are."""
    vars(model)["optimizer"] = optimizer  # Keras' own assignment would make it a part of the model


def optimized_variables(optimizer: keras.optimizers.Optimizer) -> list[Any]:
    """Returns the variables that an optimizer was built for; none if it is not built."""
    return list(optimizer._trainable_variables) if optimizer.built else []


@contextlib.contextmanager
def reading(values: list[tuple[Any, tf.Tensor]]) -> Iterator[None]:
    """Makes Keras variables read as the given values in the context."""
    with keras.StatelessScope(state_mapping=values):
        yield


def in_stateless_scope() -> bool:
    """Returns whether Keras variables read as values that were given to a scope."""
    from keras.src.backend.common.stateless_scope import in_stateless_scope as inside

    return bool(inside())
