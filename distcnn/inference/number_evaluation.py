"""Evaluation of a model of numbers."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class NumberEvaluation:
    """The result of a model of numbers on a set of images.

    Attributes:
        labels: True numbers, float32 of shape `(images, numbers)`.
        values: The model's numbers, float32 of the same shape.
        classes: Names of the numbers.
    """

    labels: np.ndarray
    values: np.ndarray
    classes: tuple[str, ...]

    def by_class(self) -> list[dict[str, Any]]:
        """Returns the errors of each number: mse, rmse, mae, and r2 (None if all are the same)."""
        rows = []
        errors = self.values.astype(np.float64) - self.labels
        for index, name in enumerate(self.classes):
            error, truth = errors[:, index], self.labels[:, index].astype(np.float64)
            mse, variance = float(np.mean(error**2)), float(truth.var())
            rows.append(
                {
                    "class": name,
                    "mse": mse,
                    "rmse": mse**0.5,
                    "mae": float(np.mean(np.abs(error))),
                    "r2": 1 - mse / variance if variance else None,
                    "images": len(error),
                }
            )
        return rows

    def results(self) -> dict[str, Any]:
        """Returns the mean squared and absolute error over all numbers, and those of each."""
        rows = self.by_class()
        return {
            "mse": float(np.mean([row["mse"] for row in rows])),
            "mae": float(np.mean([row["mae"] for row in rows])),
            "classes": rows,
        }
