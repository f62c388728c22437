"""The configuration of `distcnn.run` and `distcnn.session`, which train what a script compiles."""

from dataclasses import dataclass, field
from typing import Literal

from distcnn.config.sections.distribute import DistributeConfig
from distcnn.config.sections.precision import PrecisionConfig
from distcnn.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ScriptPrecisionConfig(PrecisionConfig):
    """Precision, XLA and threads; by default a script computes what it computes without distcnn."""

    policy: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    """Keras dtype policy; variables stay float32. auto: the fastest on this hardware."""
    xla: Literal["auto", "on", "off"] = "auto"
    """Compile the steps with XLA. auto: as the script's own `compile(jit_compile=...)` says."""


@dataclass(frozen=True, kw_only=True)
class ScriptConfig:
    """How a user's own Keras script runs."""

    seed: int = 21
    """Seed of Python, NumPy, TensorFlow and Keras before the script's first line. Seeds that the
    script sets replace it."""
    output: Literal["chief", "all"] = "chief"
    """chief: only rank 0 writes to standard output. all: every rank does."""
    fast_path: Literal["auto", "off"] = "auto"
    """auto: models whose train_step is Keras' own compute in their fast form, with fewer passes
    over memory; dropout draws other random numbers there. off: they compute as Keras does."""
    batch: Literal["global", "per_worker"] = "global"
    """global: the script's batch size is that of all workers together. per_worker: it is each
    worker's own, so that a step has more rows and an epoch fewer steps."""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """Scale the script's learning rate to the larger batch of per_worker. linear: times the number
    of workers, for SGD. sqrt: times its square root, for Adam."""
    input: Literal["whole", "shard"] = "whole"
    """whole: every worker reads whole batches and takes its rows. shard: where a `tf.data` pipeline
    allows it, each worker computes `Dataset.map` only for its own rows."""
    virtual_workers: int | None = None
    """Divide every batch into this many shards, each with its own batch normalisation and dropout,
    and add what they compute in a fixed order, so that the weights are the same to the last bit for
    any number of workers that divides it. Default: one shard per worker."""
    resume: str | None = None
    """Directory for checkpoints of what `fit` trains. If it is missing or empty, a new run saves
    there; otherwise the same script with the same arguments goes on where it was stopped."""
    checkpoint_every_steps: int = 0
    """Steps between checkpoints inside an epoch, besides those at the end of each epoch and when a
    signal stops the run; 0: none."""
    checkpoint_every_minutes: float = 0.0
    """Minutes of training between checkpoints inside an epoch, about; 0: none."""
    checkpoint_signal: Literal["SIGUSR1", "SIGUSR2"] = "SIGUSR1"
    """The signal that asks a run with `resume` to save and stop, besides SIGTERM and Ctrl-C."""
    checkpoint_notice: str | None = None
    """A shell command that ends with exit code 0 when this host is about to be taken away, such as
    one that asks a cloud's metadata. Each host runs it every five seconds; the run then saves and
    stops, as on a signal."""
    distribute: DistributeConfig = field(default_factory=DistributeConfig)
    """Devices and processes of the run."""
    precision: ScriptPrecisionConfig = field(default_factory=ScriptPrecisionConfig)
    """Precision, XLA and threads."""

    def __post_init__(self) -> None:
        """Validates the numbers and their combination."""
        if self.lr_scaling != "none" and self.batch == "global":
            raise UsageError(
                f"lr_scaling is {self.lr_scaling}, but batch is global, which does not grow with "
                "the workers; add --batch per_worker, or drop --lr_scaling"
            )
        self._require_fit_for_virtual_workers()
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed is {self.seed}; expected 0 <= seed < 2**32")
        if self.resume == "":
            raise UsageError("resume is empty; expected a directory")
        if self.checkpoint_every_steps < 0:
            raise UsageError(
                f"checkpoint_every_steps is {self.checkpoint_every_steps}; expected at least 0"
            )
        if self.checkpoint_every_minutes < 0:
            raise UsageError(
                f"checkpoint_every_minutes is {self.checkpoint_every_minutes}; expected at least 0"
            )
        for name in ("checkpoint_every_steps", "checkpoint_every_minutes", "checkpoint_notice"):
            if getattr(self, name) and self.resume is None:
                raise UsageError(f"{name} needs a directory for the checkpoints; add --resume DIR")
        if self.checkpoint_signal != "SIGUSR1" and self.resume is None:
            raise UsageError(
                f"checkpoint_signal is {self.checkpoint_signal}, but nothing is saved on a signal "
                "without a directory for checkpoints; add --resume DIR"
            )

    def _require_fit_for_virtual_workers(self) -> None:
        if self.virtual_workers is None:
            return
        virtual, distribute = f"virtual_workers is {self.virtual_workers}", self.distribute
        if not 1 <= self.virtual_workers <= 1024:
            raise UsageError(f"{virtual}; expected 1 to 1024")
        if self.batch == "per_worker":
            raise UsageError(
                f"{virtual}, but batch is per_worker, which grows with the workers; drop --batch"
            )
        if distribute.sync_batchnorm:
            raise UsageError(
                f"{virtual}, but distribute.sync_batchnorm normalises over all shards at once; "
                "drop --distribute.sync_batchnorm"
            )
        if distribute.compression != "none":
            raise UsageError(
                f"{virtual}, but distribute.compression {distribute.compression} rounds what "
                "travels between workers; drop --distribute.compression"
            )
