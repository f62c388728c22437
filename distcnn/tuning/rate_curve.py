"""The loss by learning rate, what it suggests, and its picture; imports no TensorFlow."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # imported late, since Matplotlib takes half a second
    from matplotlib.figure import Figure

_SMOOTHING = 0.9
"""Weight of the past in the moving average of the loss."""

_SKIPPED = 0.1
"""Fraction of the points at the low end where the average is still that of few steps."""

_REACH = 0.1
"""Fraction of the points, on either side, over which the fall of the average is taken."""

_LEAST_FALL = 0.01
"""By which fraction of itself the loss must fall for a suggestion."""


@dataclass
class RateCurve:
    """The loss of each step of a range test (Smith 2017, "Cyclical Learning Rates", section 3.3).

    Attributes:
        low: The first rate.
        high: The last rate.
        steps: Number of steps from the first to the last.
        tolerance: The test ends where the smoothed loss exceeds this many times its least value.
        rates: The rates so far.
        losses: The loss of each step.
        smoothed: Their moving average, corrected for its start from 0 (Kingma and Ba 2015).
        diverged: Whether the loss has become too large, or not finite.
    """

    low: float
    high: float
    steps: int
    tolerance: float
    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)
    diverged: bool = False
    _average: float = 0.0

    def rate(self, step: int) -> float:
        """Returns the rate of a step, counted from 0; the logarithm grows evenly."""
        return float(self.low * (self.high / self.low) ** (step / max(self.steps - 1, 1)))

    def add(self, loss: float) -> bool:
        """Adds the loss of the next step, and returns whether it has diverged.

        Args:
            loss: The loss; one that is not finite ends the test, and is not kept.
        """
        if not math.isfinite(loss):
            self.diverged = True
            return True
        self.rates.append(self.rate(len(self.losses)))
        self.losses.append(loss)
        self._average = _SMOOTHING * self._average + (1 - _SMOOTHING) * loss
        smoothed = self._average / (1 - _SMOOTHING ** len(self.losses))
        least = min(self.smoothed, default=smoothed)
        self.smoothed.append(smoothed)
        self.diverged = least > 0 and smoothed > self.tolerance * least
        return self.diverged

    def least(self) -> int | None:
        """Returns the step with the least smoothed loss; None if the loss has not fallen."""
        first = int(_SKIPPED * len(self.losses))
        if len(self.losses) - first < 3:
            return None
        place = first + int(np.argmin(self.smoothed[first:]))
        start = self.smoothed[first]
        fell = start - self.smoothed[place] > _LEAST_FALL * abs(start)
        return place if fell else None

    def steepest(self) -> float | None:
        """Returns the rate at which the smoothed loss falls fastest; None if it has not fallen."""
        least, first = self.least(), int(_SKIPPED * len(self.losses))
        reach = max(int(_REACH * len(self.losses)), 1)
        if least is None or least - first < 2 * reach:
            return None
        smoothed = np.array(self.smoothed[first : least + 1])
        falls = smoothed[2 * reach :] - smoothed[: -2 * reach]
        return self.rates[first + reach + int(np.argmin(falls))]

    def tenth_of_least(self) -> float | None:
        """Returns a tenth of the rate with the least smoothed loss; None if it has not fallen."""
        least = self.least()
        return None if least is None else self.rates[least] / 10


def curve_figure(curve: RateCurve) -> "Figure":
    """Draws the loss by rate, and the suggestions."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(curve.rates, curve.losses, color="C7", lw=0.8, alpha=0.6, label="loss of the step")
    axes.plot(curve.rates, curve.smoothed, color="C0", label="smoothed")
    marks = {
        "steepest descent": (curve.steepest(), "C3"),
        "a tenth of the rate of the least loss": (curve.tenth_of_least(), "C2"),
    }
    for label, (rate, colour) in marks.items():
        if rate is not None:
            axes.axvline(rate, color=colour, ls="--", lw=1, label=f"{label}: {rate:.2g}")
    until = 1 + (curve.least() or len(curve.losses) // 2)
    low, high = min(curve.losses[:until]), max(curve.losses[:until])
    margin = max(0.1 * (high - low), 1e-6)
    axes.set_ylim(low - margin, high + 4 * margin)  # the losses after that may be huge
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss", title="learning-rate range test")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
