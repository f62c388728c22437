"""The random masks of dropout, and batch statistics."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from distcnn.fast.operations import keep_mask, normalise_batch


def masks_of(rate: float, draws: int, shape: tuple[int, ...]) -> np.ndarray:
    like = tf.zeros(shape)

    @tf.function
    def draw(number: tf.Tensor) -> tf.Tensor:
        return keep_mask(tf.stack([tf.constant(7, tf.int64), number]), rate, like)

    return np.stack([draw(tf.constant(n, tf.int64)).numpy() for n in range(draws)])


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.2, 0.5, 0.9])
def test_dropout_keeps_the_right_fraction(rate: float) -> None:
    masks = masks_of(rate, 400, (64, 5, 5, 3))  # 4,800 elements; channels not a multiple of 4
    assert set(np.unique(masks)) <= {0.0, 1.0}
    kept = masks.mean(axis=(1, 2, 3, 4))
    assert kept.mean() == pytest.approx(1 - rate, abs=4 * np.sqrt(0.25 / masks.size) + 2e-4)
    # Within 1 / 256 in every draw, apart from the scatter of 4,800 elements.
    assert np.abs(kept - (1 - rate)).max() < 1 / 256 + 5 * np.sqrt(rate * (1 - rate) / 4800)


def test_dropouts_elements_are_independent() -> None:
    masks = masks_of(0.2, 300, (16, 4, 4, 8)).reshape(300, -1)
    count = masks.size
    variance = masks.var()
    assert variance == pytest.approx(0.2 * 0.8, rel=0.01)
    centred = masks - masks.mean()
    for lag in (1, 2, 3, 4, 8, 64, 128, 129):  # within a word, a channel, a row, an image
        product = (centred[:, lag:] * centred[:, :-lag]).mean() / variance
        assert abs(product) < 5 / np.sqrt(count), lag
    between = (centred[1:] * centred[:-1]).mean() / variance
    assert abs(between) < 5 / np.sqrt(count)
    each = masks.mean(axis=0)  # no element is favoured
    assert np.abs(each - 0.8).max() < 5 * np.sqrt(0.16 / 300)


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5, 0.9])
def test_decisions_from_one_random_word_are_independent(rate: float) -> None:
    words = 2**18
    mask = masks_of(rate, 1, (words, 16)).reshape(4, words, 4)
    lanes = mask.transpose(0, 2, 1).reshape(16, words)  # the decisions of one word form a column
    lanes = (lanes - lanes.mean()) / lanes.std()
    bound = 5.5 / np.sqrt(words)
    pairs = list(itertools.combinations(range(16), 2))
    products = np.stack([lanes[a] * lanes[b] for a, b in pairs])
    assert np.abs(products.mean(axis=1)).max() < bound
    for lane in range(16):
        others = [index for index, pair in enumerate(pairs) if lane not in pair]
        assert np.abs(products[others] @ lanes[lane] / words).max() < bound
    of_four = products @ products.T / words
    for (row, first), (column, second) in itertools.combinations(enumerate(pairs), 2):
        if not set(first) & set(second):
            assert abs(of_four[row, column]) < bound, (first, second)


def test_statistics_are_float32_in_half_precision() -> None:
    inputs = tf.cast(tf.random.stateless_normal((64, 8, 8, 4), [1, 2]) + 100.0, tf.bfloat16)
    exact = np.asarray(tf.cast(inputs, tf.float64)).reshape(-1, 4)
    outputs, mean, variance = normalise_batch(inputs, tf.ones(4), tf.zeros(4), 1e-3)
    assert (outputs.dtype, mean.dtype, variance.dtype) == (tf.bfloat16, tf.float32, tf.float32)
    assert np.allclose(mean, exact.mean(0), rtol=1e-5)
    assert np.allclose(variance, exact.var(0), rtol=1e-3)
