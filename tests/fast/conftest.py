"""What every test of the fast form begins with."""

from collections.abc import Iterator

import keras
import pytest


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    keras.utils.set_random_seed(5)
    yield
    keras.config.set_dtype_policy("float32")
