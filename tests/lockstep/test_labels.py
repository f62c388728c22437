"""Several labels for an image, and numbers: the same weights and scores on 1 and 2 workers."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score

from distcnn.config import DataConfig
from distcnn.inference.evaluation import evaluate
from distcnn.inference.prediction import predict
from distcnn.training.trainer import Trainer
from tests.lockstep.cases import case_config
from tests.lockstep.groups import Outcome, run_plan
from tests.lockstep.test_equality import TOLERANCE, difference
from tests.runs import rows

CASES = ("labels", "numbers")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of labels that can be told from the images: which channels are bright, and how much."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(3)
    found = {case: folder / f"{case}.csv" for case in CASES}
    tables: dict[str, list[list[Any]]] = {
        "labels": [["file", "tags"]],
        "numbers": [["file", "lux"]],
    }
    for index in range(215):
        bright = random.random(3) < [0.5, 0.3, 0.6]
        image = random.integers(0, 90, (12, 12, 3)) + 160 * bright
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{index:03}.png")
        names = [name for name, has in zip(("red", "green", "blue"), bright, strict=True) if has]
        tables["labels"].append([f"{index:03}.png", "|".join(names)])
        tables["numbers"].append([f"{index:03}.png", f"{image.mean() * 10 + 500:.3f}"])
    for case, file in found.items():
        with file.open("w", newline="") as stream:
            csv.writer(stream).writerows(tables[case])
    return {case: str(file) for case, file in found.items()}


@pytest.fixture(scope="module")
def two(files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """The cases, trained by two workers."""
    plan = [
        {
            "name": case,
            "case": case,
            "overrides": {"distribute__strategy": "horovod", "data__labels": files.get(case)},
        }
        for case in (*CASES, "balanced")
    ]
    return run_plan("horovod", 2, plan, tmp_path_factory.mktemp("two") / "out")


@pytest.fixture
def one(files, tmp_path) -> Any:
    """Trains a case by one worker; returns its run, summary and weights."""

    def train(case: str) -> tuple[Path, dict[str, Any], list[np.ndarray]]:
        config = case_config(case, tmp_path / case, data__labels=files.get(case))
        trainer = Trainer(config)
        summary = trainer.fit()
        assert summary is not None
        return tmp_path / case, summary, trainer.model.get_weights()

    return train


def require_equal(ours: Outcome, summary: dict[str, Any], weights: list[np.ndarray]) -> None:
    assert ours.summary["world_size"] == 2
    assert ours.summary["weights_agree"] is True
    assert difference(ours.weights, weights) <= TOLERANCE
    scores = [key for key in summary if key.startswith(("val_", "test_", "loss", "mAP", "f1"))]
    assert len(scores) >= 5
    for key in scores:
        expected = summary[key]
        # An image whose probability is close to a threshold may change sides.
        near: dict[str, Any] = {"abs": 0.02} if key.endswith(("mAP", "f1")) else {"rel": 1e-4}
        assert ours.summary[key] == (expected and pytest.approx(expected, **near)), key


def test_several_labels(two, one, files):
    run, summary, weights = one("labels")
    require_equal(two["labels"], summary, weights)
    assert summary["task"] == "multilabel"
    assert summary["test_mAP"] > 0.9
    assert summary["val_accuracy"] is None
    result = evaluate(run)
    assert result.classes == ("blue", "green", "red")
    assert 18 <= len(result.labels) <= 25
    scores = result.results()
    truth, fractions = result.labels, result.probabilities
    assert scores["mAP"] == pytest.approx(
        average_precision_score(truth, fractions, average="macro")
    )
    assert summary["test_mAP"] == pytest.approx(scores["mAP"], abs=0.01)
    assert summary["test_f1"] == pytest.approx(f1_score(truth, fractions > 0.5, average="macro"))
    assert [row["images"] for row in scores["classes"]] == truth.sum(0).tolist()
    # A file whose images have some of the labels only.
    file = Path(files["labels"]).with_name("few.csv")
    file.write_text("file,tags\n" + "".join(f"{i:03}.png,red|blue\n" for i in range(9)))
    few = evaluate(run, data=DataConfig(labels=str(file), test_split=1.0))
    assert few.labels.sum(0).tolist() == [9, 0, 9]


def test_numbers(two, one, files):
    run, summary, weights = one("numbers")
    require_equal(two["numbers"], summary, weights)
    assert summary["task"] == "regression"
    assert [row["loss"] for row in rows(run)][-1] < 0.5  # of the variance
    result = evaluate(run)
    errors = result.values - result.labels
    assert summary["test_mse"] == pytest.approx(float(np.mean(errors**2)), rel=1e-4)
    assert summary["test_mae"] == pytest.approx(float(np.mean(np.abs(errors))), rel=1e-4)
    images = [Path(files["numbers"]).parent / f"{index:03}.png" for index in range(3)]
    found = [prediction.numbers()["lux"] for prediction in predict(run, images)]
    assert all(500 < number < 3500 for number in found)


def test_balanced_classes(two, one):
    _, summary, weights = one("balanced")
    require_equal(two["balanced"], summary, weights)
