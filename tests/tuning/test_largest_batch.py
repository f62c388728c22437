"""The search for the largest batch, and the commands that use real processes."""

import pytest

from distcnn.tuning.largest_batch import Fit, fast_enough, find_largest, largest


def machine(holds, images=10**6):
    """A machine whose memory holds a number of images, and whose speed saturates at 64."""
    return lambda size: Fit(min(size, 64) * 10.0, size, images) if size <= holds else None


@pytest.mark.parametrize(
    ("holds", "low", "sizes", "found"),
    [
        (1000, 16, [16, 32, 64, 128, 256, 512, 1024, 768, 896, 960], 960),
        (16, 16, [16, 32, 24, 20, 18], 16),
        (17, 16, [16, 32, 24, 20, 18], 16),
        (9, 16, [16, 8, 12, 10], 8),
        (1, 16, [16, 8, 4, 2], None),
        (2, 2, [2, 4, 3], 2),
    ],
)
def test_sizes_are_doubled_then_bisected(holds, low, sizes, found):
    tried = find_largest(machine(holds), low, None, 3)
    assert list(tried) == sizes
    assert largest(tried) == found
    assert [size for size, fit in tried.items() if fit is None] == [s for s in sizes if s > holds]


def test_no_size_exceeds_the_images_or_the_bound():
    assert list(find_largest(machine(10**9, images=200), 64, None, 3)) == [64, 128, 200]
    assert list(find_largest(machine(10**9, images=200), 64, 128, 3)) == [64, 128]
    assert list(find_largest(machine(10**9, images=200), 64, 64, 3)) == [64]


def test_the_smallest_size_at_nearly_full_speed_is_enough():
    assert fast_enough(find_largest(machine(1000), 16, None, 3)) == 64
    assert fast_enough({16: None}) is None
