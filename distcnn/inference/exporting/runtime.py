"""What the formats have in common."""

from collections.abc import Callable

import numpy as np

Run = Callable[[np.ndarray], np.ndarray]
"""An export, loaded by its runtime: uint8 images `(batch, height, width, channels)`, or the bytes
of files as an object array, to probabilities or numbers, float32 `(batch, classes)`."""
