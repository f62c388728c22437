"""Probabilities or logits: decided by what a model returns, not by how it is written."""

import logging
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np

from distcnn.config.task import Task
from distcnn.errors import DistcnnError
from distcnn.runtime.keras_internals import all_layers, calls_in_order, functional_graph

log = logging.getLogger("distcnn")

Declared = Literal["auto", "probabilities", "logits"]

_CONTRAST = 1000.0
"""Factor on the images under which logits leave [0, 1], unless something bounds them."""

_KEEP_VALUES = (
    *(keras.layers.Reshape, keras.layers.Flatten, keras.layers.Permute, keras.layers.Identity),
    *(keras.layers.Dropout, keras.layers.Average),
)
"""Layers that leave each value as it is, or average values of the same kind."""


@dataclass(frozen=True)
class Output:
    """The meaning of a model's output.

    Attributes:
        logits: Whether softmax is still to be applied.
        reason: Why, for the log.
    """

    logits: bool
    reason: str


def resolve_output(model: keras.Model, images: np.ndarray, declared: Declared = "auto") -> Output:
    """Tells probabilities from logits by the model's outputs for a few images.

    Probabilities lie in [0, 1], and each row sums to 1, whatever layers come after the softmax. The
    tolerance is 0.001, or 0.01 if a layer computes in 16 bits. A dense layer without activation at
    the end returns logits in any case.

    Args:
        model: A built classifier.
        images: float32 of shape `(count, height, width, channels)`, scaled as the model expects.
        declared: What the user says; `auto` to decide here. Outputs that contradict it are only
            warned of.

    Returns:
        The answer and its reason.

    Raises:
        DistcnnError: If `declared` is auto and the outputs end with softmax or sigmoid, but are
            neither probabilities nor logits.
    """
    seen, last = _kind(_outputs(model, images), _tolerance(model)), last_activation(model)
    if declared != "auto":
        _warn_of_contradiction(declared, seen)
        return Output(declared == "logits", "as configured")
    if seen == "not finite":
        log.warning(
            "warning: the model's outputs are not finite before training; whether they are "
            "probabilities is told from its last activation (%s)",
            last or "unknown",
        )
        return Output(last != "softmax", f"last activation {last or 'unknown'}")
    if seen == "fractions":
        return _of_fractions(model, images, last)
    if seen == "probabilities" and last == "linear":
        log.warning(
            "warning: the model ends with a dense layer without activation, yet its outputs sum to "
            "1; they are taken for logits; pass --model.output probabilities if they are not"
        )
        return Output(True, "last layer has no activation")
    if seen == "logits" and last == "softmax":
        log.warning(
            "warning: the model's last activation is softmax, but its outputs leave [0, 1]; they "
            "are taken for logits; pass --model.output probabilities if they are not"
        )
    return Output(seen == "logits", _REASONS[seen])


_REASONS = {
    "probabilities": "rows sum to 1",
    "logits": "outputs leave [0, 1]",
    "fractions": "rows do not sum to 1",
    "not finite": "outputs are not finite",
}


def resolve_task_output(
    model: keras.Model, images: np.ndarray, task: Task, declared: Declared = "auto"
) -> Output:
    """Returns what a model's outputs mean for a task; see `resolve_output`.

    With several labels for an image, outputs in [0, 1] are probabilities, and others logits.

    Raises:
        DistcnnError: If the model ends with an activation that does not fit the task.
    """
    if task == "classification":
        return resolve_output(model, images, declared)
    last = last_activation(model)
    if task == "regression":
        if last in ("softmax", "sigmoid"):
            raise DistcnnError(
                f"the model ends with {last}, but the labels are numbers; end it with a dense "
                "layer without activation"
            )
        return Output(False, "numbers in the unit of the labels")
    if last == "softmax":
        raise DistcnnError(
            "the model ends with softmax, but an image may have several labels; end it with "
            "sigmoid, or with logits"
        )
    if declared != "auto":
        return Output(declared == "logits", "as configured")
    if last in ("sigmoid", "linear"):
        return Output(last == "linear", f"last activation {last}")
    fractions = _kind(_outputs(model, images * np.float32(_CONTRAST)), _tolerance(model))
    return Output(fractions == "logits", _REASONS[fractions])


def last_activation(model: keras.Model) -> str | None:
    """Returns the activation that a model ends with, as far as its graph shows.

    Returns:
        `softmax` or `sigmoid`; `linear` for a dense layer without activation; None for anything
        else.
    """
    graph = functional_graph(model)
    if graph is None:
        return None
    made_by = {id(tensor): call for call in calls_in_order(graph) for tensor in call.outputs}
    call = made_by.get(id(graph.outputs[0]))
    while call is not None and isinstance(call.operation, _KEEP_VALUES):
        call = made_by.get(id(call.input_tensors[0]))
    if call is None:
        return None
    operation = call.operation
    if isinstance(operation, keras.Model):
        return last_activation(operation)
    kind = type(operation)
    name = getattr(getattr(operation, "activation", None), "__name__", kind.__name__).lower()
    if name == "linear" and kind is not keras.layers.Dense:
        return None
    return name if name in ("softmax", "sigmoid", "linear") else None


def _outputs(model: keras.Model, images: np.ndarray) -> np.ndarray:
    outputs = keras.ops.cast(model(images, training=False), "float32")
    return np.asarray(keras.ops.convert_to_numpy(outputs))


def _tolerance(model: keras.Model) -> float:
    types: set[Any] = {getattr(layer, "compute_dtype", None) for layer in all_layers(model)}
    return 0.01 if types & {"bfloat16", "float16"} else 0.001


def _kind(outputs: np.ndarray, tolerance: float) -> str:
    if not np.isfinite(outputs).all():
        return "not finite"
    if outputs.min() < -tolerance or outputs.max() > 1 + tolerance:
        return "logits"
    sums = outputs.sum(axis=1, dtype=np.float64)
    return "probabilities" if np.abs(sums - 1).max() <= tolerance else "fractions"


def _of_fractions(model: keras.Model, images: np.ndarray, last: str | None) -> Output:
    """Decides on outputs in [0, 1] whose rows do not sum to 1."""
    advice = (
        "expected softmax over the classes, or logits; end the model with one of them, or say "
        "what it returns: --model.output logits or probabilities"
    )
    if last in ("softmax", "sigmoid"):
        raise DistcnnError(
            f"the model ends with {last}, and its outputs are in [0, 1] but do not sum to 1 in "
            f"each row; {advice}"
        )
    outputs = _outputs(model, images * np.float32(_CONTRAST))
    bounded = _kind(outputs, _tolerance(model)) == "fractions" and np.ptp(outputs, axis=0).any()
    if bounded and last != "linear":
        log.warning(
            "warning: the model's outputs are all in [0, 1], but do not sum to 1 in each row; they "
            "are taken for logits; %s",
            advice,
        )
    return Output(True, _REASONS["fractions"])


def _warn_of_contradiction(declared: Declared, seen: str) -> None:
    wrong = seen == "probabilities" if declared == "logits" else seen in ("logits", "fractions")
    if wrong:
        log.warning(
            "warning: model.output is %s, but the model's %s; the loss may be wrong; drop "
            "--model.output to let it be found out",
            declared,
            _REASONS[seen],
        )
