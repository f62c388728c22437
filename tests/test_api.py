"""What a user imports from `distcnn`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import distcnn
from distcnn import evaluate as evaluate_function
from distcnn.evaluate import main as evaluate_command
from tests.runs import small_config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api") / "run"
    assert distcnn.Trainer(small_config(folder)).fit() is not None
    return folder


def test_everything_that_is_exported_is_there_and_documented():
    for name in distcnn.__all__:
        thing = getattr(distcnn, name)
        assert name == "__version__" or (thing.__doc__ or "").strip(), name
    assert set(distcnn.__all__) <= set(dir(distcnn))
    with pytest.raises(AttributeError, match="has no attribute 'trainer'"):
        getattr(distcnn, "trainer")  # noqa: B009


def test_importing_it_does_not_import_tensorflow():
    code = (
        "import sys, distcnn\n"
        "config = distcnn.load_config('quickstart', train={'epochs': 3}, out='runs/mine')\n"
        "assert (config.recipe, config.train.epochs) == ('quickstart', 3)\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_evaluate_and_predict_are_functions_though_commands_have_these_names():
    assert distcnn.evaluate is evaluate_function is not evaluate_command
    assert evaluate_function.__module__ == "distcnn.inference.evaluation"
    assert sys.modules["distcnn.evaluate"].main is evaluate_command


def test_evaluate_finds_what_the_run_found(run):
    summary = json.loads((run / "summary.json").read_text())
    for split in ("test", "validation"):
        result = distcnn.evaluate(run, split=split)
        key = {"test": "test_accuracy", "validation": "val_accuracy"}[split]
        assert summary[key] == pytest.approx(result.accuracy, rel=1e-6)
        expected = distcnn.evaluate(str(run), split=split, batch_size=7)
        assert result.accuracy == expected.accuracy
        assert result.loss == pytest.approx(expected.loss)
    test = distcnn.evaluate(run)
    assert test.confusion().sum() == len(test.labels) == 23
    assert [row["class"] for row in test.by_class()] == list(test.classes)


def test_evaluate_takes_other_images_and_asks_for_them(run, tmp_path):
    data = distcnn.DataConfig(name="synthetic", synthetic_examples=50)
    assert len(distcnn.evaluate(run, data=data).labels) == 5
    alone = tmp_path / "model.keras"
    alone.write_bytes((run / "model.keras").read_bytes())
    with pytest.raises(distcnn.UsageError, match=r"belongs to no run.*pass data=DataConfig"):
        distcnn.evaluate(alone)
    assert len(distcnn.evaluate(alone, data=data).labels) == 5
    with pytest.raises(distcnn.DistcnnError, match="none does not exist"):
        distcnn.evaluate("none", data=data)


def test_predict_gives_the_classes_of_each_image(run, tmp_path):
    random = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        pixels = random.integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    found = distcnn.predict(run, folder)
    assert [prediction.path.name for prediction in found] == ["a.png", "b.png"]
    for prediction in found:
        assert prediction.probabilities.shape == (10,)
        assert prediction.probabilities.sum() == pytest.approx(1, abs=1e-5)
        best = prediction.top(3)
        assert [value for _, value in best] == sorted((v for _, v in best), reverse=True)
        assert best[0][1] == pytest.approx(prediction.probabilities.max())
        assert {name for name, _ in best} <= set(prediction.classes)
    (again,) = distcnn.predict(run, [folder / "b.png"])
    np.testing.assert_allclose(again.probabilities, found[1].probabilities, atol=1e-6)
    (folder / "c.png").write_text("not an image")
    with pytest.raises(distcnn.DataError, match=r"1 of 3 files cannot be decoded: .*c\.png"):
        distcnn.predict(run, folder)
    assert len(distcnn.predict(run, folder, on_error="skip")) == 2
