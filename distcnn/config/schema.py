"""What a run is: one frozen, documented dataclass a section, and the combinations that are refused.

Nothing here imports TensorFlow, so `--help` answers at once. The docstring under each field is the
text that `--help` shows for its flag.
"""

import dataclasses
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


def _require_fraction(section: str, instance: object, *names: str) -> None:
    for name in names:
        value = getattr(instance, name)
        _require(0 <= value < 1, f"{section}.{name} is {value}; expected 0 <= value < 1")


WHOLE_KEYS = ("model.args", "data.augment.extra")
"""Keys whose value is a mapping."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation of the training images; 0 or false switches a stage off.

    On the command line `--data.augment flip,crop` switches stages on at their usual strengths and
    all others off, `--data.augment none` switches every stage off.
    """

    flip: bool = False
    """Mirror each image left to right with probability one half."""
    crop: int = 0
    """Pad with zeros by this many pixels a side, then cut a window of the old size at random."""
    color: float = 0.0
    """Jitter brightness, contrast and saturation, each by a factor from [1 - color, 1 + color]."""
    randaugment: int = 0
    """RandAugment (Cubuk et al. 2019): this many random operations an image."""
    randaugment_magnitude: float = 0.5
    """Strength of RandAugment's operations, from 0 to 1."""
    cutout: int = 0
    """Cutout (DeVries and Taylor 2017): grey out one square of this side, in pixels."""
    mixup: float = 0.0
    """mixup (Zhang et al. 2018): alpha of the Beta distribution of the mixing weight."""
    cutmix: float = 0.0
    """CutMix (Yun et al. 2019): alpha of the Beta distribution of the area that is replaced."""
    label_smoothing: float = 0.0
    """Fraction of the target that is spread evenly over all classes (Szegedy et al. 2016)."""
    extra: dict[str, float] = field(default_factory=dict)
    """Strengths of further augmentations by name, which are applied last: your own as
    package.module:function (images, labels, strength, random)."""

    def __post_init__(self) -> None:
        """Refuses values that no augmentation could use."""
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
"""The usual strength of each augmentation, for the short form `--data.augment NAME,NAME`."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Images: where they come from and how they are fed."""

    name: str = "cifar10"
    """Data set. digits needs no download; folder and tfrecord are your own images in data.dir."""
    dir: str | None = None
    """Folder of the data set. folder: DIR/train/<class>/*.jpg, DIR/test/<class>/*.jpg.
    tfrecord: shards as `distcnn.records` writes them. cifar: batches or archive (optional)."""
    image_size: int | None = None
    """Side in pixels to which images are resized (stretched). Default: the model's own input, else
    32 for digits and folder, else the stored size."""
    pixels: Literal["auto", "unit", "signed", "byte"] = "auto"
    """Range of the pixels that the model sees: unit [0, 1], signed [-1, 1], byte [0, 255]. auto:
    what the model's first layers expect (byte if it rescales by itself), else unit."""
    validation: Literal["split", "test", "none"] = "split"
    """Validate on a stratified split of the training images (or the set's own val images), on the
    test images, or not at all."""
    validation_split: float = 0.1
    """Share of the training images that validation=split holds out, the same in every class."""
    cache: Literal["auto", "memory", "disk", "none"] = "auto"
    """Where decoded images are kept: in memory, in a file under the user's cache folder, or nowhere
    (decoded anew every epoch). auto takes the first that fits."""
    on_error: Literal["fail", "skip"] = "fail"
    """What to do with images that cannot be decoded: stop and name them, or leave them out."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation of the training images."""
    synthetic_examples: int = 10_000
    """Number of training images of the synthetic set (32x32x3, 10 classes), for benchmarks."""

    def __post_init__(self) -> None:
        """Refuses values and pairs that cannot be fed."""
        _require_at_least("data", self, 1, "image_size", "synthetic_examples")
        _require_fraction("data", self, "validation_split")
        _require(
            self.name not in ("folder", "tfrecord") or self.dir is not None,
            f"data.name {self.name} needs --data.dir DIR, the folder that holds the images",
        )
        _require(
            self.name not in ("digits", "synthetic") or self.dir is None,
            f"data.dir is {self.dir}, but data.name {self.name} reads no folder; did you mean "
            "--data.name folder?",
        )
        _require(
            self.validation != "split" or self.validation_split > 0,
            "data.validation is split, but data.validation_split is 0; use --data.validation none",
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The classifier."""

    name: str = "article"
    """Built-in model. article: the CIFAR-10 CNN of 2,264,458 parameters. compact: a residual CNN of
    about a million, for short runs."""
    factory: str | None = None
    """Your own model, as package.module:function. It is called with those of `input_shape`,
    `num_classes` and model.args that it takes, and returns a keras.Model."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments of the model function."""
    output: Literal["auto", "probabilities", "logits"] = "auto"
    """What the model returns. auto: probabilities if the rows of its output for a few images sum
    to 1, else logits."""

    def __post_init__(self) -> None:
        """Refuses a factory that cannot name a function."""
        pattern = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"
        _require(
            self.factory is None or re.fullmatch(pattern, self.factory) is not None,
            f"model.factory is {self.factory!r}; expected package.module:function",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and in which batches."""

    epochs: int = 25
    """Passes over the training images."""
    batch_size: int = 64
    """Images per worker and forward pass."""
    global_batch_size: int | None = None
    """Images per step over all workers; replaces train.batch_size, and so keeps the result the same
    whatever the number of workers."""
    accumulation_steps: int = 1
    """Forward passes of each worker for one step; their gradients are added up, then reduced."""
    eval_batch_size: int = 512
    """Images per step in evaluation and prediction; does not change any result."""
    test_flip: bool = False
    """Average the outputs for each image and its mirror image whenever images are classified:
    validation, test, evaluate and predict; takes twice as long."""
    fast_path: Literal["auto", "on", "off"] = "auto"
    """Compute the model in fewer passes over memory: fused normalisation, cheap random bits for
    dropout, fused optimizer updates. auto: on, unless XLA compiles the step, which fuses itself."""
    steps_per_execution: int = 1
    """Training steps per call into TensorFlow; more saves Python time for small models."""
    seed: int = 21
    """Seed of the initial weights, the data order, augmentation and dropout."""
    early_stopping: int = 0
    """Stop after this many epochs without a better validation loss; 0 never stops early."""
    callbacks: list[str] = field(default_factory=list)
    """Your own Keras callbacks, each as package.module:name, called without arguments."""

    def __post_init__(self) -> None:
        """Refuses sizes that are not positive."""
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
    """The optimizer and its learning rate."""

    name: str = "adam"
    """Adam, AdamW (decoupled weight decay), SGD with Nesterov momentum; for large batches LARS (You
    et al. 2017) and LAMB (You et al. 2020)."""
    lr: float = 1e-3
    """Base learning rate, for a global batch of optimizer.base_batch_size."""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """Scale the rate by global batch / base batch (linear, Goyal et al. 2017) or by its root."""
    base_batch_size: int = 64
    """Global batch for which optimizer.lr is meant."""
    schedule: str = "constant"
    """Course of the rate after the warm-up: cosine falls to final_lr_factor; one_cycle rises to the
    base rate over the first 30 % and falls again; step multiplies by step_factor."""
    warmup_epochs: float = 0.0
    """Epochs over which the rate rises linearly to the scaled rate: from the base rate if that is
    lower (Goyal et al. 2017), else from zero."""
    step_epochs: list[float] = field(default_factory=list)
    """Epochs at which schedule=step lowers the rate."""
    step_factor: float = 0.1
    """Factor by which schedule=step lowers the rate."""
    final_lr_factor: float = 0.0
    """Share of the scaled rate at which cosine and one_cycle end."""
    momentum: float = 0.9
    """Momentum of sgd (Nesterov) and lars."""
    weight_decay: float = 0.0
    """Weight decay of adamw and sgd (decoupled), lars and lamb; not on biases or normalisation
    weights."""
    clip_norm: float = 0.0
    """Clip the gradients to this global norm; 0 switches clipping off."""
    ema: float = 0.0
    """Decay per step of an exponential moving average of the weights, which is what is then
    evaluated and saved; 0 switches it off."""

    def __post_init__(self) -> None:
        """Refuses rates and pairs that cannot train."""
        _require(self.lr > 0, f"optimizer.lr is {self.lr}; expected a value above 0")
        names = ("warmup_epochs", "final_lr_factor", "weight_decay", "clip_norm", "step_factor")
        _require_at_least("optimizer", self, 0, *names)
        _require_at_least("optimizer", self, 1, "base_batch_size")
        _require_fraction("optimizer", self, "momentum", "ema")
        _require(
            (self.schedule == "step") == bool(self.step_epochs),
            f"optimizer.schedule is {self.schedule} with step_epochs {self.step_epochs}; the "
            "schedule step needs --optimizer.step_epochs, and no other schedule takes it",
        )
        _require(
            self.weight_decay == 0 or self.name != "adam",
            "optimizer.weight_decay is set, but adam has none; use --optimizer.name adamw",
        )
        _require(
            self.schedule != "one_cycle" or self.warmup_epochs == 0,
            "optimizer.schedule one_cycle has a warm-up of its own; drop --optimizer.warmup_epochs",
        )


@dataclass(frozen=True, kw_only=True)
class DistributeConfig:
    """Over which devices the run is spread."""

    strategy: str = "auto"
    """one_device: the first GPU, or the CPU. mirrored: all GPUs of this process. multi_worker: all
    GPUs of several processes, by TensorFlow's collectives. horovod: one GPU a process. auto: the
    one that fits the processes that were started and the GPUs that are there."""
    devices: int | None = None
    """Devices of each process for mirrored and multi_worker: so many of its GPUs, or, for mirrored
    on a machine without, so many logical CPU devices. Default: all GPUs, or one CPU."""
    sync_batchnorm: bool = False
    """Normalise over the images of all workers instead of each worker's own."""
    compression: Literal["none", "fp16"] = "none"
    """Send gradients as float16 (horovod), which goes without shared memory."""
    shared_memory: Literal["auto", "off"] = "auto"
    """Reduce through memory that processes share instead of Horovod's sockets. auto: for up to 4
    processes of horovod, all on the CPUs of one Linux host, without compression."""
    port: int | None = None
    """First port of the run, where the launcher gives none. Default: derived from the job."""

    def __post_init__(self) -> None:
        """Refuses values that no backend can use."""
        _require_at_least("distribute", self, 1, "devices", "port")
        _require(
            self.port is None or self.port < 65_000,
            f"distribute.port is {self.port}; expected a value below 65000",
        )


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """Number formats, compilation and threads."""

    policy: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = "auto"
    """Type of the computation; variables stay float32. auto: what this hardware does fastest."""
    xla: Literal["auto", "on", "off"] = "auto"
    """Compile the step with XLA. auto: on for GPUs, off for CPUs, where it is many times slower."""
    tf32: bool = True
    """Let float32 products on recent GPUs use TensorFloat-32."""
    deterministic: bool = False
    """Use only deterministic kernels: bit-equal repeats on GPUs, at some cost of speed."""
    threads: int | None = None
    """Threads within one operation. Default: one a core."""

    def __post_init__(self) -> None:
        """Refuses a thread count that is not positive."""
        _require_at_least("precision", self, 1, "threads")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Saving and going on."""

    resume: str = "auto"
    """auto goes on from the newest checkpoint in the run directory, never starts anew, a PATH (a
    run directory or a checkpoint) starts a new run from that state."""
    every_epochs: int = 1
    """Epochs between checkpoints."""
    keep: int = 2
    """How many of the newest checkpoints to keep, besides the best one."""

    def __post_init__(self) -> None:
        """Refuses counts that are not positive."""
        _require_at_least("checkpoint", self, 1, "every_epochs", "keep")


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What is shown and recorded while training."""

    every_steps: int = 50
    """Steps between rows of metrics.jsonl and points in TensorBoard."""
    tensorboard: bool = True
    """Write TensorBoard's event files."""
    images: bool = True
    """Show images in TensorBoard: a training batch, filters, feature maps, mistakes."""
    profile: str | None = None
    """Steps to profile for TensorBoard, as FIRST,LAST."""
    progress: Literal["auto", "live", "lines", "none"] = "auto"
    """Live bar, plain lines, or nothing; auto: live on a terminal, else lines."""

    def __post_init__(self) -> None:
        """Refuses an interval or a profile range that is empty."""
        _require_at_least("logging", self, 1, "every_steps")
        if self.profile is not None:
            match = re.fullmatch(r"(\d+),(\d+)", self.profile)
            _require(
                match is not None and 0 < int(match[1]) <= int(match[2]),
                f"logging.profile is {self.profile!r}; expected FIRST,LAST with 1 <= FIRST <= LAST",
            )


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run."""

    recipe: str = "custom"
    """Recipe that the other keys start from: a built-in name or a YAML file."""
    out: str | None = None
    """Run directory. Default: runs/RECIPE, or the next free runs/RECIPE-N."""
    data: DataConfig = field(default_factory=DataConfig)
    """Images: where they come from and how they are fed."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The classifier."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How long and in which batches."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimizer and its learning rate."""
    distribute: DistributeConfig = field(default_factory=DistributeConfig)
    """Over which devices the run is spread."""
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    """Number formats, compilation and threads."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving and going on."""
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    """What is shown and recorded while training."""

    def __post_init__(self) -> None:
        """Refuses combinations across sections, and a label that is not true."""
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
            "logging.profile is for TensorBoard; drop --logging.tensorboard false",
        )

    def to_yaml(self) -> str:
        """Returns the configuration as YAML that `--recipe FILE.yaml` reads again."""
        values = dataclasses.asdict(self) | {"recipe": str(self.recipe)}
        return yaml.safe_dump(values, sort_keys=False)
