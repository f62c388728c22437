"""The section `train`."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from distcnn.config.sections.bounds import require, require_at_least, require_at_most
from distcnn.config.sections.phase import Phase


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Training length, batch sizes and execution."""

    epochs: int = 25
    """Passes over the training images."""
    phases: list[dict[str, Any]] = field(default_factory=list)
    """Train some layers first, then more: '[{"train": "head", "epochs": 3, "learning_rate": 1e-3},
    {"train": "all", "epochs": 10, "learning_rate": 1e-4}]'. train is head, all, or last N layers
    (default: all); learning_rate takes the place of optimizer.lr; freeze_batchnorm keeps batch
    normalisation frozen. Each phase has its own warm-up and schedule. Replaces train.epochs."""
    batch_size: int = 64
    """Images per worker and forward pass; the global batch grows with the number of workers. A
    worker is a replica: with mirrored and multi_worker, a process has one per device."""
    global_batch_size: int | None = None
    """Images per step over all workers; replaces train.batch_size, and makes the result independent
    of the number of workers. Default: derived from train.batch_size."""
    accumulation_steps: int = 1
    """Forward passes per worker and step; their gradients are summed before they are reduced."""
    virtual_workers: int | None = None
    """Divide every batch into this many shards, each with its own batch normalisation and dropout,
    and add what they compute in a fixed order, so that the weights are the same to the last bit for
    any number of workers that divides it. A worker computes several shards; one thread per
    operation unless precision.threads is set. Default: one shard per worker."""
    eval_batch_size: int = 512
    """Images per step of evaluation and prediction; does not affect the results, except for their
    last bits."""
    test_flip: bool = False
    """Average the outputs for each image and its mirror image in validation, test, evaluate and
    predict; takes twice as long."""
    test_shift: int = 0
    """Average the outputs also for each image moved by this many pixels towards the upper left and
    the lower right; takes three times as long."""
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
        require_at_most("train", self, 2**32 - 1, "seed")
        sizes = (
            "epochs",
            "batch_size",
            "global_batch_size",
            "accumulation_steps",
            "virtual_workers",
            "eval_batch_size",
        )
        require_at_least("train", self, 1, *sizes, "steps_per_execution")
        require_at_least("train", self, 0, "seed", "early_stopping", "test_shift")
        require_at_most("train", self, 16, "test_shift")
        require_at_most("train", self, 1024, "virtual_workers")
        require(
            self.virtual_workers is None or self.accumulation_steps == 1,
            f"train.accumulation_steps is {self.accumulation_steps}, but train.virtual_workers "
            f"{self.virtual_workers} already divides the batch; drop --train.accumulation_steps",
        )
        if self.phases:
            self._add_up_phases()

    @property
    def parsed_phases(self) -> list[Phase]:
        """The phases; empty if the run has none."""
        return [Phase.of(phase) for phase in self.phases]

    def _add_up_phases(self) -> None:
        """Completes the phases, and sets the epochs to their sum."""
        phases = self.parsed_phases
        given = self.epochs
        object.__setattr__(self, "phases", [asdict(phase) for phase in phases])
        object.__setattr__(self, "epochs", sum(phase.epochs for phase in phases))
        if given != type(self).epochs:  # the default, which nobody has asked for
            require_fitting_epochs(given, self)


def require_fitting_epochs(given: int, train: TrainConfig) -> None:
    """Checks a number of epochs that was asked for against the phases, if there are any."""
    require(
        given == train.epochs,
        f"train.epochs is {given}, but the epochs of train.phases add up to {train.epochs}; drop "
        "--train.epochs, or change --train.phases",
    )
