"""`distcnn.train` on data of the user's own: `fit` in a session, and a run directory around it."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from distcnn.config import Config, ScriptConfig, ScriptPrecisionConfig
from distcnn.config.lookup import import_object
from distcnn.distribute.base import Backend
from distcnn.distribute.consistency import is_identical_everywhere, require_identical_settings
from distcnn.distribute.context import DistributedContext
from distcnn.errors import DistcnnError
from distcnn.runtime.cluster import Cluster
from distcnn.runtime.files import write_json
from distcnn.scripting.own_data import OwnData, file_of, load_own_data
from distcnn.scripting.row_recorder import RowRecorder
from distcnn.scripting.session import Session, joined
from distcnn.storage.environment import describe_environment
from distcnn.storage.model_file import save_model
from distcnn.storage.model_metadata import ModelMetadata
from distcnn.storage.run_directory import RunDirectory
from distcnn.storage.summary import log_summary, make_summary
from distcnn.training.callbacks.metrics import Row
from distcnn.training.callbacks.tensorboard import TensorBoardScalars

log = logging.getLogger("distcnn")


class OwnDataRun:
    """Trains a compiled model on data of the user's own.

    What the model is compiled with is what runs, by the session that also runs users' scripts. In
    a run of several processes, each creates an OwnDataRun and calls `fit`.

    Args:
        config: The configuration of the run, with `data.factory` and `model.factory`.
        cluster: The processes of the run; read from the environment by default.
    """

    def __init__(self, config: Config, cluster: Cluster | None = None) -> None:
        self.config = config
        self._cluster = cluster

    def fit(self) -> dict[str, Any]:
        """Trains, evaluates once on the test data, and writes the run directory.

        Returns:
            The content of `summary.json`.

        Raises:
            DistcnnError: If the data, the model or the run directory cannot be used.
            SystemExit: With 75, if a signal stopped the run after its state was saved.
        """
        config = self.config
        with joined(_script_config(config, None), self._cluster) as context:
            data = load_own_data(config.data)
            batch = _global_batch(config, context.backend)
            resolved = _resolved_data(config, context, data, batch)
            with _directory(config, context, resolved) as directory:
                script = _script_config(config, directory.path / "checkpoints")
                command = [str(file_of(str(config.data.factory)))]
                with Session(script, context, command).active() as session:
                    model, summary = _train(config, session, directory, data, batch, resolved)
                # Outside the session, where saving is up to one process.
                context.backend.run_on_chief(lambda: _write(directory, model, summary))
            log_summary(directory.path, summary)
            return summary


def _script_config(config: Config, checkpoints: Path | None) -> ScriptConfig:
    return ScriptConfig(
        seed=config.train.seed,
        fast_path="off" if config.train.fast_path == "off" else "auto",
        resume=None if checkpoints is None else str(checkpoints),
        checkpoint_every_steps=0 if checkpoints is None else config.checkpoint.every_steps,
        checkpoint_every_minutes=0 if checkpoints is None else config.checkpoint.every_minutes,
        distribute=config.distribute,
        precision=ScriptPrecisionConfig(**asdict(config.precision)),
    )


def _global_batch(config: Config, backend: Backend) -> int:
    return config.train.global_batch_size or config.train.batch_size * backend.replicas


def _resolved_data(
    config: Config, context: DistributedContext, data: OwnData, batch: int
) -> dict[str, Any]:
    """Returns what is known before the model is built, and compares it between the processes."""
    backend, precision = context.backend, context.precision
    resolved = {
        "model": config.model.factory,
        "data": config.data.factory,
        "strategy": backend.name,
        "strategy_reason": context.strategy_reason,
        "world_size": backend.replicas,
        "processes": backend.size,
        "device": context.hardware.gpu or "CPU",
        "precision": precision.policy,
        "precision_reason": precision.policy_reason,
        "xla": precision.xla,
        "xla_reason": precision.xla_reason,
        "fast_path": config.train.fast_path != "off" and not precision.xla,
        "global_batch_size": None if data.train.is_stream else batch,
        "training_images": data.train.rows,
        "images_hash": data.content_hash(),
    }
    same = ("model", "data", "precision", "training_images", "images_hash", "global_batch_size")
    require_identical_settings(backend, {f"the {key}": resolved[key] for key in same})
    return resolved


@contextlib.contextmanager
def _directory(
    config: Config, context: DistributedContext, resolved: dict[str, Any]
) -> Iterator[RunDirectory]:
    """Creates the run directory, and keeps it locked during the context."""
    backend = context.backend

    def choose() -> tuple[str, bool]:
        chosen = RunDirectory.choose(config)
        return str(chosen.path), chosen.begun

    path, begun = backend.run_on_chief(choose)
    directory = RunDirectory(Path(path), begun)
    environment = describe_environment(context.hardware.gpu, resolved)
    backend.run_on_chief(lambda: directory.create(config, environment))
    try:
        yield directory
    finally:
        directory.close()


def _train(
    config: Config,
    session: Session,
    directory: RunDirectory,
    data: OwnData,
    batch: int,
    resolved: dict[str, Any],
) -> tuple[keras.Model, dict[str, Any]]:
    model = _build(config)
    backend = session.backend
    resolved |= {
        "parameters": model.count_params() if model.built else None,
        "learning_rate": float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)),
        "pixels": None,
        "task": None,
        "output": None,
    }
    _log_resolved(directory.path, resolved)
    sinks: list[Callable[[Row], None]] = []
    if backend.is_chief and config.logging.tensorboard:
        sinks.append(TensorBoardScalars(directory.path / "tensorboard"))
    recorder = RowRecorder(
        directory.path,
        config.logging.every_steps,
        totals=session.meter.totals,
        sinks=sinks,
        is_chief=backend.is_chief,
    )
    early = _early_stopping(config, data)
    users = [import_object(path, "train.callbacks")() for path in config.train.callbacks]
    validation = {}
    if data.validation is not None:
        size = config.train.eval_batch_size
        validation = {"validation_data": data.validation.data, "validation_batch_size": size}
    model.fit(
        **data.train.arguments(batch),
        **validation,
        shuffle=not isinstance(data.train.data, tf.data.Dataset),
        epochs=config.train.epochs,
        steps_per_epoch=config.data.steps_per_epoch,
        callbacks=[*early, *users, recorder],
        verbose=_verbosity(config.logging.progress) if backend.is_chief else 0,
    )
    session.synchronise(model)
    best = early[0].best_epoch + 1 if early else recorder.epoch
    summary = make_summary(
        str(config.recipe),
        resolved
        | {"steps_per_epoch": recorder.steps_per_epoch, "parameters": model.count_params()},
        recorder.progress,
        recorder.rows,
        model.weights,
        saved_epoch=best,
    )
    test = {}
    if data.test is not None:
        size = config.train.eval_batch_size
        test = model.evaluate(**data.test.arguments(size), verbose=0, return_dict=True)
    test = {"loss": None, "accuracy": None} | test
    summary |= {f"test_{name}": value for name, value in test.items()}
    summary["weights_agree"] = is_identical_everywhere(backend, model.weights)
    return model, summary


def _build(config: Config) -> keras.Model:
    """Builds the model, which its owner has compiled.

    Raises:
        DistcnnError: If it is no model, or not compiled with an optimizer of Keras.
    """
    name = str(config.model.factory)
    model = import_object(name, "model.factory")(**config.model.args)
    if not isinstance(model, keras.Model):
        raise DistcnnError(f"{name} returned a {type(model).__name__}; expected a keras.Model")
    if not model.compiled or not isinstance(model.optimizer, keras.optimizers.Optimizer):
        raise DistcnnError(
            f"{name} returned a model that is not compiled with an optimizer of Keras; the data of "
            "data.factory need the loss and the optimizer that you choose: call compile"
        )
    if config.train.steps_per_execution > 1:
        model.steps_per_execution = config.train.steps_per_execution
    return model


def _early_stopping(config: Config, data: OwnData) -> list[keras.callbacks.EarlyStopping]:
    patience = config.train.early_stopping
    if not patience:
        return []
    if data.validation is None:
        raise DistcnnError(
            f"train.early_stopping is {patience}, but {config.data.factory} returned no validation "
            "data; add them, or drop --train.early_stopping"
        )
    return [keras.callbacks.EarlyStopping(patience=patience, restore_best_weights=True)]


def _verbosity(progress: str) -> int:
    """Returns Keras' own number for how progress is shown."""
    if progress == "auto":
        progress = "live" if sys.stdout.isatty() else "lines"
    return {"none": 0, "live": 1, "lines": 2}[progress]


def _log_resolved(path: Path, resolved: dict[str, Any]) -> None:
    log.info("run directory   %s", path)
    count = "not built yet" if (n := resolved["parameters"]) is None else f"{n:,} parameters"
    log.info("model           %s, %s", resolved["model"], count)
    log.info("data            %s", resolved["data"])
    log.info(
        "strategy        %(strategy)s on %(device)s (%(strategy_reason)s), %(world_size)d workers",
        resolved,
    )
    log.info("precision       %(precision)s (%(precision_reason)s)", resolved)
    log.info("xla             %s (%s)", "on" if resolved["xla"] else "off", resolved["xla_reason"])
    log.info("learning rate   %(learning_rate)g, as compiled", resolved)


def _write(directory: RunDirectory, model: keras.Model, summary: dict[str, Any]) -> None:
    directory.require_present()
    save_model(directory.path / "model.keras", model, ModelMetadata())
    write_json(directory.path / "summary.json", summary)
