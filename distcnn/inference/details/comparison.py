"""Compares two classifiers on the same images by a paired test."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

_NORMAL = 1.959963984540054  # the 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Comparison:
    """Two classifiers on the same images.

    Attributes:
        both: Images that both classify right.
        only_first: Images that only the first one classifies right.
        only_second: Images that only the second one classifies right.
        neither: Images that both classify wrong.
    """

    both: int
    only_first: int
    only_second: int
    neither: int

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray) -> "Comparison":
        """Counts images.

        Args:
            first: Whether the first classifier is right, bool `(images,)`.
            second: Whether the second one is, the same shape.
        """
        counts = (first & second, first & ~second, ~first & second, ~first & ~second)
        return cls(*(int(np.count_nonzero(each)) for each in counts))

    @property
    def images(self) -> int:
        """Number of images."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float:
        """Accuracy of the first classifier less that of the second."""
        return (self.only_first - self.only_second) / self.images

    @property
    def p_value(self) -> float:
        """The exact two-sided p-value of McNemar's test.

        It is the probability that images that only one of them classifies right are divided at
        least as unevenly, if each is right with equal probability (a binomial distribution).

        Q. McNemar: Note on the sampling error of the difference between correlated proportions or
        percentages, Psychometrika 12 (1947).
        """
        total, least = self.only_first + self.only_second, min(self.only_first, self.only_second)
        term, tail = 1, 1
        for index in range(least):
            term = term * (total - index) // (index + 1)
            tail += term
        return min(1.0, 2 * tail / 2**total)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the difference, for pairs.

        Half an image is added to each of the four counts, as by A. Agresti and Y. Min: Simple
        improved confidence intervals for comparing matched proportions, Statistics in Medicine 24
        (2005).
        """
        first, second, total = self.only_first + 0.5, self.only_second + 0.5, self.images + 2
        centre = (first - second) / total
        width = _NORMAL * math.sqrt((first + second) / total - centre**2) / math.sqrt(total)
        return max(-1.0, centre - width), min(1.0, centre + width)

    def as_dict(self) -> dict[str, Any]:
        """Returns all of it for JSON."""
        return {
            "both_right": self.both,
            "only_this_right": self.only_first,
            "only_other_right": self.only_second,
            "both_wrong": self.neither,
            "difference": self.difference,
            "interval_95": list(self.interval),
            "p_value": self.p_value,
            "test": "McNemar, exact",
        }
