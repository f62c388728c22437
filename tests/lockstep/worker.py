"""One process of a group: trains a list of cases in turn, so that many tests share a group.

Usage: python -m tests.lockstep.worker PLAN.json OUT
"""

import contextlib
import errno
import hashlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import keras
import numpy as np
import tensorflow as tf

from distcnn.config import DistributeConfig, ScriptConfig
from distcnn.engine import pointwise
from distcnn.engine import step as engine_step
from distcnn.engine.factors import Factors
from distcnn.errors import DistcnnError
from distcnn.runtime.cluster import find_cluster
from distcnn.scripting.session import session
from distcnn.training import state
from distcnn.training.step import TrainingStep
from distcnn.training.trainer import Trainer
from tests.lockstep.cases import case_config
from tests.runs import SignalAt
from tests.tiny import tiny

OVERFLOW_AT = 7


class ReadsEachStep(keras.callbacks.Callback):
    """A callback of rank 0 alone that reads metrics, which all ranks add up."""

    chief_only = True

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        assert 0 < logs["loss"] < 100


@contextlib.contextmanager
def replacing(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replaces an attribute of a module or class during the context."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def counting(function: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
    """Returns a function that also notes its calls."""

    def called(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return function(*arguments, **options)

    return called


@contextlib.contextmanager
def overflow() -> Iterator[None]:
    """Makes the gradient of one step overflow on the last replica only."""
    one_step, compute = TrainingStep._one_step, engine_step.forward_backward
    current: dict[str, Any] = {}

    def recording_step(training: Any, batches: Any, step: Any, stop: Any) -> Any:
        current.update(backend=training._backend, step=step)
        return one_step(training, batches, step, stop)

    def overflowing(*arguments: Any) -> Any:
        outputs, loss, gradients = compute(*arguments)
        backend = current["backend"]
        last = tf.equal(backend.replica_id(), backend.replicas - 1)
        hit = last & tf.equal(current["step"], OVERFLOW_AT)
        return outputs, loss, [gradients[0] + tf.where(hit, np.inf, 0.0), *gradients[1:]]

    with (
        replacing(TrainingStep, "_one_step", recording_step),
        replacing(engine_step, "forward_backward", overflowing),
    ):
        yield


class WithoutReduction:
    """Switches off the reduction of the gradients; everything else still works."""

    def __init__(self, trainer: Trainer) -> None:
        backend = trainer.setup.backend
        reduce_sum = type(backend).reduce_sum

        def keep_gradients(tensors: Any, *, compressible: int = 0) -> Any:
            rest = reduce_sum(backend, tensors[compressible:])
            gradients = [backend.replicas * tensor for tensor in tensors[:compressible]]
            return [*gradients, *rest]

        backend.reduce_sum = keep_gradients  # type: ignore[method-assign]


class Drift(keras.callbacks.Callback):
    """A user's callback that changes the weights of one rank only."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 2 and find_cluster(os.environ).rank == 1:
            bias = self.model.layers[1].bias
            bias.assign(bias + 1e-3)


def forbidden(*arguments: Any) -> int:
    """Fails as a system call that a container does not allow."""
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def sum_of_upcast(backend: Any) -> float:
    """Sums 1 and, of every other replica, 2**-9, which were bfloat16 before; no gradients."""

    @tf.function
    def add_up() -> Any:
        def in_replica() -> Any:
            own = tf.where(tf.equal(backend.replica_id(), 0), tf.ones([3]), tf.fill([3], 2.0**-9))
            upcast = tf.cast(tf.cast(own, tf.bfloat16), tf.float32)
            return backend.reduce_sum([upcast])[0]

        return backend.run(in_replica)[0]

    return float(add_up().numpy()[0])


def check_broadcast(backend: Any) -> None:
    """Checks that the values of any rank arrive with the sign of their zeros."""
    for source in range(backend.size):
        own = np.array([-0.0, 0.0, np.inf, 1e-300, source])
        there = own if backend.rank == source else np.full(5, 7.0)
        np.testing.assert_array_equal(
            backend.broadcast(there, source).view(np.int64), own.view(np.int64)
        )


def train(entry: dict[str, Any], out: Path, rank: int) -> dict[str, Any]:
    """Trains one case and returns its results."""
    overrides = entry.get("overrides", {}) | (entry.get("rank_1", {}) if rank == 1 else {})
    config = case_config(entry["case"], Path(entry.get("run", out / "run")), **overrides)
    callbacks: list[keras.callbacks.Callback] = [Drift()] if entry.get("drift") else []
    callbacks += [ReadsEachStep()] if entry["case"] == "sgd" else []
    if entry.get("stop_at") and rank == 0:
        callbacks.append(SignalAt(entry["stop_at"]))
    if entry.get("taken") and rank == 0:
        (out / "run").mkdir()
        (out / "run" / "thesis.txt").touch()
    calls: list[Any] = []
    products: list[Any] = []
    with contextlib.ExitStack() as stack:
        stack.callback(keras.config.set_dtype_policy, "float32")
        if entry.get("overflow"):
            stack.enter_context(overflow())
        if entry.get("without_guard"):
            stack.enter_context(replacing(state, "require_identical_state", lambda *_: None))
        if entry.get("same_dropout"):
            stack.enter_context(
                replacing(engine_step, "different_on_each_replica", lambda _: lambda o: o)
            )
        if entry.get("stop_at"):  # stays connected for the next entries
            stack.enter_context(replacing(Trainer, "_finish_stopped", lambda *_: None))
        stack.enter_context(replacing(Factors, "multiplied", counting(Factors.multiplied, calls)))
        # As on a CPU with matrix units.
        stack.enter_context(replacing(pointwise, "_products_are_faster", lambda: True))
        product = counting(pointwise._product, products)
        stack.enter_context(replacing(pointwise, "_product", product))
        if entry.get("without_memory") and rank == 1:
            stack.enter_context(replacing(os, "memfd_create", forbidden))
        try:
            trainer = Trainer(config, callbacks)
            start = trainer.model.get_weights()
            if entry.get("own_start") and rank == 1:
                trainer.model.set_weights([0 * weight for weight in start])
            if entry.get("without_reduction"):
                WithoutReduction(trainer)
            summary = trainer.fit()
        except DistcnnError as error:
            return {"error": str(error)}
    check_broadcast(trainer.setup.backend)
    if trainer.setup.backend.is_chief:
        np.savez(out / "weights.npz", *trainer.model.get_weights())
    moved = max(
        float(np.abs(a - b).max()) for a, b in zip(trainer.model.get_weights(), start, strict=True)
    )
    scale = getattr(trainer.setup.optimizer, "dynamic_scale", None)
    return {
        "summary": summary,
        "transport": trainer.setup.backend.transport,
        "bucket_bytes": trainer.setup.backend.bucket_bytes,
        "spare_thread": tf.config.threading.get_inter_op_parallelism_threads() > 0,
        "factored": len(calls),
        "products": len(products),
        "moved": moved,
        "sum_of_upcast": sum_of_upcast(trainer.setup.backend),
        "iterations": int(keras.ops.convert_to_numpy(trainer.setup.optimizer.iterations)),
        "scale": None if scale is None else float(keras.ops.convert_to_numpy(scale)),
    }


def fit_in_session(entry: dict[str, Any]) -> dict[str, Any]:
    """Fits a model as a user's script does, and returns what it computed."""
    random = np.random.default_rng(7)
    x, y = random.normal(size=(95, 8, 8, 1)).astype("f"), random.integers(0, 10, 95)
    distribute = DistributeConfig(**entry["distribute"])
    with session(config=ScriptConfig(virtual_workers=4, distribute=distribute)):
        keras.utils.set_random_seed(5)
        model = tiny((8, 8, 1), 10, dropout=0.5, norms=2)
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        history = model.fit(x, y, 18, 2, validation_split=0.2, verbose=0).history
        digest = hashlib.sha256(model.predict(x, 32, verbose=0).tobytes())
    for weight in model.get_weights():
        digest.update(weight.tobytes())
    return {
        "summary": {key: each[-1] for key, each in history.items()} | {"sha": digest.hexdigest()}
    }


def main(plan: Path, folder: Path) -> None:
    rank = find_cluster(os.environ).rank
    for entry in json.loads(plan.read_text()):
        out = folder / entry["name"]
        out.mkdir(parents=True, exist_ok=True)
        try:
            result = fit_in_session(entry) if "distribute" in entry else train(entry, out, rank)
        except Exception:
            result = {"error": traceback.format_exc()}
        (out / f"rank-{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
