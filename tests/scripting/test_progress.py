"""The line at the end of each epoch of a script: how fast it trains, and what it waits for."""

import logging
import re
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from distcnn.config import ScriptConfig
from distcnn.scripting.session import session

X = np.random.default_rng(0).normal(size=(25, 3)).astype("float32")
PAUSE = 0.03
"""Seconds that a batch of `slow` takes."""


@pytest.fixture
def lines(caplog):
    """Trains in a session; returns the lines that it has logged."""
    caplog.set_level(logging.INFO, "distcnn")

    def train(data=X, *, settings=None, **arguments):
        caplog.clear()
        model = keras.Sequential([keras.layers.Dense(3)])
        with session(config=ScriptConfig()):
            model.compile("sgd", "mse", **(settings or {}))
            model.fit(data, **arguments)
        return [text for text in caplog.messages if text.startswith("epoch ")]

    return train


def slow():
    for _ in range(6):
        time.sleep(PAUSE)
        yield X[:5], X[:5]


def test_every_epoch_says_how_fast_it_was_and_how_long_the_rest_takes(lines):
    found = lines(y=X, batch_size=10, epochs=2, validation_data=(X, X), verbose=2)
    pattern = r"epoch {}/2: ([\d,]+) rows/s, ([\d.]+) ms/step, input wait ([\d.]+) %"
    assert re.fullmatch(pattern.format(1) + r", \d:\d\d left", found[0])
    last = re.fullmatch(pattern.format(2), found[1])
    assert last is not None
    rows_per_step = int(last[1].replace(",", "")) * float(last[2]) / 1000
    assert rows_per_step == pytest.approx(25 / 3, rel=0.05)
    assert len(found) == 2


def test_waiting_for_slow_data_is_seen(lines):
    signature = (tf.TensorSpec((5, 3)), tf.TensorSpec((5, 3)))
    data = tf.data.Dataset.from_generator(slow, output_signature=signature)
    data = data.apply(tf.data.experimental.assert_cardinality(6))
    found = lines(data, epochs=2, shuffle=False, verbose=2)
    numbers = re.search(r"([\d.]+) ms/step, input wait ([\d.]+) %", found[1])
    assert numbers is not None
    waited = float(numbers[1]) * float(numbers[2]) / 100
    assert 0.5 * 1000 * PAUSE < waited <= float(numbers[1])


def test_executions_of_several_steps_count_their_steps_and_say_nothing_of_waiting(lines):
    settings = {"steps_per_execution": 2}
    found = lines(y=X, settings=settings, batch_size=5, epochs=2, verbose=2)
    numbers = re.fullmatch(r"epoch 2/2: ([\d,]+) rows/s, ([\d.]+) ms/step", found[1])
    assert numbers is not None
    assert int(numbers[1].replace(",", "")) * float(numbers[2]) / 1000 == pytest.approx(5, rel=0.05)


def test_a_silent_fit_has_no_line_and_eager_steps_have_one(lines):
    assert lines(y=X, epochs=1, verbose=0) == []
    (found,) = lines(y=X, settings={"run_eagerly": True}, batch_size=5, verbose=2)
    assert re.search(r"rows/s, [\d.]+ ms/step, input wait", found)
    assert lines(y=X, batch_size=25, epochs=1, verbose=2) == []  # only the step that compiles
