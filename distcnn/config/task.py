"""What the labels of images are."""

from typing import Literal

Task = Literal["classification", "multilabel", "regression"]
"""One class for each image, any number of classes, or numbers."""
