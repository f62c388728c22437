"""What Keras' `fit` works with: its arguments, batches, callbacks, logs and random numbers.

Like `keras_hooks`, it uses what is not part of Keras' public interface.
"""

import inspect
import random
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src import tree
from keras.src.backend.common import global_state
from keras.src.backend.tensorflow import trainer as trainer_module
from keras.src.callbacks.callback_list import CallbackList
from keras.src.random import seed_generator
from keras.src.trainers.data_adapters import (
    array_data_adapter,
    tf_dataset_adapter,
)
from keras.src.utils.python_utils import pythonify_logs
from tensorflow.python.eager import context

_FIT_SIGNATURE = inspect.signature(trainer_module.TensorFlowTrainer.fit)


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


def insert_callback(callbacks: Any, first: keras.callbacks.Callback, model: keras.Model) -> Any:
    """Returns callbacks, as `fit` takes them, with one more in front of them."""
    if isinstance(callbacks, CallbackList):
        first.set_model(model)
        callbacks.callbacks.insert(0, first)
        return callbacks
    return [first, *tree.flatten(callbacks or [])]


def wait_for_callbacks(callbacks: CallbackList) -> None:
    """Waits for callbacks that Keras calls in a thread."""
    callbacks._flush_futures()


def save_weights_of_backup(callback: Any) -> None:
    """Saves the model of a `BackupAndRestore`, without the other files of a backup."""
    callback.model.save_weights(callback._weights_path, overwrite=True)


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
