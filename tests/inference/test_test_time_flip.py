"""Outputs averaged over an image and its mirror image."""

import json

import keras
import numpy as np
import pytest

from distcnn.config import DataConfig
from distcnn.data.dataset import load_split
from distcnn.data.sources import open_source
from distcnn.evaluate import main
from tests.runs import small_run


def test_test_flip_averages_over_mirror_images_now_and_later(tmp_path):
    summary = small_run(tmp_path / "run", train__test_flip=True)
    model = keras.saving.load_model(tmp_path / "run" / "model.keras", compile=False)
    data = DataConfig(name="synthetic", synthetic_examples=230)
    split = load_split(data, open_source(data), (32, 32, 3), 21, "test")
    images = split.gather(np.arange(len(split))).numpy() / np.float32(255)
    both = [model.predict(part, verbose=0) for part in (images, images[:, :, ::-1])]
    labels = split.labels
    mean = np.mean(both, axis=0)
    expected = -np.mean(np.log(mean[np.arange(len(labels)), labels]))
    assert summary["test_loss"] == pytest.approx(expected, rel=1e-5)
    once = -np.mean(np.log(both[0][np.arange(len(labels)), labels]))
    assert abs(once - expected) > 1e-3
    main([str(tmp_path / "run"), "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
