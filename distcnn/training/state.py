"""The state of a run, held by every replica: restoring, broadcasting and synchronising it."""

from collections.abc import Collection, Sequence
from typing import Any

import keras
import numpy as np

from distcnn.distribute.base import Backend
from distcnn.distribute.consistency import (
    average_across_replicas,
    broadcast_variables,
    require_identical_state,
)
from distcnn.optim.ema import AVERAGED_TYPES
from distcnn.storage.checkpoint import by_key, paths_in, restore
from distcnn.training.step import TrainingStep


class TrainState:
    """The weights, optimizer state, averages and metrics of a run.

    Args:
        backend: Runs the replicas.
        model: The built classifier.
        optimizers: Its built optimizers.
        training: The training step, which holds the averages and the epoch's metrics.
    """

    def __init__(
        self,
        backend: Backend,
        model: keras.Model,
        optimizers: Sequence[keras.optimizers.Optimizer],
        training: TrainingStep,
    ) -> None:
        self._backend = backend
        self._model = model
        self._optimizers = optimizers
        self._training = training
        self._frozen: set[int] = set()

    def begin_phase(
        self, optimizers: Sequence[keras.optimizers.Optimizer], frozen: Collection[Any]
    ) -> None:
        """Replaces the optimizers by other ones.

        Args:
            optimizers: The new optimizers.
            frozen: Variables that the phase keeps from being trained, and so from changing.
        """
        self._optimizers = optimizers
        self._frozen = {id(variable) for variable in frozen}

    @property
    def variables(self) -> dict[str, list[Any]]:
        """All variables by group, in the order in which checkpoints store them."""
        ema = self._training.ema
        metrics = {id(v) for metric in self._model.metrics for v in metric.variables}
        return {
            "model": [v for v in self._model.variables if id(v) not in metrics],
            "optimizer": [v for each in self._optimizers for v in each.variables],
            "average": ema.variables if ema else [],
            "metrics": self._training.metric_totals,
        }

    def restore(self, arrays: dict[str, np.ndarray], origin: str) -> None:
        """Assigns a checkpoint's arrays in this process; call `broadcast` for the other ones."""
        restore(self.variables, arrays, origin)

    def take_over(self, arrays: dict[str, np.ndarray], origin: str) -> None:
        """Assigns the state of another run in this process, except for its learning rate.

        Averages of the weights start from its weights if it has none.

        Raises:
            DistcnnError: If it is the state of another model or optimizer.
        """
        variables = self.variables
        paths = {key: getattr(v, "path", key) for key, v in by_key(variables).items()}
        now = _without_rate({k: p for k, p in paths.items() if k.startswith("optimizer/")})
        stored = paths_in(arrays)
        then = _without_rate({k: p for k, p in stored.items() if k.startswith("optimizer/")})
        named = by_key(variables)
        variables["optimizer"] = [named[key] for key in now]
        taken = {key: a for key, a in arrays.items() if not key.startswith("optimizer/")}
        taken |= {f"optimizer/{index:04d}": arrays[key] for index, key in enumerate(then)}
        averages = [key for key in taken if key.startswith("average/")]
        restarts = len(averages) != len(variables["average"])
        if restarts:
            variables["average"] = []
            taken = {key: a for key, a in taken.items() if key not in averages}
        restore(variables, taken, origin)
        if restarts and self._training.ema is not None:
            self._training.ema.restart()

    def broadcast(self, source: int = 0) -> None:
        """Copies the state of one rank, by default the chief's, to every replica."""
        variables = [v for group in self.variables.values() for v in group]
        broadcast_variables(self._backend, variables, source)
        self._training.continue_metrics()

    def synchronise(self) -> None:
        """Averages what each replica updates by itself, then checks that all hold the same state.

        Raises:
            ReplicaMismatchError: Names the first variable that differs, and the replicas.
        """
        ema = self._training.ema
        self._training.collect_metrics()
        statistics = [
            weight
            for weight in self._model.non_trainable_weights
            if weight.dtype in AVERAGED_TYPES and id(weight) not in self._frozen
        ]
        average_across_replicas(self._backend, [*statistics, *(ema.statistics if ema else ())])
        require_identical_state(self._backend, self.variables, self._training.step)


def _without_rate(paths: dict[str, str]) -> list[str]:
    """Returns the keys of an optimizer's variables in order, without that of its learning rate."""
    return [key for key in sorted(paths) if not paths[key].endswith("learning_rate")]
