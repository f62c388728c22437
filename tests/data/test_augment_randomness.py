"""Random numbers of a shard of a global batch."""

import numpy as np
import pytest

from distcnn.data import augment as aug
from tests.data.samples import randomness


def test_streams_are_independent_and_uniform() -> None:
    draws = [randomness(4000).uniform(stream, 2).numpy() for stream in aug.Stream]
    correlation = np.corrcoef(np.concatenate(draws, axis=1).T)
    assert np.abs(correlation - np.eye(2 * len(draws))).max() < 0.07
    for draw in draws:
        assert draw.min() >= 0
        assert draw.max() < 1
        np.testing.assert_allclose(draw.mean(0), 0.5, atol=0.02)


def test_beta_has_the_moments_of_its_distribution() -> None:
    for alpha in (0.2, 1.0, 4.0):
        values = randomness(8000).beta(aug.Stream.MIXUP, alpha).numpy()
        assert values.mean() == pytest.approx(0.5, abs=0.02)
        assert values.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)
    assert np.isfinite(randomness(1000).beta(aug.Stream.MIXUP, 1e-3).numpy()).all()


def test_images_whose_partner_is_in_another_shard_pair_with_themselves() -> None:
    np.testing.assert_array_equal(randomness(5, offset=3, total=12).partner(), [0, 2, 1, 4, 3])
    np.testing.assert_array_equal(randomness(4, offset=3, total=12).partner(), [0, 2, 1, 3])
    np.testing.assert_array_equal(randomness(5).partner(), [1, 0, 3, 2, 4])
