"""A session: puts the workers of a run behind what a script does with Keras."""

import contextlib
import sys
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from distcnn.cli.command import EXIT_STOPPED
from distcnn.config import DistributeConfig, ScriptConfig, ScriptPrecisionConfig
from distcnn.distribute.base import Backend, reporting_lost_peers
from distcnn.distribute.consistency import (
    average_across_replicas,
    broadcast_variables,
    require_identical_settings,
    require_identical_state,
    warn_of_unlike_sets,
)
from distcnn.distribute.context import DistributedContext, join_run
from distcnn.engine.optimizers import require_supported
from distcnn.engine.shard import WorkerRows
from distcnn.engine.step import StepEngine
from distcnn.errors import UsageError
from distcnn.optim.ema import AVERAGED_TYPES
from distcnn.runtime.cluster import Cluster
from distcnn.runtime.keras_fit import element_spec, insert_callback
from distcnn.runtime.keras_hooks import EPOCH_ITERATOR, EVALUATE, FIT, MAYBE_BUILD, PREDICT, Hooks
from distcnn.runtime.keras_internals import forget_dtype_policy
from distcnn.runtime.keras_steps import build_symbolically, forget_functions, has_own_train_step
from distcnn.runtime.rank_page import own_page
from distcnn.runtime.signals import stop_request
from distcnn.scripting.batch_size import BatchPerWorker
from distcnn.scripting.batches import BatchComparison, as_mismatch
from distcnn.scripting.callbacks import install_callback_hooks
from distcnn.scripting.devices import install_device_hooks
from distcnn.scripting.folders import install_folder_hooks
from distcnn.scripting.functions import ScriptStepOptions, StepFunctions
from distcnn.scripting.input_meter import InputMeter
from distcnn.scripting.input_rows import InputRows
from distcnn.scripting.progress import EpochProgress
from distcnn.scripting.resume_folder import ResumeFolder, ScriptIdentity
from distcnn.scripting.resuming import Resuming
from distcnn.scripting.watcher import Watcher
from distcnn.scripting.writing import install_writing_hooks
from distcnn.training.callbacks.checkpointing import StoppedBySignal


class Session:
    """The workers that train a script's models; created by `session`.

    Attributes:
        context: This process as a member of the run.
        backend: Runs the strategy.
        meter: Counts what training reads.
    """

    def __init__(
        self, config: ScriptConfig, context: DistributedContext, command: Sequence[str]
    ) -> None:
        self.config = config
        self._command = command
        self.context = context
        self.backend: Backend = context.backend
        self.meter = InputMeter()
        self._hooks = Hooks()
        self._engine = StepEngine(
            self.backend,
            fast=None if config.fast_path == "auto" else False,
            sync_batchnorm=config.distribute.sync_batchnorm,
            virtual_workers=config.virtual_workers,
        )
        self._models: weakref.WeakSet[keras.Model] = weakref.WeakSet()
        self._batch_size = BatchPerWorker(config, self.backend.replicas)
        self._input = InputRows(config, self.backend)
        self._default_strategy = tf.distribute.get_strategy()

    @property
    def rank(self) -> int:
        """Rank of this process."""
        return self.backend.rank

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.backend.size

    @property
    def is_chief(self) -> bool:
        """Whether this is rank 0, the only process that prints and writes."""
        return self.backend.is_chief

    def barrier(self) -> None:
        """Waits until every process has arrived."""
        self.backend.barrier()

    def fit(self, model: keras.Model, *arguments: Any, **keywords: Any) -> keras.callbacks.History:
        """Trains a model on all workers; takes what `model.fit` takes, and returns the same."""
        return model.fit(*arguments, **keywords)

    def evaluate(self, model: keras.Model, *arguments: Any, **keywords: Any) -> Any:
        """Evaluates a model on all workers; takes and returns the same as `model.evaluate`."""
        return model.evaluate(*arguments, **keywords)

    def predict(self, model: keras.Model, *arguments: Any, **keywords: Any) -> Any:
        """Predicts on all workers: all predictions, in order, in every process."""
        return model.predict(*arguments, **keywords)

    def shard(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Returns this process's elements of a data set, for a training loop of one's own."""
        return dataset.shard(self.size, self.rank)

    @contextlib.contextmanager
    def active(self) -> Iterator["Session"]:
        """Puts the workers behind Keras in the context."""
        options = ScriptStepOptions(
            fast=self.config.fast_path == "auto",
            xla={"auto": None, "on": True, "off": False}[self.config.precision.xla],
        )
        functions = StepFunctions(self._engine, BatchComparison(self.backend), options)
        functions.install(self._hooks)
        self.meter.install(self._hooks)
        if self.is_chief:
            EpochProgress(self.meter).install(self._hooks)
        install_device_hooks(self._hooks)
        if self.backend.replicas > 1 or self._engine.virtual:
            self._install()
        try:
            with self.backend.scope(), self._resuming():
                yield self
        finally:
            self._hooks.restore()
            self._engine.metrics.release()
            for model in self._models:
                forget_functions(model)

    def synchronise(self, model: keras.Model) -> None:
        """Averages over the replicas what each of them updates by itself: moving statistics."""
        metrics = {id(v) for v in self._engine.metrics.variables(model)}
        own = [v for v in model.non_trainable_weights if id(v) not in metrics]
        statistics = [variable for variable in own if variable.dtype in AVERAGED_TYPES]
        average_across_replicas(self.backend, statistics)

    def check(self, model: keras.Model, step: int) -> None:
        """Checks that all replicas hold the same weights and optimizer state.

        Raises:
            ReplicaMismatchError: Names the first variable that differs, and the replicas.
        """
        optimizer = model.optimizer
        groups = {"model": model.trainable_weights, "optimizer": []}
        if isinstance(optimizer, keras.optimizers.Optimizer):
            groups["optimizer"] = optimizer.variables
        require_identical_state(self.backend, groups, step)

    def _install(self) -> None:
        hooks, backend = self._hooks, self.backend
        self._engine.install(hooks)
        hooks.replace(EPOCH_ITERATOR, self._same_batches)
        hooks.replace(MAYBE_BUILD, self._building)
        hooks.replace(FIT, self._fitting)
        for point in (EVALUATE, PREDICT):
            hooks.replace(point, self._computing)
        hooks.replace(PREDICT, self._predicting)
        install_writing_hooks(hooks, backend, self.synchronise)
        install_callback_hooks(hooks, backend)
        install_folder_hooks(hooks, backend)

    def _resuming(self) -> contextlib.AbstractContextManager[None]:
        """Returns a context in which what the script fits is saved and resumed, if it should."""
        config = self.config
        if config.resume is None:
            return contextlib.nullcontext()
        script, *arguments = self._command
        identity = ScriptIdentity.of(Path(script), arguments, config, self.backend.replicas)
        folder = ResumeFolder(Path(config.resume), identity, self.backend)
        resuming = Resuming(
            folder,
            self.backend,
            self.synchronise,
            self._engine.metrics.variables,
            config.checkpoint_every_steps,
            config.checkpoint_every_minutes,
            stop_request(config.checkpoint_signal, config.checkpoint_notice, self.context.cluster),
        )
        return resuming.active(self._hooks)

    def _same_batches(self, original: Any) -> Any:
        """Makes Keras' iterators yield the same batches in every process, whole or its rows."""

        def init(iterator: Any, *arguments: Any, **keywords: Any) -> None:
            keywords["distribute_strategy"] = self._default_strategy
            self._batch_size.enlarge(keywords)
            original(iterator, *arguments, **keywords)
            self._input.divide(iterator, keywords.get("x"), keywords.get("class_weight"))

        return init

    def _fitting(self, original: Any) -> Any:
        def fit(model: keras.Model, *arguments: Any, **keywords: Any) -> Any:
            self._prepare(model)
            self._batch_size.scale_rate(model.optimizer)
            watcher = Watcher(self.synchronise, self.check)
            if len(arguments) > _CALLBACKS_AT:
                positional = list(arguments)
                positional[_CALLBACKS_AT] = insert_callback(
                    positional[_CALLBACKS_AT], watcher, model
                )
                arguments = tuple(positional)
            else:
                keywords["callbacks"] = insert_callback(keywords.get("callbacks"), watcher, model)
            with self._readable_errors():
                history = original(model, *arguments, **keywords)
                self.barrier()  # what rank 0's callbacks have written is complete
            return history

        return fit

    def _computing(self, original: Any) -> Any:
        def compute(model: keras.Model, *arguments: Any, **keywords: Any) -> Any:
            if model not in self._models:
                self._prepare(model)
            self.synchronise(model)
            with self._readable_errors():
                return original(model, *arguments, **keywords)

        return compute

    def _predicting(self, original: Any) -> Any:
        def predict(*arguments: Any, **keywords: Any) -> Any:
            with self._input.whole():  # outputs that do not travel are computed of whole batches
                return original(*arguments, **keywords)

        return predict

    def _building(self, original: Any) -> Any:
        """Creates the variables before the first step under tf.distribute, which cannot do it then.

        Keras takes a batch from the iterator to do so; a generator would lose that batch. Virtual
        workers need them before the first step too, since every shard starts from their values.
        """

        def build(model: keras.Model, iterator: Any = None, data_batch: Any = None) -> None:
            if not (tf.distribute.has_strategy() or self._engine.virtual):
                return
            batch = element_spec(iterator) if data_batch is None else data_batch
            batch = batch.rows if isinstance(batch, WorkerRows) else batch
            own = has_own_train_step(model)
            try:
                # A step of one's own may give its optimizer only some of the weights.
                build_symbolically(model, batch, build_optimizer=not own)
            except RuntimeError:  # some models have no call, but only a train_step
                if not own:
                    raise
            if own:
                self._engine.reduction.build_optimizers(model.train_step, batch)

        return build

    def _prepare(self, model: keras.Model) -> None:
        """Makes all replicas start from the chief's weights."""
        self._models.add(model)
        optimizer = getattr(model, "optimizer", None)
        require_supported(optimizer, self.backend)
        self._engine.require_virtual(model)
        state = []
        if isinstance(optimizer, keras.optimizers.Optimizer) and optimizer.built:
            state = optimizer.variables
        variables = [*model.variables, *state]
        broadcast_variables(self.backend, [v for v in variables if v.dtype != "string"])

    @contextlib.contextmanager
    def _readable_errors(self) -> Iterator[None]:
        try:
            with reporting_lost_peers(self.backend):
                yield
        except tf.errors.InvalidArgumentError as error:
            raise as_mismatch(error) from None


_CALLBACKS_AT = 5
"""Place of `callbacks` among the arguments of `fit` after the model."""


@contextlib.contextmanager
def session(
    *,
    strategy: str = "auto",
    precision: str = "float32",
    seed: int = 21,
    config: ScriptConfig | None = None,
    cluster: Cluster | None = None,
    command: Sequence[str] | None = None,
) -> Iterator[Session]:
    """Joins the run that the launcher started, and puts its workers behind Keras in the context.

    Inside, `model.fit`, `evaluate` and `predict` divide every batch among the workers, and so do
    the methods of the session. Build and compile the models inside, too.

    Args:
        strategy: As `distribute.strategy` of a run: auto, one_device, mirrored, multi_worker or
            horovod.
        precision: As `precision.policy` of a run: auto, float32, mixed_bfloat16 or mixed_float16.
        seed: Seed of Python, NumPy, TensorFlow and Keras.
        config: All settings, in place of the three above.
        cluster: The processes of the run; read from the environment by default.
        command: The script and its arguments, to which checkpoints belong; by default this
            process's own.

    Yields:
        The session.

    Raises:
        DistcnnError: If the devices cannot be used, or the ranks do not reduce or differ.
        SystemExit: With 75, if a signal stopped the run after its state was saved.

    Example:
        >>> with distcnn.session(precision="auto") as run:
        ...     model = build_model()
        ...     history = run.fit(model, x_train, y_train, epochs=3)
        ...     if run.is_chief:
        ...         print(history.history)
    """
    if config is None:
        policy: Any = precision  # checked by what uses it
        config = ScriptConfig(
            seed=seed,
            distribute=DistributeConfig(strategy=strategy),
            precision=ScriptPrecisionConfig(policy=policy),
        )
    with (
        joined(config, cluster) as context,
        Session(config, context, command or sys.argv).active() as active,
    ):
        yield active
        active.barrier()


@contextlib.contextmanager
def joined(config: ScriptConfig, cluster: Cluster | None = None) -> Iterator[DistributedContext]:
    """Joins the run that the launcher started, and sets seeds and precision.

    Args:
        config: All settings.
        cluster: The processes of the run; read from the environment by default.

    Yields:
        This process as a member of the run.

    Raises:
        DistcnnError: If the devices cannot be used, or the ranks do not reduce or differ.
        SystemExit: With 75, if a signal stopped the run after its state was saved.
    """
    if tf.distribute.has_strategy():
        raise UsageError("distcnn.session is inside a strategy's scope(); remove the scope")
    context = join_run(config, cluster)
    own_page().joined()
    backend = context.backend
    with reporting_lost_peers(backend):
        require_identical_settings(backend, {"the version of TensorFlow": tf.__version__})
        warn_of_unlike_sets(backend)
        keras.utils.set_random_seed(config.seed)
        if context.precision.policy == "float32":
            forget_dtype_policy()  # so that the script may choose another type
        try:
            yield context
        except StoppedBySignal:
            backend.close()
            raise SystemExit(EXIT_STOPPED) from None
