"""Models that their owner has compiled: their loss, metrics, optimizer and steps are what runs."""

import logging

import keras

from distcnn.config import Config
from distcnn.config.task import Task
from distcnn.data.pipeline import EpochSampler
from distcnn.errors import UsageError
from distcnn.models.compiled import label_format
from distcnn.models.interface import ModelInterface
from distcnn.optim.optimizers import scaled_learning_rate
from distcnn.runtime.keras_steps import has_own_test_step, has_own_train_step
from distcnn.training.objective import Objective

log = logging.getLogger("distcnn")


def own_objective(
    model: keras.Model,
    config: Config,
    interface: ModelInterface,
    task: Task = "classification",
) -> Objective:
    """Returns what a model is trained for that its owner has compiled.

    Args:
        model: The compiled model.
        config: The run.
        interface: What the model takes and returns.
        task: What the labels are.

    Raises:
        UsageError: If the configuration asks for what the model's own steps cannot do, the
            optimizer is not one of Keras, or there is no loss.
    """
    if not isinstance(model.optimizer, keras.optimizers.Optimizer):
        raise UsageError(
            f"the model is compiled with the optimizer {model.optimizer!r}; expected an optimizer "
            "of Keras"
        )
    _require_loss(model)
    if has_own_train_step(model) and config.train.accumulation_steps > 1:
        raise UsageError(
            f"train.accumulation_steps is {config.train.accumulation_steps}, but the model "
            "overrides train_step, which computes a whole batch; drop --train.accumulation_steps, "
            "or let its optimizer have gradient_accumulation_steps"
        )
    views = {"test_flip": config.train.test_flip, "test_shift": config.train.test_shift}
    for key, value in views.items():
        if has_own_test_step(model) and value:
            raise UsageError(
                f"train.{key} is {value}, but the model overrides test_step, which computes its "
                f"own outputs; drop --train.{key}"
            )
    log.warning(
        "warning: the model is compiled, so its %s is used, and of the section optimizer only ema",
        type(getattr(model.optimizer, "inner_optimizer", model.optimizer)).__name__,
    )
    labels = label_format(model, config)
    if labels == "index" and task != "classification":
        raise UsageError(
            f"the model's loss takes the index of one class, but the labels are for {task}; "
            "compile it with a loss for rows of labels"
        )
    return Objective(interface.logits, is_own=True, labels=labels, task=task)


def _require_loss(model: keras.Model) -> None:
    """Checks that there is a loss: of `compile`, of the model's own methods, or of `add_loss`."""
    computes_its_own = (
        has_own_train_step(model) or type(model).compute_loss is not keras.Model.compute_loss
    )
    if model.loss is not None or computes_its_own:
        return
    model(keras.ops.zeros((1, *model.input_shape[1:])), training=False)
    if not model.losses:
        raise UsageError(
            "the model is compiled without a loss; pass one to compile, or return the model "
            "uncompiled to train it with categorical cross-entropy and the configured optimizer"
        )


def peak_rate(
    config: Config,
    sampler: EpochSampler,
    objective: Objective,
    optimizer: keras.optimizers.Optimizer,
) -> float:
    """Returns the learning rate at its highest: as configured and scaled, or of the own optimizer.

    Args:
        config: The run.
        sampler: Has the size of the global batch.
        objective: Says whether the model's owner has compiled it.
        optimizer: The optimizer.
    """
    if objective.is_own:
        return float(keras.ops.convert_to_numpy(optimizer.learning_rate))
    return scaled_learning_rate(config.optimizer, sampler.global_batch_size)
