"""Evaluation of a classifier: accuracy, loss and scores by class."""

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from distcnn.config import DataConfig
from distcnn.config.recipe import data_of_run
from distcnn.data.class_subset import with_all_classes
from distcnn.data.dataset import load_split
from distcnn.data.pipeline import evaluation_dataset
from distcnn.data.sources import open_source
from distcnn.data.split import Source, Split
from distcnn.errors import DataError, UsageError
from distcnn.inference.classifier import load_classifier
from distcnn.inference.label_evaluation import LabelEvaluation
from distcnn.inference.number_evaluation import NumberEvaluation
from distcnn.storage.model_metadata import division_of, preprocessing_of

log = logging.getLogger("distcnn")

SplitName = Literal["test", "validation", "train"]
"""Which images of a data set."""

_TINY = float(np.finfo(np.float32).tiny)  # least probability, so that its logarithm is finite


@dataclass(frozen=True)
class Evaluation:
    """The result of a classifier on a set of images.

    Attributes:
        labels: True classes, int64 of shape `(images,)`.
        probabilities: float32 of shape `(images, classes)`.
        classes: Class names.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    classes: tuple[str, ...]

    @property
    def predictions(self) -> np.ndarray:
        """The most probable class of each image, int64 of shape `(images,)`."""
        return self.probabilities.argmax(axis=1)

    @property
    def accuracy(self) -> float:
        """Fraction of the images whose most probable class is the true one."""
        return float(np.mean(self.predictions == self.labels))

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats, as Keras computes it from the logits."""
        likelihood = self.probabilities[np.arange(len(self.labels)), self.labels]
        return float(np.mean(np.log(1 / np.maximum(likelihood.astype(np.float64), _TINY))))

    def confusion(self) -> np.ndarray:
        """Returns the counts by true class (row) and predicted class (column)."""
        from sklearn.metrics import confusion_matrix  # imported late, since it takes a second

        return confusion_matrix(self.labels, self.predictions, labels=np.arange(len(self.classes)))

    def by_class(self) -> list[dict[str, object]]:
        """Returns precision, recall, F1 and the number of images of each class."""
        from sklearn.metrics import precision_recall_fscore_support  # likewise

        scores = precision_recall_fscore_support(
            self.labels,
            self.predictions,
            labels=np.arange(len(self.classes)),
            zero_division=0.0,
        )
        return [
            {
                "class": name,
                "precision": float(precision),
                "recall": float(recall),
                "f1": float(f1),
                "images": int(support),
            }
            for name, precision, recall, f1, support in zip(self.classes, *scores, strict=True)
        ]

    def top_k(self, count: int) -> float:
        """Returns the fraction of the images whose true class is among the most probable ones.

        Args:
            count: How many of the most probable classes count. Of equally probable ones the first
                counts before the others, as in `predictions`.
        """
        ours = self.probabilities[np.arange(len(self.labels)), self.labels][:, np.newaxis]
        earlier = np.arange(len(self.classes)) < self.labels[:, np.newaxis]
        before = (self.probabilities > ours) | ((self.probabilities == ours) & earlier)
        return float(np.mean(before.sum(axis=1) < count))

    def worst(self, count: int) -> np.ndarray:
        """Returns the indices of up to `count` mistakes, the most confident first."""
        wrong = np.flatnonzero(self.predictions != self.labels)
        confidence = self.probabilities[wrong].max(axis=1)
        return wrong[np.argsort(-confidence, kind="stable")[:count]]


def evaluate_split(
    predict: Callable[[tf.data.Dataset], np.ndarray],
    split: Split,
    classes: tuple[str, ...],
    *,
    logits: bool,
    batch_size: int,
) -> Evaluation:
    """Evaluates a classifier of stored pixels on every image of a split, once each.

    Images that cannot be decoded, where these are skipped, do not count.

    Args:
        predict: Maps a data set of batches of uint8 images to the outputs for all of them, of shape
            `(images, classes)`.
        split: The images.
        classes: Class names.
        logits: Whether the classifier returns logits.
        batch_size: Images per step.
    """
    batches = evaluation_dataset(split, len(classes), batch_size)
    outputs = predict(batches.map(lambda images, _: images))
    probabilities = tf.nn.softmax(outputs).numpy() if logits else outputs
    good = np.delete(np.arange(len(split)), split.unreadable())
    probabilities = np.asarray(probabilities, np.float32)[good]
    return Evaluation(split.labels[good], probabilities, classes)


AnyEvaluation = Evaluation | LabelEvaluation | NumberEvaluation
"""The result for images with one class, with several labels, or with numbers."""


def evaluate(
    model: str | Path,
    *,
    split: SplitName = "test",
    data: DataConfig | None = None,
    batch_size: int = 512,
    trust: bool = False,
) -> Any:
    """Evaluates a trained classifier on labelled images.

    Args:
        model: Run directory, or a `.keras` file.
        split: Which images.
        data: The data set. Default: the one that the run was trained on. Images are resized as in
            that run, unless `data` sets `resize` or `crop_fraction`.
        batch_size: Images per step.
        trust: Whether to run code that the model needs: the module of the run's `model.factory`,
            and Python lambdas in the file.

    Returns:
        An `Evaluation`, with accuracy, loss, confusion matrix and scores by class; or for images
        with several labels a `LabelEvaluation`, with numbers a `NumberEvaluation`.

    Raises:
        UsageError: If `data` is missing for a model that belongs to no run.
        DistcnnError: If the model cannot be loaded, or needs code that is not trusted.
        DataError: If the images cannot be used, or have other classes than the model.
    """
    path = Path(model)
    of_run = data_of_run(path)
    if data is None and of_run is None:
        raise UsageError(
            f"{path} belongs to no run, so its images are not known; pass "
            "data=DataConfig(name=..., dir=...)"
        )
    _, seed = of_run or division_of(path)
    data = _as_trained(path, data) if data else of_run[0]  # type: ignore[index]
    return evaluate_model(path, data, seed, split, batch_size, trust=trust)


def _as_trained(path: Path, data: DataConfig) -> DataConfig:
    """Returns a data section with the run's preprocessing, unless it asks for its own."""
    if data.resize != DataConfig.resize or data.crop_fraction != DataConfig.crop_fraction:
        return data
    return dataclasses.replace(data, **preprocessing_of(path))


def evaluate_model(
    path: Path,
    data: DataConfig,
    seed: int,
    split: SplitName,
    batch_size: int,
    *,
    trust: bool = False,
) -> AnyEvaluation:
    """Evaluates the classifier of a run directory or a `.keras` file; see `evaluate`.

    Args:
        path: Run directory, or a `.keras` file.
        data: The data set.
        seed: Seed of the validation and test images that were drawn.
        split: Which images.
        batch_size: Images per step.
        trust: Whether to run code that the model needs.
    """
    return Evaluator(path, data, seed, batch_size, trust=trust).evaluate(split)


class Evaluator:
    """A trained classifier with the data set that it is evaluated on.

    Args:
        path: Run directory, or a `.keras` file.
        data: The data set.
        seed: Seed of the validation and test images that were drawn.
        batch_size: Images per step.
        trust: Whether to run code that the model needs.

    Attributes:
        classifier: The classifier.
        data: The data set's section of the configuration.
        source: The opened data set.

    Raises:
        DistcnnError: If the model cannot be loaded, or needs code that is not trusted.
        DataError: If the images cannot be used, or have other classes than the model.
    """

    def __init__(
        self, path: Path, data: DataConfig, seed: int, batch_size: int, *, trust: bool = False
    ) -> None:
        self.classifier = load_classifier(path, trust=trust)
        self.data = data
        self._seed, self._batch_size = seed, batch_size
        known = self.classifier.metadata
        self.source = open_for(data, seed, known.classes)
        if self.source.division:
            log.info("%s", self.source.division)
        require_same_task(self.source.task, known.task)
        outputs = self.classifier.model.output_shape[-1]
        _require_same_classes(self.source.classes, known.classes, outputs)
        self._model = self.classifier.on_stored_pixels()
        self._splits: dict[SplitName, Split] = {}

    def split(self, name: SplitName) -> Split:
        """Returns a split with its images as the model takes them."""
        if name not in self._splits:
            shape = self.classifier.image_shape
            self._splits[name] = load_split(self.data, self.source, shape, self._seed, name)
        return self._splits[name]

    def evaluate(self, name: SplitName) -> AnyEvaluation:
        """Evaluates the classifier on every image of a split that can be decoded, once each."""
        images, classes = self.split(name), self.source.classes
        if self.source.task == "classification":
            return evaluate_split(
                self._predict, images, classes, logits=False, batch_size=self._batch_size
            )
        batches = evaluation_dataset(images, len(classes), self._batch_size)
        values = np.asarray(self._predict(batches.map(lambda images, _: images)), np.float32)
        good = self.evaluated(name)
        result = LabelEvaluation if self.source.task == "multilabel" else NumberEvaluation
        return result(images.labels[good], values[good], classes)

    def evaluated(self, name: SplitName) -> np.ndarray:
        """Returns the indices of the images in a split that its last evaluation counted, int64."""
        split = self.split(name)
        return np.delete(np.arange(len(split)), split.unreadable())

    def _predict(self, batches: tf.data.Dataset) -> np.ndarray:
        found: np.ndarray = self._model.predict(batches, verbose=0)
        bad = np.count_nonzero(~np.isfinite(found).all(axis=1))
        if bad:
            log.warning(
                "warning: %s returns infinity or NaN for %d of %d images, as after a training that "
                "diverged: what it is said to predict for them means nothing",
                self.classifier.path,
                bad,
                len(found),
            )
        return found


def open_for(data: DataConfig, seed: int, classes: tuple[str, ...]) -> Source:
    """Opens a data set for a model, which may know more labels than the images have.

    Args:
        data: The data set.
        seed: Seed of the test images, if they were drawn.
        classes: Class names that the model knows; empty if it knows none.
    """
    source = open_source(data, seed)
    if data.labels and source.task != "regression" and set(source.classes) < set(classes):
        return with_all_classes(source, classes)  # no image of the file has the others
    return source


def require_same_task(found: str, expected: str) -> None:
    """Checks that the labels of the data are what a model was trained for.

    Raises:
        DataError: If they are not.
    """
    if found != expected:
        raise DataError(
            f"the labels of the data are for {found}, but the model was trained for {expected}; "
            "pass other data, or --data.task if the labels are not read as they are meant"
        )


def _require_same_classes(found: tuple[str, ...], expected: tuple[str, ...], outputs: int) -> None:
    if expected and found != expected:
        differing = sorted(set(found) ^ set(expected)) or list(found)
        raise DataError(
            f"the data has the classes {', '.join(found[:10])}, the model was trained on "
            f"{', '.join(expected[:10])}; they differ in {', '.join(differing[:10])}"
        )
    if len(found) != outputs:
        raise DataError(f"the data has {len(found)} classes, but the model has {outputs}")
