"""Everything that an evaluation is asked for besides its scores."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from distcnn.errors import DistcnnError
from distcnn.inference.details import pictures
from distcnn.inference.details.calibration import Reliability, fit_temperature, with_temperature
from distcnn.inference.details.curves import Rankings
from distcnn.inference.details.mistakes import Mistakes, find_mistakes
from distcnn.inference.details.thresholds import Thresholds, best_thresholds
from distcnn.inference.evaluation import AnyEvaluation, Evaluation, Evaluator, SplitName
from distcnn.inference.label_evaluation import LabelEvaluation
from distcnn.inference.number_evaluation import NumberEvaluation
from distcnn.inference.plots import to_png


@dataclass(frozen=True)
class Calibrated:
    """A classifier with its temperature.

    Attributes:
        fitted_on: Split that the temperature was fitted on.
        temperature: What logits are divided by.
        reliability: Of the evaluated images.
        loss: Cross-entropy of the evaluated images in nats.
    """

    fitted_on: str
    temperature: float
    reliability: Reliability
    loss: float


@dataclass(frozen=True)
class Details:
    """The details of an evaluation.

    Attributes:
        reliability: How often the classifier is right, by how sure it is; for several labels, over
            all of them. None for numbers.
        calibrated: The same with a temperature; None without validation images, and for labels and
            numbers.
        rankings: ROC and precision-recall curves; None for numbers.
        thresholds: Of several labels; None without validation images.
        mistakes: The worst mistakes.
    """

    reliability: Reliability | None
    calibrated: Calibrated | None
    rankings: Rankings | None
    thresholds: Thresholds | None
    mistakes: Mistakes

    def as_dict(self) -> dict[str, Any]:
        """Returns what is known, for JSON."""
        found: dict[str, Any] = {}
        if self.reliability is not None:
            found["calibration"] = calibration_as_dict(self.reliability)
        if self.calibrated is not None:
            found["calibration"] |= {
                "fitted_on": self.calibrated.fitted_on,
                "temperature": self.calibrated.temperature,
                "ece_with_temperature": self.calibrated.reliability.ece,
                "loss_with_temperature": self.calibrated.loss,
                "reliability_with_temperature": self.calibrated.reliability.rows(),
            }
        if self.rankings is not None:
            found["curves"] = self.rankings.as_dict()
        if self.thresholds is not None:
            found["thresholds"] = self.thresholds.as_dict()
        found["mistakes"] = [each.as_dict() for each in self.mistakes.worst]
        return found

    def lines(self) -> list[str]:
        """Returns what to print."""
        found = []
        if self.calibrated is not None:
            found.append(
                f"calibration  temperature {self.calibrated.temperature:.4f}, fitted on the "
                f"{self.calibrated.fitted_on} images: ECE {self.calibrated.reliability.ece:.4f}  "
                f"loss {self.calibrated.loss:.4f}"
            )
        if self.rankings is not None:
            macro, micro = self.rankings.macro_auc, self.rankings.micro
            areas = {
                "AUC macro": macro,
                "micro": micro.auc,
                "average precision macro": self.rankings.macro_average_precision,
                "micro ": micro.average_precision,
            }
            known = (f"{name} {area:.4f}" for name, area in areas.items() if area is not None)
            found.append(f"curves  {'  '.join(known)}")
        if self.thresholds is not None:
            found.append(
                f"thresholds of the largest F1, chosen on the {self.thresholds.chosen_on} images: "
                f"f1 {self.thresholds.f1:.4f}  exact {self.thresholds.exact:.4f}"
            )
        if self.mistakes.note:
            found.append(self.mistakes.note)
        return found

    def pictures(self, result: AnyEvaluation) -> dict[str, bytes]:
        """Returns the pictures as PNG, by what they show.

        Args:
            result: The evaluation.
        """
        found = {}
        if self.reliability is not None:
            after = self.calibrated.reliability if self.calibrated else None
            temperature = self.calibrated.temperature if self.calibrated else None
            figure = pictures.reliability_figure(self.reliability, after, temperature)
            found["reliability"] = to_png(figure)
        if self.rankings is not None:
            found["curves"] = to_png(pictures.curves_figure(self.rankings))
        if isinstance(result, NumberEvaluation):
            found["numbers"] = to_png(pictures.numbers_figure(result))
        if self.mistakes.worst:
            found["mistakes"] = pictures.mistakes_sheet(self.mistakes)
        return found


def scores_of(result: AnyEvaluation, top_k: int | None = None) -> dict[str, Any]:
    """Returns the scores of an evaluation, for JSON.

    Args:
        result: The evaluation.
        top_k: How many of the most probable classes count. Default: 5 if there are more.
    """
    if not isinstance(result, Evaluation):
        return result.results()
    known = top_k or (5 if len(result.classes) > 5 else None)
    top = {"top_k": known, "top_k_accuracy": result.top_k(known)} if known else {}
    reliability = Reliability.of_classes(result.probabilities, result.labels)
    return {
        "accuracy": result.accuracy,
        "loss": result.loss,
        **top,
        "classes": result.by_class(),
        "confusion_matrix": result.confusion().tolist(),
        "calibration": calibration_as_dict(reliability),
    }


def calibration_as_dict(reliability: Reliability) -> dict[str, Any]:
    """Returns the calibration of a classifier as it is, for JSON."""
    return {
        "ece": reliability.ece,
        "bins": len(reliability.images),
        "reliability": reliability.rows(),
    }


def make_details(evaluator: Evaluator, split: SplitName, result: AnyEvaluation) -> Details:
    """Computes the details of an evaluation.

    Temperature and thresholds are chosen on the validation images of the evaluated data set, and
    applied to the images that are evaluated.

    Args:
        evaluator: What the result is from.
        split: Which images.
        result: The result for them.

    Raises:
        DistcnnError: If the model returns what is not a number.
    """
    outputs = result.values if isinstance(result, NumberEvaluation) else result.probabilities
    bad = np.count_nonzero(~np.isfinite(outputs).all(axis=1))
    if bad:
        raise DistcnnError(
            f"the model returns infinity or NaN for {bad} of {len(outputs)} images, as after a "
            "training that diverged; expected numbers; evaluate it without --details"
        )
    mistakes = find_mistakes(evaluator, split, result)
    if isinstance(result, NumberEvaluation):
        return Details(None, None, None, None, mistakes)
    chosen_on = _validation(evaluator, split, result)
    if isinstance(result, LabelEvaluation):
        reliability = Reliability.of(result.probabilities.ravel(), result.labels.ravel())
        rankings = Rankings.of(result.labels, result.probabilities, result.classes)
        thresholds = None
        if isinstance(chosen_on, LabelEvaluation):
            values = best_thresholds(chosen_on.labels, chosen_on.probabilities)
            thresholds = Thresholds.of("validation", values, result)
        return Details(reliability, None, rankings, thresholds, mistakes)
    truth = result.labels[:, np.newaxis] == np.arange(len(result.classes))
    calibrated = _calibrated(chosen_on, result) if isinstance(chosen_on, Evaluation) else None
    return Details(
        Reliability.of_classes(result.probabilities, result.labels),
        calibrated,
        Rankings.of(truth, result.probabilities, result.classes),
        None,
        mistakes,
    )


def _validation(
    evaluator: Evaluator, split: SplitName, result: AnyEvaluation
) -> AnyEvaluation | None:
    """Returns the result for the validation images of the data set; None if it has none."""
    if evaluator.data.validation != "split" or evaluator.source.train is None:
        return None  # the test images must not choose anything
    return result if split == "validation" else evaluator.evaluate("validation")


def _calibrated(validation: Evaluation, result: Evaluation) -> Calibrated:
    temperature = fit_temperature(validation.probabilities, validation.labels)
    probabilities = with_temperature(result.probabilities, temperature)
    calibrated = Evaluation(result.labels, probabilities, result.classes)
    reliability = Reliability.of_classes(probabilities, result.labels)
    return Calibrated("validation", temperature, reliability, calibrated.loss)
