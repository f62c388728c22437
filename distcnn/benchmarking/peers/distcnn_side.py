"""The step as distcnn trains it."""

import os
from typing import Any

import numpy as np

from distcnn.benchmarking.peers.graph import Node
from distcnn.benchmarking.peers.side import Task
from distcnn.benchmarking.peers.spec import PRECISIONS, PeerSpec
from distcnn.benchmarking.progress import Say
from distcnn.cli.parser import parse_config
from distcnn.cli.startup import import_tensorflow
from distcnn.errors import UsageError
from distcnn.runtime.cluster import find_cluster
from distcnn.version import __version__


class DistcnnSide:
    """Trains the step of the run.

    Args:
        setup: The run on one device.
        say: Takes lines of progress.
    """

    def __init__(self, setup: Any, say: Say) -> None:
        from distcnn.benchmarking.peers.keras_graph import parameters_of
        from distcnn.benchmarking.step_timing import TimedSteps, resident_batch

        say("tracing the step")
        self._setup = setup
        self._timed = TimedSteps(setup.training, resident_batch(setup))
        self.title = f"distcnn {__version__}"
        self.precision = setup.precision.policy
        self.parameters = parameters_of(setup.model)
        self.settings = [
            f"fast form {'on' if setup.fast_path else 'off'}",
            f"XLA {'on' if setup.precision.xla else 'off'}",
            f"{setup.config.train.steps_per_execution} steps an execution",
        ]

    def run(self, steps: int) -> list[float]:
        """Trains; returns the seconds of each step."""
        self._setup.training.reset_metrics()
        self._timed.reset()
        while len(self._timed.seconds) < steps:
            self._timed.repeat()
        return self._timed.seconds

    def loss(self) -> float:
        """Returns the mean loss of the last turn."""
        return float(self._setup.training.metrics()["loss"])


def build(task: Task, say: Say) -> DistcnnSide:
    """Builds the side of this module, and describes the step for the other ones."""
    setup = build_setup_of(task, say)
    side = DistcnnSide(setup, say)
    if task.describe:
        images, labels, _ = next(iter(setup.training_batches(0)))
        task.write_batch(images.numpy(), labels.numpy())
        describe(setup).write(task.spec_file)
    return side


def build_setup_of(task: Task, say: Say) -> Any:
    """Builds the run on one device that a task is about."""
    say("importing TensorFlow")
    import_tensorflow()
    from distcnn.distribute.context import join_run
    from distcnn.training.build import build_setup

    config = parse_config("distcnn.benchmark", "", ["--recipe", task.config])
    assert config is not None
    say("building the model")
    return build_setup(config, join_run(config, find_cluster(os.environ), cores_are_bound=True))


def describe(setup: Any) -> PeerSpec:
    """Describes the step of a run to other frameworks.

    Raises:
        UsageError: If its owner has compiled the model, so that the loss is not known.
    """
    from distcnn.benchmarking.peers.keras_graph import graph_of, parameters_of
    from distcnn.data.pixels import PIXEL_RANGES

    config = setup.config
    if setup.objective.is_own:
        raise UsageError(
            "the model is compiled by its owner; other frameworks are compared with a model that "
            "is not compiled"
        )
    nodes: tuple[Node, ...] = ()
    without_equivalent = ""
    try:
        nodes = tuple(graph_of(setup.model))
    except UsageError as error:
        without_equivalent = str(error)
    if setup.objective.task != "classification":
        without_equivalent = f"the labels are for {setup.objective.task}; compare it with plain"
    if setup.precision.policy not in PRECISIONS:  # chosen by auto
        without_equivalent = (
            f"precision.policy is {setup.precision.policy}; other frameworks are compared in "
            f"{' or '.join(PRECISIONS)}"
        )
    scale, offset = PIXEL_RANGES[setup.interface.pixels]
    return PeerSpec(
        model=setup.model.name,
        parameters=parameters_of(setup.model),
        image_shape=tuple(setup.model.input_shape[1:]),
        classes=len(setup.dataset.classes),
        batch=setup.sampler.global_batch_size,
        precision=setup.precision.policy,
        optimizer=config.optimizer.name,
        learning_rate=float(np.float32(setup.peak_rate)),
        momentum=float(config.optimizer.momentum),
        pixel_scale=scale,
        pixel_offset=offset,
        gpu=setup.context.hardware.gpu,
        tf32=config.precision.tf32,
        nodes=nodes,
        without_equivalent=without_equivalent,
    )
