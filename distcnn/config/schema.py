"""The configuration of a run: one frozen dataclass per section, with its validation.

Nothing here imports TensorFlow, so that `--help` is instant. The docstring under each field is the
help text of its flag.
"""

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from distcnn.config.recipe_names import LoadedRecipe, recipe_names
from distcnn.errors import UsageError


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


def _require_at_least(section: str, instance: object, minimum: float, *names: str) -> None:
    for name in names:
        value = getattr(instance, name)
        if value is not None:
            expected = f"at least {minimum:g}"
            _require(value >= minimum, f"{section}.{name} is {value}; expected {expected}")


def _require_at_most(section: str, instance: object, maximum: int, *names: str) -> None:
    for name in names:
        value = getattr(instance, name)
        if value is not None:
            _require(value <= maximum, f"{section}.{name} is {value}; expected at most {maximum}")


def _require_finite(section: str, instance: Any) -> None:
    """Refuses NaN and infinity, which comparisons with bounds let pass."""
    for each in dataclasses.fields(instance):
        value = getattr(instance, each.name)
        values = value if isinstance(value, list) else [value]
        for number in values:
            finite = not isinstance(number, float) or math.isfinite(number)
            _require(finite, f"{section}.{each.name} is {value}; expected a finite number")


def _require_fraction(section: str, instance: object, *names: str) -> None:
    for name in names:
        value = getattr(instance, name)
        _require(0 <= value < 1, f"{section}.{name} is {value}; expected 0 <= value < 1")


WHOLE_KEYS = ("model.args", "data.augment.extra")
"""Keys with a mapping as their value."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation of the training images; 0 or false disables an augmentation.

    On the command line, `--data.augment flip,crop` enables these two at their usual strengths and
    disables all others; `--data.augment none` disables all.
    """

    flip: bool = False
    """Flip each image horizontally with probability 0.5."""
    crop: int = 0
    """Pad each side with this many zero pixels, then crop at random to the original size."""
    color: float = 0.0
    """Scale brightness, contrast and saturation by random factors from [1 - color, 1 + color]."""
    randaugment: int = 0
    """RandAugment (Cubuk et al. 2019): number of random operations per image."""
    randaugment_magnitude: float = 0.5
    """Strength of the RandAugment operations, from 0 to 1."""
    cutout: int = 0
    """Cutout (DeVries and Taylor 2017): grey out one square with sides of this many pixels."""
    mixup: float = 0.0
    """mixup (Zhang et al. 2018): blend pairs of images with weights from Beta(mixup, mixup)."""
    cutmix: float = 0.0
    """CutMix (Yun et al. 2019): replace a box in each image by that of another one; the fraction of
    the area that is kept is drawn from Beta(cutmix, cutmix)."""
    label_smoothing: float = 0.0
    """Fraction of the target spread evenly over all classes (Szegedy et al. 2016)."""
    extra: dict[str, float] = field(default_factory=dict)
    """Further augmentations, applied last, as a mapping from names to strengths. Name your own as
    package.module:function; it is called with (images, labels, strength, random)."""

    def __post_init__(self) -> None:
        """Validates the strengths."""
        _require_finite("data.augment", self)
        _require_at_most("data.augment", self, 100, "randaugment")
        _require_at_most("data.augment", self, 4096, "crop", "cutout")
        names = ("crop", "color", "randaugment", "cutout", "mixup", "cutmix")
        _require_at_least("data.augment", self, 0, *names)
        _require_fraction("data.augment", self, "label_smoothing")
        magnitude = self.randaugment_magnitude
        _require(
            0 <= magnitude <= 1,
            f"data.augment.randaugment_magnitude is {magnitude}; expected 0 <= value <= 1",
        )


AUGMENT_PRESETS: dict[str, dict[str, Any]] = {
    "flip": {"flip": True},
    "crop": {"crop": 4},
    "color": {"color": 0.2},
    "randaugment": {"randaugment": 2},
    "cutout": {"cutout": 8},
    "mixup": {"mixup": 0.2},
    "cutmix": {"cutmix": 1.0},
    "label_smoothing": {"label_smoothing": 0.1},
}
"""Usual strength of each augmentation, for the short form `--data.augment NAME,NAME`."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Data set and input pipeline."""

    name: str = "cifar10"
    """Data set. digits needs no download; folder and tfrecord read your images from data.dir."""
    dir: str | None = None
    """Folder of the data set. folder: DIR/train/<class>/*.jpg and DIR/test/<class>/*.jpg.
    tfrecord: shards written by `distcnn.records`. cifar10, cifar100: the batches or the
    archive. Default: download them."""
    image_size: int | None = None
    """Resize images to squares with sides of this many pixels, without keeping the aspect ratio.
    Default: the model's fixed input size, else 32 for digits and folder, else the stored size."""
    pixels: Literal["auto", "unit", "signed", "byte"] = "auto"
    """Range of the pixel values fed to the model: unit [0, 1], signed [-1, 1] or byte [0, 255].
    auto: what the model's first layers expect (byte if it rescales them itself), else unit."""
    validation: Literal["split", "test", "none"] = "split"
    """Images to validate on. split: the data set's own val images, else a stratified split of the
    training images. test: the test images. none: no validation."""
    validation_split: float = 0.1
    """Fraction of the training images of every class that data.validation=split holds out."""
    cache: Literal["auto", "memory", "disk", "none"] = "auto"
    """Where to cache decoded images: in memory, in a file in the user's cache folder, or nowhere,
    which decodes them in every epoch. auto: the first of these with enough space."""
    on_error: Literal["fail", "skip"] = "fail"
    """What to do with images that cannot be decoded: stop and name them, or skip them."""
    verify: Literal["stat", "bytes"] = "stat"
    """How a resumed run and the cache on disk recognise the image files of folder. stat: names,
    sizes and modification times. bytes: names and contents, which reads every file at each start.
    The other data sets are always recognised by their contents."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation of the training images; 0 or false disables an augmentation."""
    synthetic_examples: int = 10_000
    """Training images of the data set synthetic (32x32x3, 10 classes), which is for benchmarks."""

    def __post_init__(self) -> None:
        """Validates the values and their combinations."""
        _require_finite("data", self)
        _require_at_most("data", self, 8192, "image_size")
        _require_at_least("data", self, 1, "image_size", "synthetic_examples")
        _require_fraction("data", self, "validation_split")
        _require(
            self.validation != "split" or self.validation_split > 0,
            "data.validation is split, but data.validation_split is 0; use --data.validation none",
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Classifier."""

    name: str = "article"
    """Built-in model. article: the CIFAR-10 CNN with 2,264,458 parameters. compact: a residual CNN
    with about a million, for short runs."""
    factory: str | None = None
    """Your own model, as package.module:function; replaces model.name. The function is called with
    model.args, and with `input_shape` and `num_classes` if it accepts them; it returns a
    keras.Model."""
    args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the model function, as a mapping."""
    output: Literal["auto", "probabilities", "logits"] = "auto"
    """What the model outputs. auto: probabilities if the rows of its output for a few images sum to
    1, else logits."""

    def __post_init__(self) -> None:
        """Validates the form of the factory."""
        pattern = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"
        _require(
            self.factory is None or re.fullmatch(pattern, self.factory) is not None,
            f"model.factory is {self.factory!r}; expected package.module:function",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Training length, batch sizes and execution."""

    epochs: int = 25
    """Passes over the training images."""
    batch_size: int = 64
    """Images per worker and forward pass; the global batch grows with the number of workers. A
    worker is a replica: with mirrored and multi_worker, a process has one per device."""
    global_batch_size: int | None = None
    """Images per step over all workers; replaces train.batch_size, and makes the result independent
    of the number of workers. Default: derived from train.batch_size."""
    accumulation_steps: int = 1
    """Forward passes per worker and step; their gradients are summed before they are reduced."""
    eval_batch_size: int = 512
    """Images per step of evaluation and prediction; does not affect the results."""
    test_flip: bool = False
    """Average the outputs for each image and its mirror image in validation, test, evaluate and
    predict; takes twice as long."""
    fast_path: Literal["auto", "on", "off"] = "auto"
    """Compute the model in fewer passes over memory: fused normalisation, cheap random bits for
    dropout, fused optimizer updates. auto: off if XLA compiles the step, since XLA fuses by
    itself; else on."""
    steps_per_execution: int = 1
    """Training steps per call into TensorFlow; more than 1 saves Python overhead in small
    models."""
    seed: int = 21
    """Seed of the initial weights, the order of the images, augmentation and dropout."""
    early_stopping: int = 0
    """Stop after this many epochs without a lower validation loss; 0 disables early stopping."""
    callbacks: list[str] = field(default_factory=list)
    """Your own Keras callbacks, each as package.module:name, created without arguments."""

    def __post_init__(self) -> None:
        """Validates the sizes and counts."""
        _require_at_most("train", self, 2**32 - 1, "seed")
        sizes = (
            "epochs",
            "batch_size",
            "global_batch_size",
            "accumulation_steps",
            "eval_batch_size",
        )
        _require_at_least("train", self, 1, *sizes, "steps_per_execution")
        _require_at_least("train", self, 0, "seed", "early_stopping")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer and learning rate."""

    name: str = "adam"
    """Optimizer. adamw: Adam with decoupled weight decay. sgd: with Nesterov momentum. lars (You et
    al. 2017), lamb (You et al. 2020): for large batches."""
    lr: float = 1e-3
    """Base learning rate, for a global batch of optimizer.base_batch_size images."""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """Scale the learning rate by global batch / base batch (linear, Goyal et al. 2017) or by the
    square root of this ratio (sqrt)."""
    base_batch_size: int = 64
    """Global batch size that optimizer.lr was tuned for."""
    schedule: str = "constant"
    """Learning rate after the warm-up. cosine: decays to final_lr_factor. one_cycle: rises over
    the first 30 % of the run, then decays like cosine. step: multiplied by step_factor at each of
    step_epochs."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up to the scaled learning rate, from the base rate if that is lower
    (Goyal et al. 2017), else from zero."""
    step_epochs: list[float] = field(default_factory=list)
    """Epochs after which schedule=step lowers the learning rate."""
    step_factor: float = 0.1
    """Factor on the learning rate at each of step_epochs."""
    final_lr_factor: float = 0.0
    """Final learning rate of cosine and one_cycle, as a fraction of the scaled rate."""
    momentum: float = 0.9
    """Momentum of sgd and lars; 0 disables it."""
    weight_decay: float = 0.0
    """Weight decay of adamw, sgd (both decoupled), lars and lamb; biases and normalisation weights
    are excluded."""
    clip_norm: float = 0.0
    """Clip the gradients to this global norm; 0 disables clipping."""
    ema: float = 0.0
    """Decay per step of an exponential moving average of the weights, which is evaluated and saved
    in place of the weights; 0 disables it."""

    def __post_init__(self) -> None:
        """Validates the values and their combinations."""
        _require_finite("optimizer", self)
        _require(self.lr > 0, f"optimizer.lr is {self.lr}; expected a value above 0")
        names = ("warmup_epochs", "final_lr_factor", "weight_decay", "clip_norm", "step_factor")
        _require_at_least("optimizer", self, 0, *names)
        _require_at_least("optimizer", self, 1, "base_batch_size")
        _require_fraction("optimizer", self, "momentum", "ema")
        _require(
            (self.schedule == "step") == bool(self.step_epochs),
            f"optimizer.schedule is {self.schedule} with step_epochs {self.step_epochs}; the "
            "schedule step needs --optimizer.step_epochs, and no other schedule accepts it",
        )
        _require(
            self.weight_decay == 0 or self.name != "adam",
            "optimizer.weight_decay is set, but adam has none; use --optimizer.name adamw",
        )
        _require(
            self.schedule != "one_cycle" or self.warmup_epochs == 0,
            "optimizer.schedule one_cycle has its own warm-up; drop --optimizer.warmup_epochs",
        )


@dataclass(frozen=True, kw_only=True)
class DistributeConfig:
    """Devices and processes of the run."""

    strategy: str = "auto"
    """one_device: the first GPU, else the CPU. mirrored: all GPUs of this process. multi_worker:
    all GPUs of several processes, over TensorFlow's collectives. horovod: one GPU per process.
    auto: the one that fits the processes that were started and the available GPUs."""
    devices: int | None = None
    """Number of devices per process for mirrored and multi_worker, each of them a worker: GPUs, or,
    for mirrored on a machine without a GPU, logical CPU devices. Default: all GPUs, else one
    CPU."""
    sync_batchnorm: bool = False
    """Let batch normalisation use the statistics of all workers instead of each worker's own."""
    compression: Literal["none", "fp16"] = "none"
    """fp16: send gradients as float16. Only for horovod; turns shared memory off."""
    shared_memory: Literal["auto", "off"] = "auto"
    """Reduce gradients through shared memory instead of Horovod's sockets. auto: for up to 4
    processes of horovod, all on the CPUs of one Linux host, without compression."""
    port: int | None = None
    """First port of the run, if the launcher sets none. Default: derived from the job."""

    def __post_init__(self) -> None:
        """Validates the number of devices and the port."""
        _require_at_most("distribute", self, 1024, "devices")
        _require_at_least("distribute", self, 1, "devices", "port")
        _require(
            self.port is None or self.port < 65_000,
            f"distribute.port is {self.port}; expected a value below 65000",
        )


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """Precision, XLA and threads."""

    policy: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = "auto"
    """Keras dtype policy; variables stay float32. auto: the fastest on this hardware."""
    xla: Literal["auto", "on", "off"] = "auto"
    """Compile the training step with XLA. auto: on for GPUs, off for CPUs, where it is many times
    slower."""
    tf32: bool = True
    """Allow TensorFloat-32 in float32 matrix products and convolutions on recent GPUs."""
    deterministic: bool = False
    """Use only deterministic kernels: repeated runs on GPUs are bit-identical, but slower."""
    threads: int | None = None
    """Threads per operation. Default: one per core."""

    def __post_init__(self) -> None:
        """Validates the number of threads."""
        _require_at_most("precision", self, 1024, "threads")
        _require_at_least("precision", self, 1, "threads")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Checkpoints and resuming."""

    resume: str = "auto"
    """auto: resume from the newest checkpoint in the run directory. never: start a new run. PATH, a
    run directory or a checkpoint: start a new run from its state."""
    every_epochs: int = 1
    """Epochs between checkpoints."""
    keep: int = 2
    """Number of recent checkpoints to keep, besides the best one."""

    def __post_init__(self) -> None:
        """Validates the counts."""
        _require_at_least("checkpoint", self, 1, "every_epochs", "keep")


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Metrics, TensorBoard and progress display."""

    every_steps: int = 50
    """Steps between rows of metrics.jsonl and between points in TensorBoard."""
    tensorboard: bool = True
    """Write event files for TensorBoard."""
    images: bool = True
    """Write images for TensorBoard: a training batch, filters, feature maps and mistakes."""
    profile: str | None = None
    """Steps to profile for TensorBoard, as FIRST,LAST. Default: no profile."""
    progress: Literal["auto", "live", "lines", "none"] = "auto"
    """Progress display: a live bar, plain lines, or none. auto: live on a terminal, else lines."""

    def __post_init__(self) -> None:
        """Validates the interval and the range of profiled steps."""
        _require_at_least("logging", self, 1, "every_steps")
        if self.profile is not None:
            match = re.fullmatch(r"(\d+),(\d+)", self.profile)
            _require(
                match is not None and 0 < int(match[1]) <= int(match[2]),
                f"logging.profile is {self.profile!r}; expected FIRST,LAST with 1 <= FIRST <= LAST",
            )


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of a run."""

    recipe: str = "custom"
    """Recipe to start from, a built-in name or a YAML file; the other flags override its values."""
    out: str | None = None
    """Run directory. Default: runs/RECIPE, or the next free runs/RECIPE-N."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data set and input pipeline."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Classifier."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Training length, batch sizes and execution."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer and learning rate."""
    distribute: DistributeConfig = field(default_factory=DistributeConfig)
    """Devices and processes of the run."""
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    """Precision, XLA and threads."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints and resuming."""
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    """Metrics, TensorBoard and progress display."""

    def __post_init__(self) -> None:
        """Validates combinations across sections, and that a built-in recipe was really loaded."""
        _require(
            isinstance(self.recipe, LoadedRecipe) or self.recipe not in recipe_names(),
            f"recipe is {self.recipe!r}, but Config(...) does not load a recipe; use "
            f"distcnn.load_config({self.recipe!r}, ...), or choose another label",
        )
        _require(
            self.train.early_stopping == 0 or self.data.validation != "none",
            "train.early_stopping needs validation; drop --data.validation none",
        )
        _require(
            self.logging.profile is None or self.logging.tensorboard,
            "logging.profile needs TensorBoard; drop --logging.tensorboard false",
        )

    def to_yaml(self) -> str:
        """Returns the configuration as YAML that `--recipe FILE.yaml` can load."""
        values = dataclasses.asdict(self) | {"recipe": str(self.recipe)}
        return yaml.safe_dump(values, sort_keys=False)
