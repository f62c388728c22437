"""The places in Keras at which a session changes what a user's script does.

Beside `keras_internals`, the only module that uses what is not part of Keras' public interface;
`tests/runtime/test_keras_internals.py` checks that each of these places exists.
"""

import contextlib
import inspect
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src import tree
from keras.src.backend.common import global_state
from keras.src.backend.tensorflow import random as backend_random
from keras.src.backend.tensorflow import trainer as trainer_module
from keras.src.backend.tensorflow.optimizer import TFOptimizer
from keras.src.callbacks.callback_list import CallbackList
from keras.src.losses import loss as loss_module
from keras.src.optimizers.base_optimizer import BaseOptimizer
from keras.src.random import seed_generator
from keras.src.saving import saving_api
from keras.src.trainers.data_adapters import (
    array_data_adapter,
    data_adapter_utils,
    tf_dataset_adapter,
)
from keras.src.utils import file_utils
from keras.src.utils.python_utils import pythonify_logs
from tensorflow.python.data.ops.iterator_ops import OwnedIterator
from tensorflow.python.eager import context
from tensorflow.python.framework import random_seed
from tensorflow.python.ops import gen_summary_ops

FunctionMaker = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Takes the original function and returns its replacement."""

_TRAINER = trainer_module.TensorFlowTrainer
_FIT_SIGNATURE = inspect.signature(_TRAINER.fit)


@dataclass(frozen=True)
class HookPoint:
    """A function of Keras that can be replaced: an attribute of a class."""

    owner: Any
    name: str


@dataclass(frozen=True)
class FunctionPoint:
    """A function of Keras that can be replaced wherever one of Keras' modules has imported it."""

    name: str
    function: Any


FIT = HookPoint(_TRAINER, "fit")
EVALUATE = HookPoint(_TRAINER, "evaluate")
PREDICT = HookPoint(_TRAINER, "predict")
MAKE_FUNCTION = HookPoint(_TRAINER, "_make_function")
MAKE_TRAIN_FUNCTION = HookPoint(_TRAINER, "make_train_function")
MAKE_PREDICT_FUNCTION = HookPoint(_TRAINER, "make_predict_function")
METRICS_RESULT = HookPoint(_TRAINER, "get_metrics_result")
MAYBE_BUILD = HookPoint(_TRAINER, "_maybe_symbolic_build")
EPOCH_ITERATOR = HookPoint(trainer_module.TFEpochIterator, "__init__")
APPLY = HookPoint(BaseOptimizer, "apply")
APPLY_SCALED = HookPoint(keras.optimizers.LossScaleOptimizer, "apply")
REDUCE_GRADIENTS = HookPoint(TFOptimizer, "_all_reduce_sum_gradients")
LOSS_CALL = HookPoint(keras.losses.Loss, "__call__")
MEAN_UPDATE = HookPoint(keras.metrics.Mean, "update_state")
SUM_UPDATE = HookPoint(keras.metrics.Sum, "update_state")
NEXT_SEED = HookPoint(keras.random.SeedGenerator, "next")
OPERATION_SEED = HookPoint(random_seed, "get_seed")
POLICY_TYPES = HookPoint(keras.DTypePolicy, "_parse_name")
SAVE = HookPoint(keras.Model, "save")
SAVE_WEIGHTS = HookPoint(keras.Model, "save_weights")
EXPORT = HookPoint(keras.Model, "export")
TRAIN_BEGIN = HookPoint(CallbackList, "on_train_begin")
TRAIN_END = HookPoint(CallbackList, "on_train_end")
EPOCH_BEGIN = HookPoint(CallbackList, "on_epoch_begin")
EPOCH_END = HookPoint(CallbackList, "on_epoch_end")
TRAIN_BATCH_BEGIN = HookPoint(CallbackList, "on_train_batch_begin")
TRAIN_BATCH_END = HookPoint(CallbackList, "on_train_batch_end")
TEST_BEGIN = HookPoint(CallbackList, "on_test_begin")
NEXT_BATCH = HookPoint(OwnedIterator, "get_next")
NEXT_BATCH_OR_NONE = HookPoint(OwnedIterator, "get_next_as_optional")
BACKUP_SAVE = HookPoint(keras.callbacks.BackupAndRestore, "_save_model")
BACKUP_END = HookPoint(keras.callbacks.BackupAndRestore, "on_train_end")
CSV_BEGIN = HookPoint(keras.callbacks.CSVLogger, "on_train_begin")
MONITOR_EPOCH = HookPoint(keras.callbacks.RemoteMonitor, "on_epoch_end")
TENSORBOARD_MODEL = HookPoint(keras.callbacks.TensorBoard, "set_model")
EVENT_FILE = HookPoint(gen_summary_ops, "create_summary_file_writer")
SAVE_MODEL_FUNCTION = FunctionPoint("save_model", saving_api.save_model)
SAVE_WEIGHTS_FUNCTION = FunctionPoint("save_weights", saving_api.save_weights)
SCALE_LOSS = FunctionPoint("scale_loss_for_distribution", loss_module.scale_loss_for_distribution)
UNSCALE_LOSS = FunctionPoint(
    "unscale_loss_for_distribution", loss_module.unscale_loss_for_distribution
)
DEVICE_SETTINGS = (
    HookPoint(tf.config, "set_visible_devices"),
    HookPoint(tf.config, "set_logical_device_configuration"),
    HookPoint(tf.config.experimental, "set_visible_devices"),
    HookPoint(tf.config.experimental, "set_memory_growth"),
    HookPoint(tf.config.experimental, "set_virtual_device_configuration"),
    HookPoint(tf.config.threading, "set_intra_op_parallelism_threads"),
    HookPoint(tf.config.threading, "set_inter_op_parallelism_threads"),
)
REDUCE_PER_REPLICA = FunctionPoint("reduce_per_replica", trainer_module.reduce_per_replica)
DROPOUT = FunctionPoint("dropout", backend_random.dropout)
GET_FILE = FunctionPoint("get_file", file_utils.get_file)
EXTRACT_ARCHIVE = FunctionPoint("extract_archive", file_utils.extract_archive)


class Hooks:
    """The replaced functions, which can all be put back."""

    def __init__(self) -> None:
        self._undo: list[tuple[Any, str, Any]] = []

    def replace(self, point: HookPoint | FunctionPoint, make: FunctionMaker) -> None:
        """Replaces a function.

        Args:
            point: Which one.
            make: Takes the original and returns the replacement.
        """
        if isinstance(point, HookPoint):
            self._set(point.owner, point.name, make(getattr(point.owner, point.name)))
            return
        replacement = make(point.function)
        for name, module in list(sys.modules.items()):
            is_keras = name == "keras" or name.startswith("keras.")
            if is_keras and vars(module).get(point.name) is point.function:
                self._set(module, point.name, replacement)

    def restore(self) -> None:
        """Puts all originals back."""
        while self._undo:
            owner, name, original = self._undo.pop()
            setattr(owner, name, original)

    def _set(self, owner: Any, name: str, value: Any) -> None:
        self._undo.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)


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


def insert_callback(callbacks: Any, first: keras.callbacks.Callback, model: keras.Model) -> Any:
    """Returns callbacks, as `fit` takes them, with one more in front of them."""
    if isinstance(callbacks, CallbackList):
        first.set_model(model)
        callbacks.callbacks.insert(0, first)
        return callbacks
    return [first, *tree.flatten(callbacks or [])]


def save_weights_of_backup(callback: Any) -> None:
    """Saves the model of a `BackupAndRestore`, without the other files of a backup."""
    callback.model.save_weights(callback._weights_path, overwrite=True)


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
def reading(values: list[tuple[Any, tf.Tensor]]) -> Iterator[None]:
    """Makes Keras variables read as the given values in the context."""
    with keras.StatelessScope(state_mapping=values):
        yield


def in_stateless_scope() -> bool:
    """Returns whether Keras variables read as values that were given to a scope."""
    from keras.src.backend.common.stateless_scope import in_stateless_scope as inside

    return bool(inside())


def forget_functions(model: keras.Model) -> None:
    """Makes a model build its compiled functions anew."""
    model.train_function = model.test_function = model.predict_function = None


def element_spec(iterator: Any) -> Any:
    """Returns the shapes and types of the batches of one of Keras' epoch iterators."""
    return iterator._distributed_dataset.element_spec


def replace_batches(iterator: Any, dataset: tf.data.Dataset) -> None:
    """Makes one of Keras' epoch iterators yield the batches of another data set."""
    iterator._distributed_dataset = dataset


def with_class_weight(class_weight: Any) -> Callable[..., Any]:
    """Returns the function by which Keras adds weights of classes to the batches of a data set."""
    weigh: Callable[..., Any] = tf_dataset_adapter.make_class_weight_map_fn(class_weight)
    return weigh


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


@contextlib.contextmanager
def one_step_an_execution(model: keras.Model) -> Iterator[None]:
    """Makes a model's functions run a single step in the context."""
    before = model.steps_per_execution
    model.steps_per_execution = 1
    try:
        yield
    finally:
        model.steps_per_execution = before


def fit_arguments(
    model: keras.Model, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> dict[str, Any]:
    """Returns the arguments of a `fit` call by name; none if they are wrong."""
    try:
        return _FIT_SIGNATURE.bind(model, *arguments, **keywords).arguments
    except TypeError:  # which Keras will report
        return {}


def has_only_arrays(data: Any) -> bool:
    """Returns whether `fit` slices what it was given, so that reading it changes no state."""
    return bool(array_data_adapter.can_convert_arrays(data))


def validation_iterator(model: keras.Model) -> Any:
    """Returns the iterator over the validation data of the `fit` in progress."""
    return model._eval_epoch_iterator


def plain_logs(logs: Any) -> dict[str, Any]:
    """Returns the results of a step as Python numbers and arrays."""
    found: dict[str, Any] = pythonify_logs(logs)
    return found


def wait_for_callbacks(callbacks: CallbackList) -> None:
    """Waits for callbacks that Keras calls in a thread."""
    callbacks._flush_futures()


def optimized_variables(optimizer: keras.optimizers.Optimizer) -> list[Any]:
    """Returns the variables that an optimizer was built for; none if it is not built."""
    return list(optimizer._trainable_variables) if optimizer.built else []


def global_seed() -> np.ndarray | None:
    """Returns the state of Keras' global seed generator; None if nothing has drawn from it yet."""
    generator = global_state.get_global_attribute(seed_generator.GLOBAL_SEED_GENERATOR)
    return None if generator is None else np.asarray(generator.state)


def set_global_seed(state: np.ndarray | None) -> None:
    """Sets what `global_seed` returns."""
    if state is None:
        global_state.set_global_attribute(seed_generator.GLOBAL_SEED_GENERATOR, None)
    else:
        seed_generator.global_seed_generator().state.assign(state)


def operation_seeds() -> random.Random | None:
    """Returns what draws the seeds of TensorFlow's operations; None without a global seed."""
    found: random.Random | None = context.context()._rng
    return found
