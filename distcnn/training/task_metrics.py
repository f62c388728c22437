"""The loss and metrics of images with several labels, or with numbers.

Their states are sums and counts, so that they can be added over the replicas.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from typing_extensions import override

_MOST_LOGIT = 16.0
"""Where float32 no longer tells a probability from 1."""


class MeanAveragePrecision(keras.metrics.AUC):
    """The mean over the labels of the average precision: mAP.

    The average precision of a label is the sum over thresholds of precision times the rise in
    recall. Here there are 200 of them, evenly spaced for logits, as most probabilities are close to
    0 or 1; `distcnn evaluate` takes every probability for one. Labels that no image has do not
    count.

    Args:
        labels: Number of labels.
        logits: Whether the outputs are logits.
    """

    def __init__(self, labels: int, logits: bool) -> None:
        thresholds = 1 / (1 + np.exp(-np.linspace(-_MOST_LOGIT, _MOST_LOGIT, 198)))
        super().__init__(
            name="mAP",
            curve="PR",
            thresholds=thresholds.tolist(),
            multi_label=True,
            num_labels=labels,
            from_logits=logits,
        )

    @override
    def result(self) -> Any:
        found = self.true_positives.value
        precision = ops.divide_no_nan(found, found + self.false_positives)
        recall = ops.divide_no_nan(found, found + self.false_negatives)
        rise = recall[:-1] - recall[1:]  # thresholds rise, so that recall falls
        average = ops.sum(rise * precision[:-1], 0) + recall[-1] * precision[-1]
        exists = ops.cast(found[0] + self.false_negatives[0] > 0, average.dtype)
        return ops.divide_no_nan(ops.sum(average * exists), ops.sum(exists))


class F1(keras.metrics.F1Score):
    """The mean over the labels of F1, where a probability above 0.5 means that an image has one.

    Args:
        logits: Whether the outputs are logits.
    """

    def __init__(self, logits: bool) -> None:
        super().__init__(average="macro", threshold=0.5, name="f1")
        self._logits = logits

    @override
    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        y_pred = ops.sigmoid(y_pred) if self._logits else y_pred
        super().update_state(y_true, y_pred, sample_weight)


class ScaledSquaredError(keras.losses.Loss):
    """The mean squared error of numbers in units of their variance: 1 if the mean is predicted.

    Args:
        scale: The standard deviation of each number.
    """

    def __init__(self, scale: Sequence[float]) -> None:
        super().__init__(name="scaled_squared_error")
        self._scale = list(scale)

    @override
    def call(self, y_true: Any, y_pred: Any) -> Any:
        y_pred = ops.convert_to_tensor(y_pred)
        error = (ops.cast(y_true, y_pred.dtype) - y_pred) / ops.cast(self._scale, y_pred.dtype)
        return ops.mean(ops.square(error), axis=-1)
