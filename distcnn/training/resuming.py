"""Starting a run from the state of another, or from its weights alone.

`--checkpoint.resume PATH` takes the state. The configuration of the new run wins: its learning
rate, schedule, batch size and data. The other run's state is taken over from the end of an epoch,
or from any step if steps mean the same in both. `--init_from PATH` takes the weights.
"""

import dataclasses
import logging
import math
from pathlib import Path

from distcnn.errors import UsageError
from distcnn.storage.checkpoint import Progress, find_checkpoint
from distcnn.training.setup import TrainingSetup

log = logging.getLogger("distcnn")


def start_from(setup: TrainingSetup, path: str) -> Progress:
    """Gives a new run the state of another one; called in the chief alone.

    Args:
        setup: The new run.
        path: A run directory or a checkpoint file.

    Returns:
        Where the new run starts.

    Raises:
        DistcnnError: If there is no checkpoint, or it is the state of another model.
        UsageError: If the other run stopped within an epoch whose steps mean something else here,
            or has trained all epochs already.
    """
    arrays, progress = find_checkpoint(Path(path))
    step = _converted_step(setup, progress, path)
    setup.state.take_over(arrays, path)
    if step != progress.step:
        setup.optimizer.iterations.assign(step)
    log.info("starting from   %s at step %d, as step %d", path, progress.step, step)
    # The best epoch's checkpoint is in the other run's folder; this run looks for its own.
    return dataclasses.replace(
        progress,
        step=step,
        best_epoch=-1,
        best_loss=math.inf,
        best_step=-1,
        stopped=False,
        steps_per_epoch=setup.sampler.steps_per_epoch,
    )


def take_initial_weights(setup: TrainingSetup) -> None:
    """Gives a new run the weights that `init_from` names, if any; called in the chief alone.

    Raises:
        DistcnnError: If there is no such model, or it has another architecture.
    """
    config, here = setup.config, setup.interface.pixels
    if config.init_from is None:
        return
    from distcnn.models.initial import take_weights  # imported only if asked for

    taken = take_weights(
        setup.model,
        Path(config.init_from),
        factory=config.model.factory,
        classes=setup.dataset.classes,
    )
    if setup.ema is not None:
        setup.ema.restart()
    log.info("weights of      %s", taken.description)
    there = taken.metadata.pixels if taken.metadata else here
    if there != here:
        log.warning(
            "warning: the weights of %s were trained on pixels of the range %s, but this run has "
            "%s; add --data.pixels %s",
            config.init_from,
            there,
            here,
            there,
        )


def _converted_step(setup: TrainingSetup, progress: Progress, path: str) -> int:
    steps, epochs = setup.sampler.steps_per_epoch, setup.config.train.epochs
    step = progress.step
    if progress.steps_per_epoch not in (0, steps):
        epochs_done, rest = divmod(step, progress.steps_per_epoch)
        if rest:
            raise UsageError(
                f"checkpoint.resume is {path}, which stopped at step {rest} of "
                f"{progress.steps_per_epoch} within an epoch, but here an epoch has {steps} steps; "
                "use the same images and batch size, or a checkpoint from the end of an epoch"
            )
        step = epochs_done * steps
    if step >= epochs * steps:
        raise UsageError(
            f"checkpoint.resume is {path}, which has trained {step // steps} epochs, and "
            f"train.epochs is {epochs}, so nothing is left to train; raise --train.epochs"
        )
    return step
