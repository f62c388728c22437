"""Evaluation in detail, the comparison of two runs, and the report on a run."""

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

from distcnn import report
from distcnn.errors import DistcnnError, UsageError
from distcnn.evaluate import main
from distcnn.inference.evaluation import evaluate
from distcnn.storage.model_file import load_model, save_model
from tests.inference.test_exporting_labels import make_run
from tests.reporting.test_page import Checker


@pytest.fixture(scope="module")
def other(finished, tmp_path_factory):
    """A run of the same data, whose model is worse."""
    folder = tmp_path_factory.mktemp("other") / "run"
    shutil.copytree(finished.path, folder)
    model, metadata = load_model(folder / "model.keras")
    assert metadata is not None
    kernel = model.layers[-1].kernel
    noise = keras.random.normal(kernel.shape, stddev=0.5, seed=1)
    kernel.assign(kernel + noise)
    save_model(folder / "model.keras", model, metadata)
    return folder


def test_details_of_a_run(finished, tmp_path, capsys):
    plot = tmp_path / "plots" / "confusion.png"
    plot.parent.mkdir()
    flags = ["--details", "--top_k=3", "--plot", str(plot), "--json=result.json"]
    assert main([str(finished.path), *flags]) == 0
    content = json.loads(Path("result.json").read_text())
    test, validation = (evaluate(finished.path, split=name) for name in ("test", "validation"))
    truth = np.eye(10, dtype=bool)[test.labels]
    curves = content["curves"]
    assert curves["macro_auc"] == pytest.approx(metrics.roc_auc_score(truth, test.probabilities))
    assert curves["micro"]["average_precision"] == pytest.approx(
        metrics.average_precision_score(truth, test.probabilities, average="micro")
    )
    expected = metrics.top_k_accuracy_score(test.labels, test.probabilities, k=3)
    assert (content["top_k"], content["top_k_accuracy"]) == (3, pytest.approx(expected))
    calibration = content["calibration"]
    logits = np.log(validation.probabilities.astype(np.float64))

    def loss(temperature):
        scaled = keras.ops.log_softmax(logits / temperature)
        return -float(np.mean(np.asarray(scaled)[np.arange(len(logits)), validation.labels]))

    best = calibration["temperature"]
    assert loss(best) < min(loss(1.01 * best), loss(best / 1.01), loss(1) + 1e-9)
    assert calibration["fitted_on"] == "validation"
    assert sum(row["images"] for row in calibration["reliability"]) == 360
    wrong = np.flatnonzero(test.predictions != test.labels)
    assert {int(row["image"]) for row in content["mistakes"]} <= set(wrong.tolist())
    assert len({row["class"] for row in content["mistakes"]}) == len(set(test.labels[wrong]))
    pictures = {path.name for path in plot.parent.iterdir()}
    assert pictures == {"confusion.png", *(f"{n}_test.png" for n in ("reliability", "curves"))} | {
        "mistakes_test.png"
    }
    for name in pictures:
        with Image.open(plot.parent / name) as image:
            assert (image.format, min(image.size) > 100) == ("PNG", True)
    printed = capsys.readouterr().out
    assert f"  top-3 {expected:.4f}  ECE {calibration['ece']:.4f}\n" in printed
    assert f"temperature {best:.4f}, fitted on the validation images: ECE " in printed


def test_two_runs_are_compared(finished, other, tmp_path, capsys):
    flags = ["--against", str(other), "--json=result.json", "--plot=plot.png"]
    assert main([str(finished.path), *flags]) == 0
    found = json.loads(Path("result.json").read_text())["against"]
    mine, theirs = evaluate(finished.path), evaluate(other)
    right = [each.predictions == each.labels for each in (mine, theirs)]
    only = [np.sum(right[0] & ~right[1]), np.sum(right[1] & ~right[0])]
    assert [found["only_this_right"], found["only_other_right"]] == only
    assert min(only) > 0
    assert found["accuracy"] == theirs.accuracy
    assert found["difference"] == pytest.approx(mine.accuracy - theirs.accuracy)
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(int(only[0]), int(sum(only))).pvalue
    assert found["p_value"] == pytest.approx(expected)
    assert f"p = {expected:.3g} (McNemar, exact)" in capsys.readouterr().out


def test_what_cannot_be_compared_is_one_line(finished, other, tmp_path, image_folder):
    folder = tmp_path / "less"
    shutil.copytree(other, folder)
    text = (folder / "config.yaml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("# sha256")]
    (folder / "config.yaml").write_text(
        "\n".join(lines).replace("validation_split: 0.1", "validation_split: 0.2")
    )
    flags = ["--plot=plot.png", "--against", str(folder)]
    assert main([str(finished.path), *flags]) == 0  # the test images are the same
    with pytest.raises(DistcnnError, match=r"has other validation images \(\d+\) than"):
        main([str(finished.path), "--split=validation", *flags])
    metadata = load_model(other / "model.keras")[1]
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2, "softmax")]
    )
    assert metadata is not None
    save_model(folder / "model.keras", model, type(metadata)(("cat", "dog")))
    lines = [line for line in lines if not line.strip().startswith("dir:")]
    (folder / "config.yaml").write_text(
        "\n".join(lines).replace("  name: digits", f"  name: folder\n  dir: {image_folder}")
    )
    with pytest.raises(DistcnnError, match=r"has 2 classes, .* has 10, and they differ in 0, 1"):
        main([str(finished.path), *flags])
    with pytest.raises(UsageError, match="top_k is 11; expected a number from 1 to 10"):
        main([str(finished.path), "--top_k=11"])


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_labels_and_numbers_in_detail(task, tmp_path, capsys):
    run, _ = make_run(tmp_path, task)
    assert main([str(run), "--details", "--json=result.json"]) == 0
    content = json.loads(Path("result.json").read_text())
    assert len(content["mistakes"]) > 0
    assert all((run.parent / "images" / row["image"]).exists() for row in content["mistakes"])
    assert (run / "mistakes_test.png").exists()
    if task == "multilabel":
        validation, test = (evaluate(run, split=name) for name in ("validation", "test"))
        rows = content["thresholds"]["classes"]
        values = np.array([row["threshold"] for row in rows])
        f1 = metrics.f1_score(
            test.labels, test.probabilities > values, average="macro", zero_division=0
        )
        assert content["thresholds"]["f1"] == pytest.approx(f1)
        for index, row in enumerate(rows):
            scores = [
                metrics.f1_score(
                    validation.labels[:, index],
                    validation.probabilities[:, index] > value,
                    zero_division=0,
                )
                for value in (row["threshold"], 0.5)
            ]
            assert scores[0] >= scores[1]
        assert "chosen on the validation images" in capsys.readouterr().out
    else:
        assert (run / "numbers_test.png").exists()
        with pytest.raises(UsageError, match="trained for numbers, but McNemar's test compares"):
            main([str(run), "--against", str(run)])
    assert report.main([str(run)]) == 0
    page = (run / "report.html").read_text()
    Checker(page)
    assert ("Predicted and true numbers" in page) == (task == "regression")
    assert ("threshold" in page) == (task == "multilabel")


def test_a_report_of_a_finished_run(finished, tmp_path):
    assert report.main([str(finished.path), "--out=out.html", "--json=report.json"]) == 0
    page = Path("out.html").read_text()
    checker = Checker(page)
    assert all(each.startswith(("data:", "#")) for each in checker.addresses)
    content = json.loads(Path("report.json").read_text())["evaluation"]
    summary = json.loads((finished.path / "summary.json").read_text())
    assert content["accuracy"] == pytest.approx(summary["test_accuracy"])
    assert f"<strong>{content['accuracy']:.4f}</strong>" in page
    assert page.count("data:image/") == 2 * len(content["mistakes"]) > 0
    for title in ("Training", "Confusion matrix", "Calibration", "Worst mistakes", "Environment"):
        assert f"<h2>{title}</h2>" in page
    assert page.count("<svg") >= 8
    assert len(page) < 1_000_000


@pytest.fixture
def diverged(finished, tmp_path):
    """A run whose model returns NaN."""
    folder = tmp_path / "diverged"
    shutil.copytree(finished.path, folder)
    model, metadata = load_model(folder / "model.keras")
    assert metadata is not None
    model.layers[-1].kernel.assign(model.layers[-1].kernel * float("nan"))
    save_model(folder / "model.keras", model, metadata)
    return folder


def test_a_diverged_model_has_no_details(diverged):
    with pytest.raises(DistcnnError, match="returns infinity or NaN for 360 of 360 images"):
        main([str(diverged), "--details"])


def test_a_diverged_model_is_named_and_its_loss_is_null_in_json(finished, diverged, caplog):
    file = diverged / "scores.json"
    main([str(finished.path), "--against", str(diverged), "--json", str(file)])
    assert f"{diverged}/model.keras returns infinity or NaN for 360 of 360 images" in caplog.text
    assert f"{finished.path}/model.keras returns" not in caplog.text
    main([str(diverged), "--json", str(file)])
    assert json.loads(file.read_text(), parse_constant=pytest.fail)["loss"] is None
