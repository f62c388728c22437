"""The setup of a run: everything it is built from; immutable."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from distcnn.config import Config
from distcnn.data.dataset import Dataset
from distcnn.data.pipeline import (
    BatchSharding,
    EpochSampler,
    image_group,
    sharded_evaluation_dataset,
    training_dataset,
)
from distcnn.data.pixels import PixelRange
from distcnn.data.split import Split
from distcnn.distribute.base import Backend
from distcnn.distribute.context import DistributedContext
from distcnn.engine.step import StepEngine
from distcnn.models.interface import ModelInterface
from distcnn.optim.ema import WeightEMA
from distcnn.optim.optimizers import plain_optimizer
from distcnn.runtime.precision import Precision
from distcnn.training.evaluation_step import EvaluationStep
from distcnn.training.objective import Objective
from distcnn.training.state import TrainState
from distcnn.training.step import StepOptions, TrainingStep

if TYPE_CHECKING:
    from distcnn.training.phases import Phases


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """The parts of a run, consistent with each other and the same in every process.

    Built by `distcnn.training.build.build_setup`.

    Attributes:
        config: The configuration of the run.
        context: This process as a member of the run.
        precision: Number formats and compilation of the step.
        fast_path: Whether the step uses the model's fast form.
        fast_path_reason: Why it does or does not.
        dataset: Training, validation and test images.
        sampler: The order of the training images.
        sharding: How each batch is divided among replicas.
        model: The classifier.
        interface: What it takes and returns.
        objective: What the classifier is compiled with.
        engine: Computes the steps on each replica.
        peak_rate: The peak learning rate, scaled for the global batch.
        first_optimizer: Updates the weights; in a run of phases, in the first one.
        phases: Which layers are trained in which epochs, or None if it is all of them.
        ema: Moving average of the weights, or None.
        training: The training step.
        evaluation: The evaluation step.
        state: Everything that training changes.
    """

    config: Config
    context: DistributedContext
    precision: Precision
    fast_path: bool
    fast_path_reason: str
    dataset: Dataset
    sampler: EpochSampler
    sharding: BatchSharding
    model: keras.Model
    interface: ModelInterface
    objective: Objective
    engine: StepEngine
    peak_rate: float
    first_optimizer: keras.optimizers.Optimizer
    phases: "Phases | None"
    ema: WeightEMA | None
    training: TrainingStep
    evaluation: EvaluationStep
    state: TrainState

    @property
    def backend(self) -> Backend:
        """The backend that runs the replicas."""
        return self.context.backend

    @property
    def optimizer(self) -> keras.optimizers.Optimizer:
        """What updates the weights now."""
        return self.phases.optimizer if self.phases else self.first_optimizer

    @property
    def total_steps(self) -> int:
        """Number of training steps in the whole run."""
        return self.config.train.epochs * self.sampler.steps_per_epoch

    def new_training_step(self) -> TrainingStep:
        """Returns another training step for this model and optimizer; its first run traces it."""
        return TrainingStep(
            self.model,
            self.engine,
            self.objective,
            step_options(self.config, self.interface.pixels, self.sampler, self.sharding),
            ema=self.ema,
        )

    def training_batches(self, first_step: int) -> tf.data.Dataset:
        """Returns this process's shards of all batches from a global step to the end of the run."""
        return training_dataset(
            self.dataset.train,
            len(self.dataset.classes),
            self.sampler,
            self.config.data.augment,
            self.sharding,
            reduced_decoding=self.config.data.reduced_decoding,
            first_step=first_step,
            last_step=self.total_steps,
        )

    def evaluate(self, split: Split) -> dict[str, Any]:
        """Returns the loss and the metrics over the images of a split, each counted once."""
        size, classes = self.config.train.eval_batch_size, len(self.dataset.classes)
        batches, steps = sharded_evaluation_dataset(split, classes, size, self.sharding)
        return self.evaluation.evaluate(batches, steps)

    def validate(self) -> dict[str, Any]:
        """Returns the loss and the metrics over the validation images; empty if there are none."""
        if self.dataset.validation is None:
            return {}
        with self.training.evaluated_weights():
            return self.evaluate(self.dataset.validation)

    def compile_for_saving(self) -> None:
        """Compiles the classifier at a constant rate, so that plain Keras can load and train it.

        A model that its owner has compiled stays as it is.
        """
        if self.phases is not None:
            self.phases.release()
        if self.objective.is_own:
            return
        with self.backend.scope():
            optimizer = plain_optimizer(self.config.optimizer, self.peak_rate, self.model)
            self.model.compile(
                optimizer, auto_scale_loss=False, **self.objective.plain_compile_arguments()
            )

    def _kind_of_output(self) -> str:
        if self.objective.task == "regression":
            return "numbers"
        return "logits" if self.interface.logits else "probabilities"

    def resolved(self) -> dict[str, Any]:
        """Returns the resolved settings (what `auto` became), with the reasons."""
        config, backend, precision = self.config, self.backend, self.precision
        hosts = self.context.cluster.hosts or ()
        return {
            "model": config.model.factory or config.model.name,
            "data": config.data.source,
            "pixels": self.interface.pixels,
            "pixels_reason": self.interface.pixels_reason,
            "task": self.dataset.task,
            "output": self._kind_of_output(),
            "output_reason": self.interface.output_reason,
            "strategy": backend.name,
            "strategy_reason": self.context.strategy_reason,
            "transport": backend.transport,
            "world_size": backend.replicas,
            "processes": backend.size,
            "hosts": sorted(set(hosts), key=hosts.index),
            "device": self.context.hardware.gpu or "CPU",
            "precision": precision.policy,
            "precision_reason": precision.policy_reason,
            "xla": precision.xla,
            "xla_reason": precision.xla_reason,
            "fast_path": self.fast_path,
            "fast_path_reason": self.fast_path_reason,
            "per_worker_batch_size": self.sampler.global_batch_size
            / (backend.replicas * config.train.accumulation_steps),
            "accumulation_steps": config.train.accumulation_steps,
            "virtual_workers": config.train.virtual_workers,
            "global_batch_size": self.sampler.global_batch_size,
            "base_learning_rate": self.peak_rate if self.objective.is_own else config.optimizer.lr,
            "learning_rate": self.peak_rate,
            "phases": self.phases.described() if self.phases else [],
            "steps_per_epoch": self.sampler.steps_per_epoch,
            "steps": self.total_steps,
            "parameters": self.model.count_params(),
            "images_hash": self.dataset.content_hash,
            "labels": self.dataset.reading,
            "class_weights": self.objective.class_weights,
            "classes": list(self.dataset.classes),
            "division": self.dataset.division,
            "training_images": len(self.dataset.train),
            "validation_images": len(self.dataset.validation or ()),
            "test_images": len(self.dataset.test or ()),
            "validated_on_test": self.dataset.validation is self.dataset.test is not None,
        }


def step_options(
    config: Config, pixels: PixelRange, sampler: EpochSampler, sharding: BatchSharding
) -> StepOptions:
    """Returns the options of a run's training step."""
    last = sampler.examples % sampler.global_batch_size or sampler.global_batch_size
    groups = math.ceil(last / image_group(config.data.augment))
    return StepOptions(
        pixels=pixels,
        steps_per_epoch=sampler.steps_per_epoch,
        steps_per_execution=config.train.steps_per_execution,
        shards_per_replica=sharding.accumulation_steps,
        may_be_empty=groups < sharding.count,
    )
