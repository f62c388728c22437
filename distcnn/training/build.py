"""Builds the setup of a run from its configuration, in phases."""

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from distcnn.config import Config, OptimizerConfig
from distcnn.config.recipe import flatten
from distcnn.data.dataset import Dataset, default_image_shape, load_dataset
from distcnn.data.pipeline import BalancedSampler, BatchSharding, EpochSampler
from distcnn.data.pixels import scale_pixels
from distcnn.data.sources import open_source
from distcnn.data.split import Source
from distcnn.distribute.base import Backend, reporting_lost_peers
from distcnn.distribute.consistency import require_identical_settings
from distcnn.distribute.context import DistributedContext
from distcnn.engine.fast import fuse_optimizer
from distcnn.engine.optimizers import optimizers_of, require_supported
from distcnn.engine.step import StepEngine
from distcnn.engine.virtual_workers import VirtualWorkers
from distcnn.errors import DataError, UsageError
from distcnn.inference.views import Views
from distcnn.models.building import build_model
from distcnn.models.compiled import is_compiled_by_owner
from distcnn.models.depth import rate_factors
from distcnn.models.head import Head
from distcnn.models.interface import ModelInterface, inspect_model
from distcnn.models.whitening import WHITENED_IMAGES, whiten_first_convolution
from distcnn.optim.ema import WeightEMA
from distcnn.optim.optimizers import build_optimizer, learning_rate, scaled_learning_rate
from distcnn.runtime.keras_steps import build_symbolically, has_own_train_step
from distcnn.runtime.precision import Precision, resolve_fast_path
from distcnn.training.evaluation_step import EvaluationStep
from distcnn.training.objective import Objective
from distcnn.training.own_compile import own_objective, peak_rate
from distcnn.training.setup import TrainingSetup, step_options
from distcnn.training.state import TrainState
from distcnn.training.step import TrainingStep

if TYPE_CHECKING:
    from distcnn.training.phases import Phases

_INSPECTED_IMAGES = 4


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
        _require_fitting_task(config, source)
        with backend.scope():
            shape = default_image_shape(config.data, source)
            labels = source.train.labels if source.train else None
            head = Head.of(source.task, labels, source.classes)
            model = build_model(config.model, shape, len(source.classes), head)
        dataset = load_dataset(
            config.data,
            source,
            model.input_shape[1:],
            config.train.seed,
            processes=context.cluster.local_size,
        )
        sharding, sampler = _shard_batches(config, backend, dataset)
        _require_profiled_steps(config, sampler)
        interface = _inspect(config, backend, dataset, model)
        if config.model.whitening:
            _whiten(backend, dataset, model, interface)
        setup = _build_steps(config, context, dataset, sharding, sampler, model, interface, head)
        _require_same_run(setup)
    return setup


def _open_once_per_host(config: Config, context: DistributedContext) -> Source:
    """Opens the data, first in one process per host, which alone downloads it."""
    is_first = context.cluster.local_rank == 0
    seed = config.train.seed
    source = open_source(config.data, seed) if is_first else None
    context.backend.barrier()
    return source or open_source(config.data, seed)


def _require_fitting_task(config: Config, source: Source) -> None:
    """Checks that what supposes one class for each image is not asked for without."""
    augment = config.data.augment
    for key in ("class_weights", "oversample"):
        if source.task != "classification" and getattr(config.data, key) != "none":
            raise UsageError(
                f"data.{key} is {getattr(config.data, key)}, which is for one class in each image, "
                f"but the labels are for {source.task}; drop --data.{key}"
            )
    mixing = [key for key in ("mixup", "cutmix", "label_smoothing") if getattr(augment, key)]
    if source.task != "classification" and mixing:
        raise UsageError(
            f"data.augment.{mixing[0]} is for one class in each image, but the labels are for "
            f"{source.task}; pass --data.augment.{mixing[0]} 0"
        )


def _inspect(
    config: Config, backend: Backend, dataset: Dataset, model: keras.Model
) -> ModelInterface:
    """Lets the chief find out what the model takes and returns, for all processes."""

    def inspect() -> dict[str, Any]:
        few = np.linspace(0, len(dataset.train) - 1, _INSPECTED_IMAGES).astype(np.int64)
        images = dataset.train.gather(tf.constant(few)).numpy()
        return dataclasses.asdict(inspect_model(config, model, images, dataset.task))

    return ModelInterface(**backend.run_on_chief(inspect))


def _whiten(
    backend: Backend, dataset: Dataset, model: keras.Model, interface: ModelInterface
) -> None:
    count = min(WHITENED_IMAGES, len(dataset.train))
    places = np.linspace(0, len(dataset.train) - 1, count).astype(np.int64)
    images = scale_pixels(dataset.train.gather(tf.constant(places)), interface.pixels).numpy()
    with backend.scope():
        whiten_first_convolution(model, images)


def _shard_batches(
    config: Config, backend: Backend, dataset: Dataset
) -> tuple[BatchSharding, EpochSampler]:
    train, images = config.train, len(dataset.train)
    virtual = VirtualWorkers(train.virtual_workers, backend) if train.virtual_workers else None
    sharding = BatchSharding(
        backend.local_replica_ids,
        backend.replicas,
        virtual.per_replica if virtual else train.accumulation_steps,
        adjoining=virtual is not None,
    )
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
    if config.data.oversample == "balanced":
        return sharding, BalancedSampler.of(dataset.train.labels, batch, train.seed)
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
    interface: ModelInterface,
    head: Head,
) -> TrainingSetup:
    backend = context.backend
    precision = context.precision
    fast_path, fast_path_reason = resolve_fast_path(config.train, xla=precision.xla)
    shard_rows = -(-sampler.global_batch_size // (backend.replicas * sharding.accumulation_steps))
    engine = _engine(config, backend, model, fast=fast_path, shard_rows=shard_rows)
    build = functools.partial(_build_optimizer, model, sampler, precision, fused=fast_path)
    with backend.scope():
        phases = _phases(config, backend, model, sampler, build)
        objective = _compile(config, dataset, model, interface, head, phases, build)
        if objective.is_own:
            require_supported(model.optimizer, backend)
        model.jit_compile = precision.xla
        optimizers = _build_variables(engine, model, len(dataset.classes), objective)
        ema = WeightEMA(model, config.optimizer.ema) if config.optimizer.ema else None
    for optimizer in optimizers:
        backend.disable_reduction(optimizer)
        if fast_path and objective.is_own:
            fuse_optimizer(optimizer)
    training = TrainingStep(
        model,
        engine,
        objective,
        step_options(config, interface.pixels, sampler, sharding),
        ema=ema,
    )
    state = TrainState(backend, model, optimizers, training)
    if phases is not None:
        phases.attach(training, state)
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
        interface=interface,
        objective=objective,
        engine=engine,
        peak_rate=phases.last_peak
        if phases is not None
        else peak_rate(config, sampler, objective, model.optimizer),
        first_optimizer=model.optimizer,
        phases=phases,
        ema=ema,
        training=training,
        evaluation=EvaluationStep(
            model,
            engine,
            objective,
            interface.pixels,
            Views(config.train.test_flip, config.train.test_shift),
        ),
        state=state,
    )


def _engine(
    config: Config, backend: Backend, model: keras.Model, *, fast: bool, shard_rows: int
) -> StepEngine:
    engine = StepEngine(
        backend,
        fast=fast,
        sync_batchnorm=config.distribute.sync_batchnorm,
        virtual_workers=config.train.virtual_workers,
        shard_rows=shard_rows,
    )
    engine.require_virtual(model)
    return engine


def _phases(
    config: Config,
    backend: Backend,
    model: keras.Model,
    sampler: EpochSampler,
    build: Callable[[OptimizerConfig, int], keras.optimizers.Optimizer],
) -> "Phases | None":
    """Returns the phases of a run, having begun the first one; None without any."""
    if not config.train.phases:
        return None
    if is_compiled_by_owner(model):
        raise UsageError(
            "train.phases is set, but the model is compiled, and a new phase needs a new "
            "optimizer; return the model uncompiled, or drop --train.phases"
        )
    from distcnn.training.phases import Phases  # imported only if asked for

    steps, batch = sampler.steps_per_epoch, sampler.global_batch_size
    return Phases(config, backend, model, steps, batch, build)


def _compile(
    config: Config,
    dataset: Dataset,
    model: keras.Model,
    interface: ModelInterface,
    head: Head,
    phases: "Phases | None",
    build: Callable[[OptimizerConfig, int], keras.optimizers.Optimizer],
) -> Objective:
    """Compiles the model, unless its owner has; returns what it is compiled with."""
    weights = _class_weights(config, dataset, model)
    if is_compiled_by_owner(model):
        objective = own_objective(model, config, interface, dataset.task)
        return dataclasses.replace(objective, class_weights=weights)
    objective = Objective(
        interface.logits, task=dataset.task, scale=head.scale, class_weights=weights
    )
    if phases is not None:
        optimizer = phases.optimizer
    else:
        optimizer = build(config.optimizer, config.train.epochs)
    arguments = objective.compile_arguments(len(dataset.classes))
    model.compile(optimizer, auto_scale_loss=False, **arguments)
    return objective


def _class_weights(
    config: Config, dataset: Dataset, model: keras.Model
) -> tuple[float, ...] | None:
    """Returns the weight of each class in the training loss, or None if they are all 1."""
    if config.data.class_weights == "none":
        return None
    if has_own_train_step(model):
        raise UsageError(
            f"data.class_weights is {config.data.class_weights}, but the model overrides "
            "train_step, which computes its own loss; drop --data.class_weights"
        )
    labels, classes = dataset.train.labels, len(dataset.classes)
    counts = np.bincount(labels, minlength=classes)
    return tuple((len(labels) / (classes * np.maximum(counts, 1))).tolist())


def _build_optimizer(
    model: keras.Model,
    sampler: EpochSampler,
    precision: Precision,
    config: OptimizerConfig,
    epochs: int,
    *,
    fused: bool,
) -> keras.optimizers.Optimizer:
    """Builds an optimizer for what the model trains now, with a schedule over some epochs."""
    peak = scaled_learning_rate(config, sampler.global_batch_size)
    steps = sampler.steps_per_epoch
    rate = learning_rate(config, peak, steps, epochs * steps)
    factors = rate_factors(model, config.layer_decay) if config.layer_decay != 1 else None
    return build_optimizer(config, rate, model, precision.policy, fused=fused, factors=factors)


def _build_variables(
    engine: StepEngine, model: keras.Model, classes: int, objective: Objective
) -> list[keras.optimizers.Optimizer]:
    """Creates all variables of a compiled model before its first step; returns its optimizers."""
    rows = (None, classes) if objective.labels == "one_hot" else (None,)
    labels = tf.TensorSpec(rows, tf.float32 if objective.labels == "one_hot" else tf.int64)
    batch = (tf.TensorSpec((None, *model.input_shape[1:]), tf.float32), labels)
    own = has_own_train_step(model)  # which may give its optimizer only some of the weights
    build_symbolically(model, batch, build_optimizer=not own)
    if own:
        with engine.installed():
            engine.reduction.build_optimizers(model.train_step, batch)
    return optimizers_of(model)


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
