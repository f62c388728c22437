"""The run's images that exports are calibrated on and compared with."""

import logging
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from distcnn.config import DataConfig
from distcnn.data.dataset import load_split
from distcnn.data.encoded import EncodedSplit
from distcnn.data.framing import Shape, evaluation_framing
from distcnn.data.split import Source, Split
from distcnn.data.verify import decode_all, explain
from distcnn.errors import DataError
from distcnn.inference.evaluation import open_for

log = logging.getLogger("distcnn")


@dataclass(frozen=True)
class Images:
    """Some images of a run.

    Attributes:
        split: Which split they are of.
        pixels: uint8 of shape `(count, height, width, channels)`, as the model takes them.
        files: The bytes of image files with the same pixels before they are resized, an object
            array of shape `(count,)`; PNG files where the data set holds pixels.
        labels: True labels, as `Split.labels`.
    """

    split: str
    pixels: np.ndarray
    files: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)


class RunImages:
    """Chooses images of a run's data set at random, the same ones at each call.

    Args:
        data: The data set.
        seed: Seed of the validation and test images that were drawn.
        shape: `(height, width, channels)` of the model's input.
        classes: Class names that the model knows; those of labels may be fewer.

    Attributes:
        classes: Class names of the data set.
        task: What its labels are.
    """

    def __init__(
        self, data: DataConfig, seed: int, shape: Shape, classes: tuple[str, ...] = ()
    ) -> None:
        self._data, self._seed, self._shape = data, seed, shape
        self._source: Source = open_for(data, seed, classes)
        self.classes = self._source.classes
        self.task = self._source.task

    def to_compare(self, count: int) -> Images:
        """Returns test images, or validation images where there are none, or training images."""
        if self._source.test is not None:
            return self._take("test", self._source.test, count)
        if self._data.validation == "split":
            held_out = load_split(self._data, self._source, self._shape, self._seed, "validation")
            return self._take("validation", held_out, count)
        return self._take("train", self._training(), count)

    def to_calibrate(self, count: int) -> Images:
        """Returns training images."""
        return self._take("train", self._training(), count)

    def _training(self) -> Split:
        split = self._source.train or self._source.test
        assert split is not None
        return split

    def _take(self, name: str, split: Split, count: int) -> Images:
        order = np.random.default_rng(0).permutation(len(split))[:count]
        chosen = split.subset(np.sort(order))
        resized = chosen.resized(self._shape, evaluation_framing(self._data))
        indices = tf.range(len(chosen), dtype=tf.int64)
        if isinstance(resized, EncodedSplit):
            pixels = np.zeros((len(chosen), *self._shape), np.uint8)
            bad = decode_all(resized, pixels.__setitem__)
            for description in explain(resized, bad):
                log.warning("warning: skipped %s", description)
            files = resized.read(indices).numpy()
        else:
            bad, pixels = [], resized.gather(indices).numpy()
            encoded = map(tf.io.encode_png, chosen.gather(indices))
            files = np.array([file.numpy() for file in encoded], object)
        good = np.delete(np.arange(len(chosen)), bad)
        if not len(good):
            raise DataError(f"none of the {name} images can be decoded; expected at least one")
        return Images(name, pixels[good], files[good], np.asarray(chosen.labels)[good])
