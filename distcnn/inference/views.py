"""Test-time augmentation: averages the outputs for several views of each image."""

from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf


@dataclass(frozen=True)
class Views:
    """The views of an image that its outputs are averaged over.

    Attributes:
        flip: Whether to add the mirror image of each view.
        shift: Pixels by which the image is also moved, towards the upper left and towards the lower
            right, with the pixels at its edge repeated; 0 for none. The two count as much together
            as the image where it was (Jordan 2024, arXiv:2404.00498, section 3.5).
    """

    flip: bool = False
    shift: int = 0

    def mean(self, classify: Callable[[tf.Tensor], tf.Tensor], images: tf.Tensor) -> tf.Tensor:
        """Returns the weighted mean of the outputs for all views of each image.

        Args:
            classify: Maps images to outputs of shape `(batch, classes)`.
            images: Tensor of shape `(batch, height, width, channels)`.

        Returns:
            Tensor of shape `(batch, classes)`.
        """
        weighted = [(1.0, images)]
        if self.shift:
            moved = _shifted(images, self.shift)
            weighted = [(0.5, images), *((0.25, each) for each in moved)]
        if self.flip:
            mirrored = [(weight, tf.reverse(each, [2])) for weight, each in weighted]
            weighted = [(weight / 2, each) for weight, each in [*weighted, *mirrored]]
        if len(weighted) == 1:
            return classify(images)
        outputs = tf.split(classify(tf.concat([each for _, each in weighted], 0)), len(weighted))
        return tf.add_n([weight * out for (weight, _), out in zip(weighted, outputs, strict=True)])


def _shifted(images: tf.Tensor, pixels: int) -> list[tf.Tensor]:
    """Returns images moved towards the upper left, and towards the lower right."""
    edge = images
    for axis in (1, 2):
        first, last = (tf.gather(edge, [place], axis=axis) for place in (0, edge.shape[axis] - 1))
        edge = tf.concat([*[first] * pixels, edge, *[last] * pixels], axis)
    height, width = images.shape[1:3]
    return [edge[:, start : start + height, start : start + width] for start in (2 * pixels, 0)]
