"""The phases of a run: which layers are trained in which epochs, and by which optimizer.

Each phase begins with a new optimizer, as after `compile` in Keras' guide to transfer learning: its
moments are 0, and its count of updates, which its learning-rate schedule follows, too. So a state
at the border of two phases is that of the first one, to which its optimizer belongs.
"""

import dataclasses
import itertools
import logging
from collections.abc import Callable

import keras
import numpy as np

from distcnn.config import Config, OptimizerConfig
from distcnn.config.sections.phase import Phase
from distcnn.distribute.base import Backend
from distcnn.errors import UsageError
from distcnn.models.depth import Freezing
from distcnn.optim.optimizers import scaled_learning_rate
from distcnn.runtime.keras_internals import learned_variables
from distcnn.runtime.keras_steps import replace_optimizer
from distcnn.training.state import TrainState
from distcnn.training.step import TrainingStep

log = logging.getLogger("distcnn")

BuildOptimizer = Callable[[OptimizerConfig, int], keras.optimizers.Optimizer]
"""From the settings of an optimizer and its epochs to a built one for what the model trains now."""


class Phases:
    """Trains some layers first, then more; begins with the first phase.

    All processes call the methods together; the constructor in the backend's scope.

    Args:
        config: The configuration of the run.
        backend: Runs the replicas.
        model: The built classifier, not compiled.
        steps_per_epoch: Steps per epoch.
        global_batch_size: Images per step.
        build: Builds an optimizer.

    Attributes:
        optimizer: The optimizer of the current phase.

    Raises:
        UsageError: If a phase trains more layers than there are.
    """

    def __init__(
        self,
        config: Config,
        backend: Backend,
        model: keras.Model,
        steps_per_epoch: int,
        global_batch_size: int,
        build: BuildOptimizer,
    ) -> None:
        self._config = config.optimizer
        self._backend = backend
        self._model = model
        self._build = build
        self._batch = global_batch_size
        self._phases = config.train.parsed_phases
        self._ends = list(itertools.accumulate(p.epochs * steps_per_epoch for p in self._phases))
        self._freezing = Freezing(model)
        self._require_layers()
        self._begin(0)

    def _require_layers(self) -> None:
        there = len(self._freezing.groups)
        for phase in self._phases:
            if phase.layers is not None and phase.layers > there:
                raise UsageError(
                    f"train.phases trains {phase.train!r}, but the model has {there} layers with "
                    f"weights; expected at most {there}, or all"
                )

    def attach(self, training: TrainingStep, state: TrainState) -> None:
        """Names what a new phase changes besides the model."""
        self._training = training
        self._state = state
        state.begin_phase([self.optimizer], self._freezing.frozen)

    @property
    def borders(self) -> list[tuple[int, int]]:
        """The global steps at which each phase begins and ends."""
        return list(itertools.pairwise([0, *self._ends]))

    @property
    def last_peak(self) -> float:
        """The peak learning rate of the last phase, scaled for the global batch."""
        return scaled_learning_rate(self._settings(self._phases[-1]), self._batch)

    def described(self) -> list[str]:
        """Returns a line for each phase."""
        return [self._describe(index) for index in range(len(self._phases))]

    def enter(self, step: int) -> None:
        """Begins the phase to which a step belongs, unless it is the current one.

        Args:
            step: The global step that is trained next.
        """
        if self._enter(sum(step >= end for end in self._ends[:-1])):
            log.info("phase           %s", self._describe(self._current))

    def enter_before(self, step: int) -> None:
        """Begins the phase of the step that a state was saved after, before it is restored.

        Args:
            step: Number of global steps completed.
        """
        self._enter(sum(step > end for end in self._ends[:-1]))

    def release(self) -> None:
        """Freezes nothing any more, so that the model is saved as it was built."""
        self._freezing.release()

    def _enter(self, index: int) -> bool:
        if index == self._current:
            return False
        with self._backend.scope():
            self._begin(index)
        self._backend.disable_reduction(self.optimizer)
        replace_optimizer(self._model, self.optimizer)
        self._state.begin_phase([self.optimizer], self._freezing.frozen)
        self._training.retrace()
        return True

    def _begin(self, index: int) -> None:
        phase = self._phases[index]
        self._current = index
        self._freezing.train_last(phase.layers, freeze_batchnorm=phase.freeze_batchnorm)
        self.optimizer = self._build(self._settings(phase), phase.epochs)

    def _settings(self, phase: Phase) -> OptimizerConfig:
        if phase.learning_rate is None:
            return self._config
        return dataclasses.replace(self._config, lr=phase.learning_rate)

    def _describe(self, index: int) -> str:
        phase, groups = self._phases[index], self._freezing.groups
        trained = groups[-phase.layers :] if phase.layers is not None else groups
        variables = [v for group in trained for layer in group for v in learned_variables(layer)]
        weights = sum(int(np.prod(variable.shape)) for variable in variables)
        rate = scaled_learning_rate(self._settings(phase), self._batch)
        fixed = ", batch normalisation frozen" if phase.freeze_batchnorm else ""
        return (
            f"{index + 1} of {len(self._phases)}: {phase.epochs} epochs of {phase.train} "
            f"({len(trained)} of {len(groups)} layers, {weights:,} weights{fixed}) at {rate:g}"
        )
