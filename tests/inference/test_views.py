"""Outputs averaged over several views of an image."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from distcnn.config import DataConfig
from distcnn.data.dataset import load_split
from distcnn.data.sources import open_source
from distcnn.evaluate import main
from distcnn.inference.views import Views
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


def test_shifted_views_count_half_and_repeat_the_edge():
    images = np.random.default_rng(0).normal(size=(4, 6, 8, 3)).astype(np.float32)
    weights = np.random.default_rng(1).normal(size=(144, 2)).astype(np.float32)

    def classify(batch):
        return tf.nn.softmax(tf.reshape(batch, [-1, 144]) @ weights)

    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    up, down = padded[:, 4:, 4:], padded[:, :-4, :-4]
    shifted = 0.5 * classify(images) + 0.25 * classify(up) + 0.25 * classify(down)
    np.testing.assert_allclose(Views(shift=2).mean(classify, images), shifted, rtol=1e-5)
    mirrored = [part[:, :, ::-1] for part in (images, up, down)]
    both = 0.5 * classify(mirrored[0]) + 0.25 * classify(mirrored[1]) + 0.25 * classify(mirrored[2])
    found = Views(flip=True, shift=2).mean(classify, images)
    np.testing.assert_allclose(found, (shifted + both) / 2, rtol=1e-5)
    assert Views().mean(classify, images).shape == (4, 2)
