"""The composition root: builds the parts of a run from its configuration, then trains."""

import contextlib
import dataclasses
import logging
import math
import os
import socket
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from distcnn.averaging import WeightAverage
from distcnn.callbacks.dispatch import Dispatch, callbacks_of_rank
from distcnn.callbacks.guard import FiniteGuard
from distcnn.callbacks.progress import ProgressDisplay
from distcnn.callbacks.recorder import MetricsFile, Recorder, Row
from distcnn.callbacks.saver import Saver, Stopped
from distcnn.callbacks.tensorboard import TensorBoardScalars, tensorboard_callbacks
from distcnn.checkpoint import Checkpoints, Progress, find_checkpoint, read_checkpoint
from distcnn.cluster import Cluster, find_cluster
from distcnn.config import Config
from distcnn.data.dataset import Dataset, load_dataset, offered_shape
from distcnn.data.pipeline import EpochOrder, Shares, evaluation_shares, training_dataset
from distcnn.data.sources import open_source
from distcnn.data.split import Source, Split
from distcnn.distribute import build_backend, choose_strategy, peers_watched
from distcnn.distribute.layers import SynchronisedStatistics, vary_randomness
from distcnn.distribute.lockstep import (
    prove_reduction,
    require_same_content,
    same_everywhere,
)
from distcnn.distribute.placement import share_cores, visible_gpus
from distcnn.environment import describe_environment
from distcnn.errors import DataError, UsageError
from distcnn.fast import fast_model
from distcnn.files import write_json
from distcnn.loop import run_epochs
from distcnn.model_file import ModelNote, save_model
from distcnn.models import build_model, load_object, returns_logits
from distcnn.optimizer import (
    build_optimizer,
    learning_rate,
    plain_optimizer,
    scaled_learning_rate,
)
from distcnn.precision import (
    apply_precision,
    find_hardware,
    resolve_fast_path,
    resolve_precision,
)
from distcnn.recipe import flatten
from distcnn.replicated_state import ReplicatedState
from distcnn.run_directory import RunDirectory
from distcnn.signals import StopRequest
from distcnn.summary import log_resolved, log_summary, make_summary
from distcnn.training_step import EvaluationStep, TrainingStep

log = logging.getLogger("distcnn")


class Trainer:
    """Trains one classifier as a configuration says.

    Building it checks everything and writes nothing; `fit` makes the run directory. In a run of
    several processes each builds a Trainer and calls `fit`; rank 0 alone prints and writes.

    Args:
        config: What the run is.
        callbacks: Keras callbacks of the user's own; they see the classifier as `self.model`. They
            work in every process, but for those that write, see `callbacks_of_rank`.
        cluster: Where this process stands; by default what the environment says.

    Attributes:
        model: The classifier.
        dataset: Its images.
        directory: The run directory.
        network: What computes the classifier's outputs: itself, or its fast form.
        training: The training step.
        evaluation: The evaluation step.
        backend: Over which devices the run is spread.

    Raises:
        DistcnnError: If the data, the model, the devices or the run directory cannot be used.

    Example:
        >>> Trainer(Config(recipe="digits", data=DataConfig(name="digits"))).fit()
    """

    def __init__(
        self,
        config: Config,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        cluster: Cluster | None = None,
    ) -> None:
        self.config = config
        self._cluster = cluster or find_cluster(os.environ)
        self._place()
        self.backend, self._strategy_reason = build_backend(config.distribute, self._cluster)
        if not self.backend.is_chief:
            log.setLevel(logging.ERROR)
        with peers_watched(self.backend):
            prove_reduction(self.backend)
            self._warn_of_open_ports()
            path, begun = self.backend.on_chief(lambda: _chosen(RunDirectory.choose(config)))
            self.directory = RunDirectory(Path(path), begun)
            keras.utils.set_random_seed(config.train.seed)
            source = self._open_source()
            offered = offered_shape(config.data, source)
            with self.backend.scope():
                self.model = build_model(config.model, offered, len(source.classes))
            self._load_images(source)
            own = [load_object(path, "train.callbacks")() for path in config.train.callbacks]
            self._user_callbacks = callbacks_of_rank(
                [*callbacks, *own], is_chief=self.backend.is_chief
            )
            self._build_steps()
            self._require_agreement()

    def _place(self) -> None:
        """Takes this process's share of the host, before TensorFlow's devices exist."""
        config, cluster = self.config, self._cluster
        threads = share_cores(cluster)
        gpus = tf.config.list_physical_devices("GPU")
        strategy, _ = choose_strategy(config.distribute, cluster, gpus=len(gpus))
        own = visible_gpus(cluster, strategy, len(gpus))
        if own is not None:
            tf.config.set_visible_devices([gpus[index] for index in own], "GPU")
        self._hardware = find_hardware()
        self.precision = resolve_precision(config.precision, self._hardware)
        apply_precision(config.precision, self.precision, threads)

    def _warn_of_open_ports(self) -> None:
        one_host = self.backend.size > 1 and self._cluster.one_host
        reachable = any(name != "lo" for _, name in socket.if_nameindex())
        if self.backend.name == "multi_worker" and one_host and reachable:
            log.warning(
                "warning: TensorFlow's server for multi_worker listens on all network interfaces; "
                "horovod and mirrored keep to this machine, and docs/troubleshooting.md says how "
                "multi_worker can"
            )

    def _open_source(self) -> Source:
        """Opens the data; the first process of each host comes first, and downloads alone."""
        source = open_source(self.config.data) if self._cluster.local_rank == 0 else None
        self.backend.barrier()
        return source or open_source(self.config.data)

    def _load_images(self, source: Source) -> None:
        config = self.config
        self.dataset: Dataset = load_dataset(
            config.data,
            source,
            self.model.input_shape[1:],
            config.train.seed,
            processes=self._cluster.local_size,
        )
        accumulation = config.train.accumulation_steps
        self.shares = Shares(self.backend.own_replicas, self.backend.replicas, accumulation)
        batch = config.train.global_batch_size or config.train.batch_size * self.shares.count
        if batch > len(self.dataset.train):
            raise DataError(
                f"the batch of {batch} images is larger than the {len(self.dataset.train)} "
                "training images; lower --train.batch_size"
            )
        if batch < self.shares.count:
            raise UsageError(
                f"the global batch of {batch} images is smaller than the {self.shares.count} "
                "shares that the workers compute; raise --train.global_batch_size"
            )
        self.order = EpochOrder(len(self.dataset.train), batch, config.train.seed)
        self._total_steps = config.train.epochs * self.order.steps_per_epoch
        if config.logging.profile and int(config.logging.profile.split(",")[1]) > self._total_steps:
            raise UsageError(
                f"logging.profile is {config.logging.profile}, but the run has {self._total_steps} "
                "steps"
            )

    def _build_steps(self) -> None:
        config, order, backend = self.config, self.order, self.backend
        self._peak_rate = scaled_learning_rate(config.optimizer, order.global_batch_size)
        rate = learning_rate(
            config.optimizer, self._peak_rate, order.steps_per_epoch, self._total_steps
        )
        self.logits = returns_logits(config.model, self.model)
        vary_randomness(self.model, backend)
        statistics = SynchronisedStatistics(
            self.model, backend, every_layer=config.distribute.sync_batchnorm
        )
        if statistics.layers and self.precision.xla:
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
            self.network = fast_model(self.model, statistics) if self._fast else self.model
            self._average = WeightAverage(self.model, ema) if ema else None
            self.model.compile(
                optimizer=self.optimizer, auto_scale_loss=False, **compile_arguments(self.logits)
            )
        backend.adopt(self.optimizer)
        self._statistics = statistics
        self.training = self.new_training_step()
        self.state = ReplicatedState(backend, self.model, self.optimizer, self.training)
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
            steps_per_epoch=self.order.steps_per_epoch,
            steps_per_execution=config.train.steps_per_execution,
            accumulation_steps=config.train.accumulation_steps,
            xla=self.precision.xla,
            average=self._average,
            statistics=self._statistics,
        )

    def _require_agreement(self) -> None:
        splits = {
            "training": self.dataset.train,
            "validation": self.dataset.validation,
            "test": self.dataset.test,
        }
        require_same_content(
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

    def fit(self) -> dict[str, Any] | None:
        """Trains, evaluates on the test images once, and writes the run directory.

        Returns:
            The content of `summary.json`, or None if a signal stopped the run after it was saved.

        Raises:
            DistcnnError: If the run cannot go on; what was saved before stays.
        """
        stop = StopRequest()
        resolved = self.resolved()
        with peers_watched(self.backend):
            self.backend.on_chief(
                lambda: self.directory.create(
                    self.config, describe_environment(self._hardware, resolved)
                )
            )
            try:
                with stop.listening():
                    log_resolved(self.directory.path, resolved)
                    try:
                        progress, rows = self._train(stop)
                    except Stopped:
                        log.info(
                            "stopped by %s after step %d; the same command goes on from there",
                            stop.name or "a signal to another rank",
                            self.training.step,
                        )
                        self.backend.close()
                        return None
                    return self._finish(resolved, progress, rows)
            finally:
                self.directory.close()

    def resolved(self) -> dict[str, Any]:
        """Returns what the configuration became: strategy, precision, batch, rate, steps."""
        config, order, precision, backend = self.config, self.order, self.precision, self.backend
        hosts = self._cluster.hosts or ()
        return {
            "model": config.model.factory or config.model.name,
            "data": config.data.name,
            "strategy": backend.name,
            "strategy_reason": self._strategy_reason,
            "carrier": backend.carrier,
            "world_size": backend.replicas,
            "processes": backend.size,
            "hosts": sorted(set(hosts), key=hosts.index),
            "device": self._hardware.gpu or "CPU",
            "precision": precision.policy,
            "precision_reason": precision.policy_reason,
            "xla": precision.xla,
            "xla_reason": precision.xla_reason,
            "fast_path": self._fast,
            "fast_path_reason": self._fast_reason,
            "per_worker_batch_size": order.global_batch_size / self.shares.count,
            "accumulation_steps": self.shares.accumulation_steps,
            "global_batch_size": order.global_batch_size,
            "base_learning_rate": config.optimizer.lr,
            "learning_rate": self._peak_rate,
            "steps_per_epoch": order.steps_per_epoch,
            "steps": self._total_steps,
            "parameters": self.model.count_params(),
            "training_images": len(self.dataset.train),
            "validation_images": len(self.dataset.validation or ()),
            "test_images": len(self.dataset.test or ()),
        }

    def _train(self, stop: StopRequest) -> tuple[Progress, list[Row]]:
        config, order, training = self.config, self.order, self.training
        checkpoints = self._checkpoints()
        progress = Progress(
            **self.backend.on_chief(lambda: dataclasses.asdict(self._restore(checkpoints)))
        )
        self.state.share()
        training.step = progress.step
        rows: list[Row] = self.backend.on_chief(lambda: self.directory.cut_metrics(progress.step))
        epochs, done_epochs = config.train.epochs, progress.step // order.steps_per_epoch
        stopped_early = bool(
            config.train.early_stopping
            and progress.best_epoch >= 0
            and done_epochs - 1 - progress.best_epoch >= config.train.early_stopping
        )
        if stopped_early or done_epochs >= epochs:
            return progress, rows

        chief = self.backend.is_chief
        display = ProgressDisplay(
            config.logging.progress if chief else "none",
            epochs,
            order.steps_per_epoch,
            progress.step,
        )
        sinks: list[Callable[[Row], None]] = [rows.append, display]
        observers: list[keras.callbacks.Callback] = []
        if config.logging.tensorboard and chief:
            sinks.append(TensorBoardScalars(self.directory.path / "tensorboard"))
            observers += tensorboard_callbacks(
                self.directory.path / "tensorboard",
                config,
                training,
                self.evaluation,
                self.training_batches(progress.step),
                self.dataset,
                logits=self.logits,
            )
        every = config.logging.every_steps
        recorder = Recorder(training, order, every, self._present_rate, sinks, display.advance)
        saver = Saver(
            training,
            self.backend,
            self.state.variables,
            checkpoints,
            progress,
            recorder.measured,
            self.state.align,
            every_epochs=config.checkpoint.every_epochs,
            patience=config.train.early_stopping,
            stop=stop,
        )
        guard = FiniteGuard(training, every)
        callbacks = [guard, recorder, *observers, *self._user_callbacks, saver]
        with contextlib.ExitStack() as stack:
            if chief:
                path = self.directory.path / "metrics.jsonl"
                sinks.insert(0, stack.enter_context(MetricsFile(path)))
            stack.enter_context(display)
            run_epochs(
                training,
                self.model,
                self.backend.iterate(self.training_batches(progress.step)),
                Dispatch(
                    callbacks,
                    model=self.model,
                    metrics=training.metrics,
                    epochs=epochs,
                    steps=order.steps_per_epoch,
                ),
                epochs=epochs,
                steps_per_epoch=order.steps_per_epoch,
                asked_to_stop=lambda: stop.name is not None,
                align=self.state.align,
                validate=self._validate if self.dataset.validation else None,
                one_process=self.backend.size == 1,
            )
        return saver.progress, rows

    def training_batches(self, first_step: int) -> tf.data.Dataset:
        """Returns this process's shares of the batches from a global step to the run's end."""
        return training_dataset(
            self.dataset.train,
            len(self.dataset.classes),
            self.order,
            self.config.data.augment,
            self.shares,
            first_step=first_step,
            last_step=self._total_steps,
        )

    def _evaluate(self, split: Split) -> dict[str, float]:
        size, classes = self.config.train.eval_batch_size, len(self.dataset.classes)
        return self.evaluation.evaluate(*evaluation_shares(split, classes, size, self.shares))

    def _validate(self) -> dict[str, float]:
        assert self.dataset.validation is not None
        with self.training.evaluated_weights():
            return self._evaluate(self.dataset.validation)

    def _present_rate(self) -> float:
        return float(keras.ops.convert_to_numpy(self.optimizer.learning_rate))

    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self.directory.path / "checkpoints", self.config.checkpoint.keep)

    def _restore(self, checkpoints: Checkpoints) -> Progress:
        resume = self.config.checkpoint.resume
        if self.directory.begun:
            found, origin = checkpoints.load_newest(), str(self.directory.path)
        elif resume in ("auto", "never"):
            return Progress()
        else:
            found, origin = find_checkpoint(Path(resume)), resume
        if found is None:
            return Progress()
        arrays, progress = found
        self.state.restore(arrays, origin)
        log.info("resumed         %s at step %d", origin, progress.step)
        return progress

    def _restore_best(self) -> bool:
        """Goes back to the best epoch's state, if the run looks for it and there is one."""
        best = self._checkpoints().best
        if not self.config.train.early_stopping or not best.exists():
            return False
        arrays, _ = read_checkpoint(best)
        self.state.restore(arrays, str(best))
        return True

    def _finish(
        self, resolved: dict[str, Any], progress: Progress, rows: list[Row]
    ) -> dict[str, Any]:
        config, backend = self.config, self.backend
        epoch = math.ceil(progress.step / self.order.steps_per_epoch)
        if backend.on_chief(self._restore_best):
            self.state.share()
            epoch = progress.best_epoch + 1
        if self.training.average is not None:
            self.training.average.install()
        test = self._evaluate(self.dataset.test) if self.dataset.test else {}
        agree = same_everywhere(backend, self.model.weights)
        # Compiled at a constant rate, so that plain Keras can load it and train on.
        with backend.scope():
            fresh = plain_optimizer(config.optimizer, self._peak_rate, self.model)
            self.model.compile(fresh, auto_scale_loss=False, **compile_arguments(self.logits))
        summary = make_summary(
            config.recipe, resolved, progress, rows, self.model, saved_epoch=epoch
        )
        summary |= {"weights_agree": agree}
        summary |= {f"test_{name}": test.get(name) for name in ("loss", "accuracy")}
        backend.on_chief(lambda: self._write(summary))
        log_summary(self.directory.path, summary)
        return summary

    def _write(self, summary: dict[str, Any]) -> None:
        config = self.config
        flip = config.train.test_flip
        note = ModelNote(self.dataset.classes, config.data.pixels, self.logits, flip)
        save_model(self.directory.path / "model.keras", self.model, note)
        write_json(self.directory.path / "summary.json", summary)


def compile_arguments(logits: bool) -> dict[str, Any]:
    """Returns the loss and the metric of a classifier with one-hot labels."""
    return {
        "loss": keras.losses.CategoricalCrossentropy(from_logits=logits),
        "metrics": [keras.metrics.CategoricalAccuracy(name="accuracy")],
    }


def _chosen(directory: RunDirectory) -> tuple[str, bool]:
    return str(directory.path), directory.begun
