"""Calibration, curves, thresholds and the paired test, by hand and by scikit-learn and SciPy."""

import io
import itertools
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from distcnn.config import DataConfig
from distcnn.inference.details.calibration import (
    Reliability,
    fit_temperature,
    with_temperature,
)
from distcnn.inference.details.comparison import Comparison
from distcnn.inference.details.curves import Rankings
from distcnn.inference.details.details import make_details
from distcnn.inference.details.mistakes import worst_by_class
from distcnn.inference.details.pictures import curves_figure
from distcnn.inference.details.thresholds import Thresholds, best_thresholds
from distcnn.inference.evaluation import Evaluation
from distcnn.inference.label_evaluation import LabelEvaluation
from distcnn.inference.number_evaluation import NumberEvaluation
from distcnn.inference.prediction import Prediction

optimize = pytest.importorskip("scipy.optimize")  # scikit-learn brings it
stats = pytest.importorskip("scipy.stats")


def softmax(logits):
    found = np.exp(logits - logits.max(axis=1, keepdims=True))
    return found / found.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def sure():
    """A classifier of seven classes whose logits are 2.5 times too large."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(6000, 7)) * 1.5
    labels = np.array([random.choice(7, p=row) for row in softmax(logits)])
    return softmax(2.5 * logits).astype(np.float32), labels


def test_the_calibration_error_by_hand():
    # Bins of a tenth: (0.5, 0.6] holds 0.6 and 0.55, (0.8, 0.9] holds 0.9, (0.9, 1] holds 1.
    confidence = np.array([0.6, 0.55, 0.9, 1.0])
    right = np.array([True, False, True, False])
    found = Reliability.of(confidence, right, bins=10)
    assert found.images.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 1, 1]
    assert found.ece == pytest.approx((2 * abs(0.5 - 0.575) + abs(1 - 0.9) + abs(0 - 1)) / 4)
    assert found.rows()[0] == pytest.approx(
        {"above": 0.5, "to": 0.6, "images": 2, "confidence": 0.575, "accuracy": 0.5}
    )


def test_the_temperature_undoes_too_much_confidence(sure):
    probabilities, labels = sure
    temperature = fit_temperature(probabilities, labels)
    logits = np.log(probabilities.astype(np.float64))

    def loss(value):
        return -np.log(softmax(logits / value)[np.arange(len(labels)), labels]).mean()

    best = optimize.minimize_scalar(
        loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9}
    )
    assert temperature == pytest.approx(best.x, rel=1e-6)
    assert temperature == pytest.approx(2.5, rel=0.05)
    scaled = with_temperature(probabilities, temperature)
    np.testing.assert_allclose(scaled, softmax(logits / temperature), atol=1e-6)
    before = Reliability.of_classes(probabilities, labels)
    after = Reliability.of_classes(scaled, labels)
    assert before.ece > 0.2
    assert after.ece < 0.02
    assert (scaled.argmax(axis=1) == probabilities.argmax(axis=1)).all()
    assert fit_temperature(np.eye(3, dtype=np.float32), np.arange(3)) == 1  # nothing to gain
    wrong = np.eye(3, dtype=np.float32)[[1, 2, 0]]
    assert fit_temperature(wrong, np.arange(3)) == pytest.approx(20)


def test_curves_agree_with_scikit_learn(sure):
    probabilities, labels = sure[0][:400], sure[1][:400]
    truth = np.eye(7, dtype=bool)[labels]
    truth[:, 6] = False  # a class without images
    names = [str(number) for number in range(7)]
    found = Rankings.of(truth, probabilities, names)
    assert (found.by_class[6].auc, found.by_class[6].average_precision) == (None, None)
    known = truth[:, :6], probabilities[:, :6]
    assert found.macro_auc == pytest.approx(metrics.roc_auc_score(*known, average="macro"))
    for average, ours in (
        ("macro", found.macro_average_precision),
        ("micro", found.micro.average_precision),
    ):
        part = known if average == "macro" else (truth, probabilities)
        assert ours == pytest.approx(metrics.average_precision_score(*part, average=average))
    expected = metrics.roc_auc_score(truth.ravel(), probabilities.ravel())
    assert found.micro.auc == pytest.approx(expected)
    curve = found.micro.roc
    assert curve is not None
    assert len(curve.x) <= 202
    assert np.trapezoid(curve.y, curve.x) == pytest.approx(expected, abs=1e-3)
    content = found.as_dict()
    assert content["classes"][0]["class"] == "0"
    assert content["classes"][0]["roc"]["y"][-1] == 1


def test_the_legends_of_curves_cover_no_curve(sure):
    names = [f"class {number}" for number in range(7)]
    figure = curves_figure(Rankings.of(np.eye(7, dtype=bool)[sure[1]], sure[0], names))
    figure.savefig(io.BytesIO())  # lays it out
    assert len(figure.axes) == 2
    for axes in figure.axes:
        drawn = axes.get_legend()
        assert drawn is not None
        legend = drawn.get_window_extent()
        assert not axes.get_window_extent().overlaps(legend)
        assert figure.bbox.containsx(legend.x0)
        assert figure.bbox.containsx(legend.x1)
        assert figure.bbox.containsy(legend.y0)


def test_thresholds_are_the_best_of_all():
    random = np.random.default_rng(1)
    labels = random.random((60, 3)) < [0.2, 0.5, 0.0]
    probabilities = (0.3 * labels + 0.6 * random.random((60, 3))).astype(np.float32)
    found = best_thresholds(labels, probabilities)
    for index in range(2):
        candidates = [0.0, *np.unique(probabilities[:, index])]
        best = max(
            metrics.f1_score(labels[:, index], probabilities[:, index] > each)
            for each in candidates
        )
        ours = metrics.f1_score(labels[:, index], probabilities[:, index] > found[index])
        assert ours == pytest.approx(best)
    assert found[2] == 0.5
    result = LabelEvaluation(labels, probabilities, ("a", "b", "c"))
    applied = Thresholds.of("validation", found, result)
    has = probabilities > found
    assert applied.f1 == pytest.approx(
        metrics.f1_score(labels, has, average="macro", zero_division=0)
    )
    assert applied.exact == np.mean((has == labels).all(axis=1))
    assert applied.as_dict()["classes"][1]["threshold"] == found[1]


@pytest.mark.parametrize("count", [1, 4])
def test_scores_of_labels_agree_with_scikit_learn(count):
    random = np.random.default_rng(2)
    labels = random.random((80, count)) < 0.3
    probabilities = (0.3 * labels + 0.6 * random.random((80, count))).astype(np.float32)
    labels[:, 3:] = probabilities[:, 3:] = False  # a label that no image has, nor is said to have
    result = LabelEvaluation(labels, probabilities, tuple("abcd"[:count]))
    halves = np.full(count, 0.5)
    for rows in (result.by_class(), Thresholds.of("validation", halves, result).rows):
        for index, row in enumerate(rows):
            expected = metrics.precision_recall_fscore_support(
                labels[:, index], probabilities[:, index] > 0.5, average="binary", zero_division=0
            )
            found = [row[name] for name in ("precision", "recall", "f1")]
            assert found == pytest.approx(expected[:3])
    assert [row["images"] for row in result.by_class()] == labels.sum(axis=0).tolist()


def test_scores_of_labels_are_not_a_number_where_the_model_returns_none():
    labels = np.array([[True, True], [False, False], [False, True]])
    probabilities = np.array([[0.9, np.nan], [0.2, 0.1], [0.6, 0.8]], np.float32)
    found = LabelEvaluation(labels, probabilities, ("a", "b")).results()
    assert found["classes"][0]["average_precision"] == 1
    assert np.isnan([found["loss"], found["mAP"], found["classes"][1]["average_precision"]]).all()


def test_mcnemar_agrees_with_scipy():
    for first, second in itertools.product((0, 1, 7, 40, 700), repeat=2):
        counts = Comparison(90, first, second, 11)
        expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
        assert counts.p_value == pytest.approx(expected, rel=1e-9)
        assert counts.difference == (first - second) / counts.images
        low, high = counts.interval
        assert -1 <= low < counts.difference + 1e-9
        assert counts.difference - 1e-9 < high <= 1
    # A. Agresti and Y. Min, by hand: (12.5 - 3.5) / 102, sqrt((16 - 81 / 102)) / 102.
    low, high = Comparison(70, 12, 3, 15).interval
    assert (low + high) / 2 == pytest.approx(9 / 102)
    assert (high - low) / 2 == pytest.approx(1.96 * (16 - 81 / 102) ** 0.5 / 102, rel=1e-4)
    right = np.array([True, True, False, False, False])
    other = np.array([True, False, True, False, False])
    assert Comparison.of(right, other) == Comparison(1, 1, 1, 2)


def test_there_is_no_temperature_without_images_to_fit_it_on():
    result = Evaluation(np.arange(3), np.eye(3, dtype=np.float32), ("a", "b", "c"))
    no_training_images: Any = types.SimpleNamespace(train=None)
    evaluator: Any = types.SimpleNamespace(data=DataConfig(), source=no_training_images)
    assert make_details(evaluator, "test", result).calibrated is None


def test_top_k_by_hand():
    probabilities = np.array([[0.5, 0.3, 0.2], [0.2, 0.4, 0.4], [0.3, 0.3, 0.4]], np.float32)
    result = Evaluation(np.array([1, 2, 1]), probabilities, ("a", "b", "c"))
    assert [result.top_k(count) for count in (1, 2, 3)] == [0, 2 / 3, 1]
    best = Evaluation(np.array([0, 1, 2]), probabilities, ("a", "b", "c"))
    assert best.top_k(1) == best.accuracy == 1
    for row, place in zip(probabilities, best.predictions, strict=True):
        assert Prediction(Path("a.png"), best.classes, row).top()[0][0] == best.classes[place]


def test_the_worst_mistakes_of_each_class():
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.99, 0.01], [0.2, 0.8]], np.float32)
    result = Evaluation(np.array([1, 0, 1, 1]), probabilities, ("a", "b"))
    mistakes = worst_by_class(result)
    assert [(name, count) for name, count, _ in mistakes.groups()] == [("a", 1), ("b", 2)]
    assert [(each.label, each.row, each.said) for each in mistakes.worst] == [
        ("a", 1, "as b 60%"),
        ("b", 2, "as a 99%"),
        ("b", 0, "as a 90%"),
    ]
    labels = LabelEvaluation(
        np.array([[True, False], [False, True]]), probabilities[:2], ("a", "b")
    )
    found = [(each.label, each.row, each.said) for each in worst_by_class(labels).worst]
    assert found == []
    labels = LabelEvaluation(~labels.labels, probabilities[:2], ("a", "b"))
    found = [(each.label, each.row, each.said) for each in worst_by_class(labels).worst]
    assert found == [
        ("a", 0, "not there, 90%"),
        ("a", 1, "missed, 40%"),
        ("b", 0, "missed, 10%"),
        ("b", 1, "not there, 60%"),
    ]
    numbers = NumberEvaluation(np.array([[1.0], [5.0]]), np.array([[1.5], [2.0]]), ("lux",))
    errors = [(each.row, each.said) for each in worst_by_class(numbers).worst]
    assert errors == [(1, "2, not 5"), (0, "1.5, not 1")]
