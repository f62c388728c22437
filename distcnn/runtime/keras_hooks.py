"""The places in Keras at which a session changes what a user's script does.

Like `keras_steps`, `keras_fit` and `keras_internals`, it uses what is not part of Keras' public
interface; `tests/runtime/test_keras_internals.py` checks that each of these places exists.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.tensorflow import random as backend_random
from keras.src.backend.tensorflow import trainer as trainer_module
from keras.src.backend.tensorflow.optimizer import TFOptimizer
from keras.src.callbacks.callback_list import CallbackList
from keras.src.losses import loss as loss_module
from keras.src.optimizers.base_optimizer import BaseOptimizer
from keras.src.saving import saving_api
from keras.src.utils import file_utils
from tensorflow.python.data.ops.iterator_ops import OwnedIterator
from tensorflow.python.framework import random_seed
from tensorflow.python.ops import gen_summary_ops

FunctionMaker = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Takes the original function and returns its replacement."""

_TRAINER = trainer_module.TensorFlowTrainer


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
ASSIGN = HookPoint(keras.Variable, "assign")
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
