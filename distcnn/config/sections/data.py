"""The section `data`."""

from dataclasses import dataclass, field
from typing import Literal

from distcnn.config.sections.augment import AugmentConfig
from distcnn.config.sections.bounds import (
    require,
    require_at_least,
    require_at_most,
    require_finite,
    require_fraction,
    require_import_path,
)

DEFAULT_TEST_FRACTION = 0.1
"""Fraction of the test images in data that is not divided at all."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Data set and input pipeline."""

    name: str = "cifar10"
    """Data set. digits needs no download; folder and tfrecord read your images from data.dir."""
    factory: str | None = None
    """Your own data, as package.module:function; replaces data.name and needs a model.factory whose
    model is compiled. The function returns a dictionary of train and, where there are, validation
    and test: each arrays as (x, y) or (x, y, sample_weight), a batched tf.data.Dataset or a
    keras.utils.PyDataset."""
    steps_per_epoch: int | None = None
    """Batches in an epoch of data.factory's training data, for data that do not end."""
    dir: str | None = None
    """Folder of the data set. folder: DIR/train/<class>/*.jpg and DIR/test/<class>/*.jpg, or
    DIR/<class>/*.jpg, of which data.test_split holds out test images. tfrecord: shards written by
    `distcnn.records`. tfds: NAME/VERSION as TensorFlow Datasets prepares it. cifar10, cifar100: the
    batches or the archive. Default: download them. May be an address, such as s3://BUCKET/DIR or
    gs://BUCKET/DIR: its files are copied to this host's cache."""
    labels: str | None = None
    """CSV or JSON-lines file with the path and the label of each image, and optionally its split
    (train, val, test); replaces data.name. Paths are relative to data.dir, by default the folder of
    the file. May be an address. Without splits, data.test_split holds out test images."""
    task: Literal["auto", "classification", "multilabel", "regression"] = "auto"
    """What the labels of data.labels are: one class, any number of classes, or numbers. auto:
    multilabel for lists, and for cells divided by "|" or ";"; regression for numbers that are not
    all whole; else classification."""
    path_column: str | None = None
    """Column of data.labels with the paths. Default: found by its name, such as path or file."""
    label_column: str | None = None
    """Column of data.labels with the labels; or several, divided by commas: 0 and 1 for each class,
    or numbers. Default: found by its name, such as label or class."""
    split_column: str | None = None
    """Column of data.labels with the splits. Default: found by its name, such as split."""
    classes: str | None = None
    """Use these classes only, as NAME,NAME; images of others are left out. Default: all."""
    class_weights: Literal["none", "balanced"] = "none"
    """Weight of each class in the training loss. balanced: images / (classes * images of the
    class), so that every class counts as much in an epoch; the mean weight of an image is 1."""
    oversample: Literal["none", "balanced"] = "none"
    """Show images of smaller classes several times an epoch. balanced: every class as often as the
    largest one; which images are shown once more depends on train.seed and the epoch only."""
    image_size: int | None = None
    """Resize images to squares with sides of this many pixels; data.resize says how. Default: the
    model's fixed input size, else 32 for digits and folder, else the stored size."""
    resize: Literal["stretch", "crop", "pad"] = "stretch"
    """How images of another aspect ratio become squares. stretch: without keeping the ratio. crop:
    scale the shorter side, cut off the rest. pad: scale the longer side, add zero pixels."""
    crop_fraction: float = 1.0
    """Evaluation, testing and prediction use the centre of each image: this fraction of each side.
    0.875 is usual with data.augment.random_resized_crop."""
    reduced_decoding: bool = True
    """Decode large JPEG files at 1/2, 1/4 or 1/8 of their size where data.resize is crop or pad, or
    for random_resized_crop, if that is still as large as needed. Changes pixels a little."""
    pixels: Literal["auto", "unit", "signed", "byte"] = "auto"
    """Range of the pixel values fed to the model: unit [0, 1], signed [-1, 1] or byte [0, 255].
    auto: what the model's first layers expect (byte if it rescales them itself), else unit."""
    validation: Literal["split", "test", "none"] = "split"
    """Images to validate on. split: the data set's own val images, else a stratified split of the
    training images. test: the test images. none: no validation."""
    validation_split: float = 0.1
    """Fraction of the training images of every class that data.validation=split holds out."""
    test_split: float | None = None
    """Fraction of the images of every class to hold out for testing, where the data has no test
    images of its own; 1 for all of them. Which ones depends on train.seed and the files' names
    only. Default: 0.1 for images that are not divided at all (DIR/<class>/*.jpg, or data.labels
    without splits), else 0."""
    cache: Literal["auto", "memory", "disk", "none"] = "auto"
    """Where to cache decoded images: in memory, in a file in the user's cache folder, or nowhere,
    which decodes them in every epoch. auto: the first of these with enough space. Where images are
    checked when they are read, their files are cached as they are, and are decoded in every epoch;
    auto then means memory or none."""
    on_error: Literal["fail", "skip"] = "fail"
    """What to do with images that cannot be decoded: stop and name them, or skip them."""
    check: Literal["auto", "start", "reading"] = "auto"
    """When to find images that cannot be decoded. start: before the first step. reading: when
    they are read; training starts at once, and the next good image replaces a skipped one. auto:
    reading with data.augment.random_resized_crop, else start."""
    verify: Literal["stat", "bytes"] = "stat"
    """How a resumed run and the cache on disk recognise the image files of folder. stat: names,
    sizes and modification times. bytes: names and contents, which reads every file at each start.
    The other data sets are always recognised by their contents."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation of the training images; 0 or false disables an augmentation."""
    synthetic_examples: int = 10_000
    """Training images of the data set synthetic (32x32x3, 10 classes), which is for benchmarks."""

    @property
    def chosen_classes(self) -> tuple[str, ...] | None:
        """The names in `classes`, or None for all classes."""
        if self.classes is None:
            return None
        return tuple(name.strip() for name in self.classes.split(",") if name.strip())

    @property
    def source(self) -> str:
        """The name of the data set: `data.name`, unless `data.labels` replaces it."""
        return "labels" if self.labels is not None else self.name

    @property
    def place(self) -> str:
        """Where the images come from, for messages: `data.labels`, `data.dir` or `data.name`."""
        return self.labels or self.dir or self.name

    def test_fraction(self, *, is_undivided: bool) -> float:
        """Returns the fraction of the images to hold out for testing: `test_split` resolved.

        Args:
            is_undivided: Whether the data has no splits of its own.
        """
        if self.test_split is not None:
            return self.test_split
        return DEFAULT_TEST_FRACTION if is_undivided else 0.0

    @property
    def checks_when_reading(self) -> bool:
        """Whether bad images are found when they are read, not before the first step."""
        return self.check == "reading" or (
            self.check == "auto" and self.augment.random_resized_crop
        )

    def __post_init__(self) -> None:
        """Validates the values and their combinations."""
        require_finite("data", self)
        require_import_path("data.factory", self.factory)
        require(
            self.steps_per_epoch is None or self.factory is not None,
            "data.steps_per_epoch is for the data of data.factory; drop it, or train.epochs says "
            "how long a run takes",
        )
        self._require_labels_for_columns()
        require_at_most("data", self, 8192, "image_size")
        require_at_least("data", self, 1, "image_size", "synthetic_examples", "steps_per_epoch")
        require_fraction("data", self, "validation_split")
        require(
            self.test_split is None or 0 <= self.test_split <= 1,
            f"data.test_split is {self.test_split}; expected 0 <= value <= 1",
        )
        require(
            0 < self.crop_fraction <= 1,
            f"data.crop_fraction is {self.crop_fraction}; expected 0 < value <= 1",
        )
        require(
            self.resize != "pad" or self.crop_fraction == 1,
            f"data.crop_fraction is {self.crop_fraction}, but data.resize pad keeps whole images; "
            "use --data.resize crop",
        )
        require(
            self.cache != "disk"
            or not (self.checks_when_reading or self.augment.random_resized_crop),
            "data.cache is disk, which is for decoded images, but these are decoded when they are "
            "read; use --data.cache memory or none, or write them to a local disk by "
            "distcnn.records",
        )
        require(
            self.validation != "split" or self.validation_split > 0,
            "data.validation is split, but data.validation_split is 0; use --data.validation none",
        )

    def _require_labels_for_columns(self) -> None:
        """Checks that what only concerns a file of labels is not set without one."""
        require(
            self.labels is not None or self.name != "labels",
            "data.name is labels, which needs --data.labels FILE, a CSV or JSON-lines file",
        )
        columns = ("path_column", "label_column", "split_column")
        given = [key for key in columns if getattr(self, key) is not None]
        given += ["task"] if self.task != "auto" else []
        require(
            self.labels is not None or not given,
            f"data.{given[0] if given else ''} is set, but there is no file of labels; add "
            "--data.labels FILE",
        )
