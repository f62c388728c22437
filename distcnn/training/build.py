"""Builds the setup of a run from its configuration, in phases."""

import dataclasses
import zlib

import keras
import tensorflow as tf

from distcnn.config import Config
from distcnn.config.recipe import flatten
from distcnn.data.dataset import Dataset, default_image_shape, load_dataset
from distcnn.data.pipeline import BatchSharding, EpochSampler
from distcnn.data.sources import open_source
from distcnn.data.split import Source
from distcnn.distribute.base import Backend, reporting_lost_peers
from distcnn.distribute.consistency import require_identical_settings
from distcnn.distribute.context import DistributedContext
from distcnn.distribute.layers import SynchronisedBatchNorm, decorrelate_seeds
from distcnn.errors import DataError, UsageError
from distcnn.fast import fast_model
from distcnn.models.building import build_model, returns_logits
from distcnn.optim.ema import WeightEMA
from distcnn.optim.optimizers import build_optimizer, learning_rate, scaled_learning_rate
from distcnn.runtime.precision import Precision, resolve_fast_path
from distcnn.training.evaluation_step import EvaluationStep
from distcnn.training.objective import Objective
from distcnn.training.setup import TrainingSetup, step_options
from distcnn.training.state import TrainState
from distcnn.training.step import TrainingStep


def build_setup(config: Config, context: DistributedContext) -> TrainingSetup:
    """Builds everything that a run needs; writes nothing yet.

    Args:
        config: The configuration of the run.
        context: This process as a member of the run.

    Raises:
        DistcnnError: If the data or the model cannot be used, or the processes' settings differ.
    """
    backend = context.backend
    with reporting_lost_peers(backend):
        keras.utils.set_random_seed(config.train.seed)
        source = _open_once_per_host(config, context)
        with backend.scope():
            shape = default_image_shape(config.data, source)
            model = build_model(config.model, shape, len(source.classes))
        dataset = load_dataset(
            config.data,
            source,
            model.input_shape[1:],
            config.train.seed,
            processes=context.cluster.local_size,
        )
        sharding, sampler = _shard_batches(config, backend, len(dataset.train))
        _require_profiled_steps(config, sampler)
        setup = _build_steps(config, context, dataset, sharding, sampler, model)
        _require_same_run(setup)
    return setup


def _open_once_per_host(config: Config, context: DistributedContext) -> Source:
    """Opens the data, first in one process per host, which alone downloads it."""
    is_first = context.cluster.local_rank == 0
    source = open_source(config.data) if is_first else None
    context.backend.barrier()
    return source or open_source(config.data)


def _shard_batches(
    config: Config, backend: Backend, images: int
) -> tuple[BatchSharding, EpochSampler]:
    train = config.train
    sharding = BatchSharding(backend.local_replica_ids, backend.replicas, train.accumulation_steps)
    batch = train.global_batch_size or train.batch_size * sharding.count
    if batch > images:
        raise DataError(
            f"the global batch of {batch} images is larger than the {images} training images; "
            "lower --train.batch_size or --train.global_batch_size"
        )
    if batch < sharding.count:
        raise UsageError(
            f"the global batch of {batch} images is smaller than the {sharding.count} shards that "
            "the workers compute; raise --train.global_batch_size"
        )
    return sharding, EpochSampler(images, batch, train.seed)


def _require_profiled_steps(config: Config, sampler: EpochSampler) -> None:
    profile, steps = config.logging.profile, config.train.epochs * sampler.steps_per_epoch
    if profile and int(profile.split(",")[1]) > steps:
        raise UsageError(
            f"logging.profile is {profile}, but the run has {steps} steps; profile earlier steps"
        )


def _build_steps(
    config: Config,
    context: DistributedContext,
    dataset: Dataset,
    sharding: BatchSharding,
    sampler: EpochSampler,
    model: keras.Model,
) -> TrainingSetup:
    backend = context.backend
    objective = Objective(returns_logits(config.model, model))
    decorrelate_seeds(model, backend)
    sync_batchnorm = SynchronisedBatchNorm(
        model, backend, every_layer=config.distribute.sync_batchnorm
    )
    precision = _precision_of_step(config, context.precision, sync_batchnorm)
    fast_path, fast_path_reason = resolve_fast_path(config.train, xla=precision.xla)
    total_steps = config.train.epochs * sampler.steps_per_epoch
    peak_rate = scaled_learning_rate(config.optimizer, sampler.global_batch_size)
    rate = learning_rate(config.optimizer, peak_rate, sampler.steps_per_epoch, total_steps)
    with backend.scope():
        optimizer = build_optimizer(
            config.optimizer, rate, model, precision.policy, fused=fast_path
        )
        network = fast_model(model, sync_batchnorm) if fast_path else model
        ema = WeightEMA(model, config.optimizer.ema) if config.optimizer.ema else None
        model.compile(optimizer, auto_scale_loss=False, **objective.compile_arguments())
    backend.disable_reduction(optimizer)
    training = TrainingStep(
        model,
        network,
        optimizer,
        backend,
        objective,
        step_options(config, precision, sampler),
        ema=ema,
        sync_batchnorm=sync_batchnorm,
    )
    return TrainingSetup(
        config=config,
        context=context,
        precision=precision,
        fast_path=fast_path,
        fast_path_reason=fast_path_reason,
        dataset=dataset,
        sampler=sampler,
        sharding=sharding,
        model=model,
        network=network,
        objective=objective,
        peak_rate=peak_rate,
        optimizer=optimizer,
        ema=ema,
        sync_batchnorm=sync_batchnorm,
        training=training,
        evaluation=EvaluationStep(
            network, backend, objective, config.data.pixels, test_flip=config.train.test_flip
        ),
        state=TrainState(backend, model, optimizer, training),
    )


def _precision_of_step(
    config: Config, precision: Precision, sync_batchnorm: SynchronisedBatchNorm
) -> Precision:
    """Switches XLA off if the step reduces batch statistics, which XLA cannot compile."""
    if not (sync_batchnorm.layers and precision.xla):
        return precision
    if config.precision.xla == "on":
        raise UsageError(
            "precision.xla is on, but XLA cannot compile the reduction of batch statistics inside "
            "the step; drop --precision.xla on, or synchronised batch normalisation"
        )
    reason = "batch statistics are reduced inside the step"
    return dataclasses.replace(precision, xla=False, xla_reason=reason)


def _require_same_run(setup: TrainingSetup) -> None:
    """Checks that every process has built the same run."""
    dataset = setup.dataset
    splits = {
        "training": dataset.train,
        "validation": dataset.validation,
        "test": dataset.test,
    }
    require_identical_settings(
        setup.backend,
        {
            **flatten(dataclasses.asdict(setup.config)),
            **{f"the number of {name} images": len(s or ()) for name, s in splits.items()},
            **{
                f"the {name} labels (CRC-32)": zlib.crc32(s.labels.tobytes()) if s else 0
                for name, s in splits.items()
            },
            "the classes": dataset.classes,
            "the number of parameters": setup.model.count_params(),
            "the precision": setup.precision.policy,
            "the version of TensorFlow": tf.__version__,
        },
    )
