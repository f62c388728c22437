"""Puts a run together: images, model, optimizer and steps, built from its configuration."""

import dataclasses
import zlib
from typing import Any

import keras
import tensorflow as tf

from distcnn.config import Config
from distcnn.config.recipe import flatten
from distcnn.data.dataset import Dataset, default_image_shape, load_dataset
from distcnn.data.pipeline import (
    BatchSharding,
    EpochSampler,
    sharded_evaluation_dataset,
    training_dataset,
)
from distcnn.data.sources import open_source
from distcnn.data.split import Source, Split
from distcnn.distribute import reporting_lost_peers
from distcnn.distribute.consistency import require_identical_settings
from distcnn.distribute.context import DistributedContext
from distcnn.distribute.layers import SynchronisedBatchNorm, decorrelate_seeds
from distcnn.errors import DataError, UsageError
from distcnn.fast import fast_model
from distcnn.models import build_model, returns_logits
from distcnn.optim.ema import WeightEMA
from distcnn.optim.optimizers import (
    build_optimizer,
    learning_rate,
    plain_optimizer,
    scaled_learning_rate,
)
from distcnn.runtime.precision import resolve_fast_path
from distcnn.training.state import TrainState
from distcnn.training.step import EvaluationStep, TrainingStep


class TrainingSetup:
    """The parts of a run, which fit each other and are the same in every process.

    Args:
        config: What the run is.
        context: Where it computes.

    Attributes:
        config: What the run is.
        context: Where it computes.
        backend: Over which devices it is spread.
        precision: Number formats and compilation.
        model: The classifier.
        network: What computes the classifier's outputs: itself, or its fast form.
        logits: Whether the classifier returns logits.
        dataset: Its images.
        sharding: How a batch is divided.
        sampler: In which order the images come.
        total_steps: Training steps of the whole run.
        peak_rate: The learning rate, scaled for the global batch.
        optimizer: Moves the weights.
        ema: Moving average of the weights, or None.
        training: The training step.
        evaluation: The evaluation step.
        state: All that training changes.

    Raises:
        DistcnnError: If the data or the model cannot be used, or the processes differ.
    """

    def __init__(self, config: Config, context: DistributedContext) -> None:
        self.config = config
        self.context = context
        self.backend = context.backend
        self.precision = context.precision
        with reporting_lost_peers(self.backend):
            keras.utils.set_random_seed(config.train.seed)
            source = self._open_source()
            offered = default_image_shape(config.data, source)
            with self.backend.scope():
                self.model = build_model(config.model, offered, len(source.classes))
            self._load_images(source)
            self._shard_batches()
            self._build_steps()
            self._require_agreement()

    def _open_source(self) -> Source:
        """Opens the data; the first process of each host comes first, and downloads alone."""
        first = self.context.cluster.local_rank == 0
        source = open_source(self.config.data) if first else None
        self.backend.barrier()
        return source or open_source(self.config.data)

    def _load_images(self, source: Source) -> None:
        self.dataset: Dataset = load_dataset(
            self.config.data,
            source,
            self.model.input_shape[1:],
            self.config.train.seed,
            processes=self.context.cluster.local_size,
        )

    def _shard_batches(self) -> None:
        train, backend, images = self.config.train, self.backend, len(self.dataset.train)
        self.sharding = BatchSharding(
            backend.local_replica_ids, backend.replicas, train.accumulation_steps
        )
        batch = train.global_batch_size or train.batch_size * self.sharding.count
        if batch > images:
            raise DataError(
                f"the batch of {batch} images is larger than the {images} training images; lower "
                "--train.batch_size"
            )
        if batch < self.sharding.count:
            raise UsageError(
                f"the global batch of {batch} images is smaller than the {self.sharding.count} "
                "shares that the workers compute; raise --train.global_batch_size"
            )
        self.sampler = EpochSampler(images, batch, train.seed)
        self.total_steps = train.epochs * self.sampler.steps_per_epoch
        profile = self.config.logging.profile
        if profile and int(profile.split(",")[1]) > self.total_steps:
            raise UsageError(
                f"logging.profile is {profile}, but the run has {self.total_steps} steps"
            )

    def _build_steps(self) -> None:
        config, sampler, backend = self.config, self.sampler, self.backend
        self.peak_rate = scaled_learning_rate(config.optimizer, sampler.global_batch_size)
        rate = learning_rate(
            config.optimizer, self.peak_rate, sampler.steps_per_epoch, self.total_steps
        )
        self.logits = returns_logits(config.model, self.model)
        decorrelate_seeds(self.model, backend)
        self._statistics = SynchronisedBatchNorm(
            self.model, backend, every_layer=config.distribute.sync_batchnorm
        )
        if self._statistics.layers and self.precision.xla:
            if config.precision.xla == "on":
                raise UsageError(
                    "precision.xla is on, but batch statistics are reduced inside the step, which "
                    "XLA cannot compile; drop --precision.xla on or synchronised normalisation"
                )
            reason = "batch statistics are reduced inside the step"
            self.precision = dataclasses.replace(self.precision, xla=False, xla_reason=reason)
        self._fast, self._fast_reason = resolve_fast_path(config.train, xla=self.precision.xla)
        ema = config.optimizer.ema
        with backend.scope():
            self.optimizer = build_optimizer(
                config.optimizer, rate, self.model, self.precision.policy, fused=self._fast
            )
            self.network = fast_model(self.model, self._statistics) if self._fast else self.model
            self.ema = WeightEMA(self.model, ema) if ema else None
            self._compile(self.optimizer)
        backend.disable_reduction(self.optimizer)
        self.training = self.new_training_step()
        self.state = TrainState(backend, self.model, self.optimizer, self.training)
        self.evaluation = EvaluationStep(
            self.network,
            backend,
            config.data.pixels,
            logits=self.logits,
            test_flip=config.train.test_flip,
        )

    def new_training_step(self) -> TrainingStep:
        """Returns another step on this model and optimizer, which is traced at its first run."""
        config = self.config
        return TrainingStep(
            self.model,
            self.network,
            self.optimizer,
            self.backend,
            config.data.pixels,
            logits=self.logits,
            steps_per_epoch=self.sampler.steps_per_epoch,
            steps_per_execution=config.train.steps_per_execution,
            accumulation_steps=config.train.accumulation_steps,
            xla=self.precision.xla,
            ema=self.ema,
            statistics=self._statistics,
        )

    def _require_agreement(self) -> None:
        splits = {
            "training": self.dataset.train,
            "validation": self.dataset.validation,
            "test": self.dataset.test,
        }
        require_identical_settings(
            self.backend,
            {
                **flatten(dataclasses.asdict(self.config)),
                **{f"the number of {name} images": len(s or ()) for name, s in splits.items()},
                **{
                    f"the {name} labels (CRC-32)": zlib.crc32(s.labels.tobytes()) if s else 0
                    for name, s in splits.items()
                },
                "the classes": self.dataset.classes,
                "the number of parameters": self.model.count_params(),
                "the precision": self.precision.policy,
                "the version of TensorFlow": tf.__version__,
            },
        )

    def resolved(self) -> dict[str, Any]:
        """Returns what the configuration became: strategy, precision, batch, rate, steps."""
        config, sampler, precision, backend = (
            self.config,
            self.sampler,
            self.precision,
            self.backend,
        )
        hosts = self.context.cluster.hosts or ()
        return {
            "model": config.model.factory or config.model.name,
            "data": config.data.name,
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
            "fast_path": self._fast,
            "fast_path_reason": self._fast_reason,
            "per_worker_batch_size": sampler.global_batch_size / self.sharding.count,
            "accumulation_steps": self.sharding.accumulation_steps,
            "global_batch_size": sampler.global_batch_size,
            "base_learning_rate": config.optimizer.lr,
            "learning_rate": self.peak_rate,
            "steps_per_epoch": sampler.steps_per_epoch,
            "steps": self.total_steps,
            "parameters": self.model.count_params(),
            "training_images": len(self.dataset.train),
            "validation_images": len(self.dataset.validation or ()),
            "test_images": len(self.dataset.test or ()),
        }

    def training_batches(self, first_step: int) -> tf.data.Dataset:
        """Returns this process's shares of the batches from a global step to the run's end."""
        return training_dataset(
            self.dataset.train,
            len(self.dataset.classes),
            self.sampler,
            self.config.data.augment,
            self.sharding,
            first_step=first_step,
            last_step=self.total_steps,
        )

    def evaluate(self, split: Split) -> dict[str, float]:
        """Returns loss and accuracy over images, each counted once on whichever replica it was."""
        size, classes = self.config.train.eval_batch_size, len(self.dataset.classes)
        return self.evaluation.evaluate(
            *sharded_evaluation_dataset(split, classes, size, self.sharding)
        )

    def compile_with_plain_optimizer(self) -> None:
        """Compiles the classifier at a constant rate, so that plain Keras can train it on."""
        with self.backend.scope():
            self._compile(plain_optimizer(self.config.optimizer, self.peak_rate, self.model))

    def _compile(self, optimizer: keras.optimizers.Optimizer) -> None:
        self.model.compile(optimizer, auto_scale_loss=False, **compile_arguments(self.logits))


def compile_arguments(logits: bool) -> dict[str, Any]:
    """Returns the loss and the metric of a classifier with one-hot labels."""
    return {
        "loss": keras.losses.CategoricalCrossentropy(from_logits=logits),
        "metrics": [keras.metrics.CategoricalAccuracy(name="accuracy")],
    }
