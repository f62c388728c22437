"""The configuration of a run: one frozen dataclass per section, with its validation.

Nothing here imports TensorFlow, so that `--help` is instant. The docstring under each field is the
help text of its flag. The sections are in `distcnn.config.sections`.
"""

import dataclasses
from dataclasses import dataclass, field

import yaml

from distcnn.config.recipe_names import LoadedRecipe, recipe_names
from distcnn.config.sections.augment import AugmentConfig
from distcnn.config.sections.bounds import require
from distcnn.config.sections.checkpoint import CheckpointConfig
from distcnn.config.sections.data import DataConfig
from distcnn.config.sections.distribute import DistributeConfig
from distcnn.config.sections.logging import LoggingConfig
from distcnn.config.sections.model import ModelConfig
from distcnn.config.sections.optimizer import OptimizerConfig
from distcnn.config.sections.precision import PrecisionConfig
from distcnn.config.sections.train import TrainConfig

WHOLE_KEYS = ("model.args", "data.augment.extra")
"""Keys with a mapping as their value."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of a run."""

    recipe: str = "custom"
    """Recipe to start from, a built-in name or a YAML file; the other flags override its values."""
    out: str | None = None
    """Run directory. Default: runs/RECIPE, or the next free runs/RECIPE-N."""
    init_from: str | None = None
    """Finished run, or model.keras, from which the weights of all layers that fit are taken at the
    start; the head is a new one if the classes differ. Its epochs and optimizer are not continued:
    for that, see checkpoint.resume."""
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
        require(
            isinstance(self.recipe, LoadedRecipe) or self.recipe not in recipe_names(),
            f"recipe is {self.recipe!r}, but Config(...) does not load a recipe; use "
            f"distcnn.load_config({self.recipe!r}, ...), or choose another label",
        )
        require(
            self.train.early_stopping == 0 or self.data.validation != "none",
            "train.early_stopping needs validation; drop --data.validation none",
        )
        require(
            self.checkpoint.mirror is None or self.out is not None,
            f"checkpoint.mirror is {self.checkpoint.mirror}, which needs the same run directory at "
            "each start; add --out DIR",
        )
        if self.init_from is not None or self.train.phases:
            self._require_fit_for_fine_tuning()
        if self.data.factory is not None:
            self._require_fit_for_own_data()
        if self.train.virtual_workers is not None:
            self._require_fit_for_virtual_workers()
        require(
            self.logging.profile is None or self.logging.tensorboard,
            "logging.profile needs TensorBoard; drop --logging.tensorboard false",
        )

    @property
    def virtual_workers(self) -> int | None:
        """Number of virtual workers, if there are any, as in `ScriptConfig`."""
        return self.train.virtual_workers

    def _require_fit_for_virtual_workers(self) -> None:
        """Checks that nothing depends on which worker computes a shard."""
        virtual = f"train.virtual_workers is {self.train.virtual_workers}"
        require(
            not self.distribute.sync_batchnorm,
            f"{virtual}, but distribute.sync_batchnorm normalises over all shards at once; add "
            "--distribute.sync_batchnorm false, and each shard uses its own images",
        )
        require(
            self.distribute.compression == "none",
            f"{virtual}, but distribute.compression {self.distribute.compression} rounds what "
            "travels between workers; drop --distribute.compression",
        )

    def _require_fit_for_fine_tuning(self) -> None:
        """Checks that the weights to begin with, and the phases, are the only ones."""
        resume = self.checkpoint.other_run
        key = "init_from" if self.init_from is not None else "train.phases"
        require(
            resume is None,
            f"{key} is set, but checkpoint.resume {resume} takes weights, optimizer and epochs "
            "from another run; drop one of them (--init_from takes weights alone)",
        )
        require(
            self.init_from is None or self.model.weights == "none",
            f"init_from is {self.init_from}, but model.weights {self.model.weights} loads others; "
            "drop one of them",
        )
        require(
            self.init_from is None or not self.model.whitening,
            f"init_from is {self.init_from}, but model.whitening sets the first convolution; add "
            "--model.whitening false",
        )
        for phase in self.train.parsed_phases:
            require(
                self.optimizer.warmup_epochs <= phase.epochs,
                f"optimizer.warmup_epochs is {self.optimizer.warmup_epochs:g}, but a phase has "
                f"{phase.epochs} epochs; lower it, since each phase warms up by itself",
            )

    def _require_fit_for_own_data(self) -> None:
        """Checks that nothing is asked for that only data sets of images can do."""
        require(
            self.model.factory is not None,
            f"data.factory is {self.data.factory}, but the built-in models take images of a data "
            "set; add --model.factory, a function that returns your compiled model",
        )
        needs_images = {
            "init_from": self.init_from is not None,
            "train.phases": bool(self.train.phases),
            "optimizer.layer_decay": self.optimizer.layer_decay != 1,
            "data.dir": self.data.dir is not None,
            "data.labels": self.data.labels is not None,
            "data.augment": self.data.augment != AugmentConfig(),
            "data.resize": self.data.resize != "stretch",
            "data.crop_fraction": self.data.crop_fraction != 1,
            "train.accumulation_steps": self.train.accumulation_steps > 1,
            "train.virtual_workers": self.train.virtual_workers is not None,
            "train.test_flip": self.train.test_flip,
            "train.test_shift": self.train.test_shift > 0,
            "model.whitening": self.model.whitening,
            "optimizer.ema": self.optimizer.ema > 0,
            "logging.profile": self.logging.profile is not None,
            "checkpoint.resume": self.checkpoint.other_run is not None,
        }
        for key, is_set in needs_images.items():
            require(
                not is_set,
                f"{key} does not apply to the data of data.factory; drop it, or choose a --recipe "
                "without it",
            )

    def to_yaml(self) -> str:
        """Returns the configuration as YAML that `--recipe FILE.yaml` can load."""
        values = dataclasses.asdict(self) | {"recipe": str(self.recipe)}
        return yaml.safe_dump(values, sort_keys=False)
