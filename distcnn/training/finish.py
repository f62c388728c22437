"""The end of a run: which weights to keep, how good they are, and what is written."""

import dataclasses
import logging
import math
from typing import Any

import numpy as np

from distcnn.config.recipe import flatten, preprocessing_of_run
from distcnn.data.streaming import StreamedSplit
from distcnn.distribute.consistency import is_identical_everywhere
from distcnn.errors import DistcnnError
from distcnn.runtime.files import write_json
from distcnn.storage.checkpoint import Checkpoints, Progress, read_checkpoint
from distcnn.storage.model_file import save_model
from distcnn.storage.model_metadata import ModelMetadata
from distcnn.storage.run_directory import RunDirectory
from distcnn.storage.summary import log_summary, make_summary
from distcnn.training.callbacks.callback_list import TrainingCallbacks
from distcnn.training.callbacks.metrics import Row
from distcnn.training.setup import TrainingSetup

log = logging.getLogger("distcnn")


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A run at the end of its training.

    Attributes:
        progress: Its progress.
        rows: All rows of `metrics.jsonl`.
        callbacks: The callbacks, whose `on_train_end` is still to be called.
        logs: The logs of the last epoch; empty if nothing was left to train.
    """

    progress: Progress
    rows: list[Row]
    callbacks: TrainingCallbacks
    logs: dict[str, float]


class RunFinish:
    """Ends a run, in all processes together.

    Args:
        setup: The run.
        directory: Its directory.
        checkpoints: Its checkpoints.
    """

    def __init__(
        self, setup: TrainingSetup, directory: RunDirectory, checkpoints: Checkpoints
    ) -> None:
        self._setup = setup
        self._directory = directory
        self._checkpoints = checkpoints

    def finish(self, trained: TrainedRun) -> dict[str, Any]:
        """Selects the weights, ends the callbacks, tests, and writes model and summary.

        Returns:
            The content of `summary.json`.
        """
        saved_epoch = self._select_weights(trained.progress)
        changed = self._end_callbacks(trained)
        summary = self._summarise(trained, saved_epoch, validate_again=changed)
        self._save(summary)
        return summary

    def _select_weights(self, progress: Progress) -> int:
        """Puts the weights to save into the model: the best epoch's if known, their EMA if kept.

        Returns:
            The epoch they are from, counted from 1.
        """
        setup = self._setup
        epoch = math.ceil(progress.step / setup.sampler.steps_per_epoch)
        if setup.phases is not None and setup.config.train.early_stopping:
            setup.phases.enter_before(max(progress.best_step, 0))
        if setup.backend.run_on_chief(lambda: self._restore_best(progress.best_step)):
            setup.state.broadcast()
            epoch = progress.best_epoch + 1
        if setup.ema is not None:
            setup.ema.copy_to_model()
        return epoch

    def _restore_best(self, best_step: int) -> bool:
        """Restores the best epoch's state, if early stopping is on and there is one."""
        if not self._setup.config.train.early_stopping or best_step < 0:
            return False
        best = self._checkpoints.path(best_step)
        try:
            arrays, _ = read_checkpoint(best)
        except DistcnnError as error:
            raise DistcnnError(
                f"{error}; it is the best epoch's, whose weights --train.early_stopping keeps; "
                "restore the file, or start the run anew"
            ) from None
        self._setup.state.restore(arrays, str(best))
        return True

    def _end_callbacks(self, trained: TrainedRun) -> bool:
        """Calls the callbacks' `on_train_end` with the weights to save in the model.

        Returns:
            Whether one of them changed the weights, on any rank.
        """
        before = self._setup.model.get_weights()
        trained.callbacks.on_train_end(trained.logs)
        pairs = zip(before, self._setup.model.get_weights(), strict=True)
        changed = not all(np.array_equal(old, new, equal_nan=True) for old, new in pairs)
        return bool(self._setup.backend.sum(np.array([float(changed)]))[0])

    def _summarise(
        self, trained: TrainedRun, saved_epoch: int, *, validate_again: bool
    ) -> dict[str, Any]:
        """Evaluates the weights to save, and returns the content of `summary.json`.

        Args:
            trained: The trained run.
            saved_epoch: Epoch of the weights, counted from 1.
            validate_again: Whether they are no longer those that the epoch was validated with.
        """
        setup = self._setup
        test = setup.evaluate(setup.dataset.test) if setup.dataset.test else {}
        summary = make_summary(
            str(self._setup.config.recipe),
            setup.resolved(),
            trained.progress,
            trained.rows,
            setup.model.weights,
            saved_epoch=saved_epoch,
        )
        if validate_again and setup.dataset.validation is not None:
            results = setup.evaluate(setup.dataset.validation)
            summary |= {f"val_{name}": value for name, value in results.items()}
        summary["weights_agree"] = is_identical_everywhere(setup.backend, setup.model.weights)
        summary |= self._count_undecodable()
        test = {"loss": None, "accuracy": None} | test
        return summary | {f"test_{name}": value for name, value in test.items()}

    def _count_undecodable(self) -> dict[str, int]:
        """Counts the bad images that any rank has replaced, if they are checked when read."""
        dataset = self._setup.dataset
        parts = {id(part): part for part in (dataset.train, dataset.validation, dataset.test)}
        streamed = [part for part in parts.values() if isinstance(part, StreamedSplit)]
        if not streamed:
            return {}
        found = np.zeros(sum(map(len, streamed)))
        first = 0
        for part in streamed:
            found[first + part.unreadable()] = 1
            first += len(part)
        count = int(np.count_nonzero(self._setup.backend.sum(found)))
        if count:
            log.warning("warning: images that could not be decoded and were replaced: %d", count)
        return {"undecodable_images": count}

    def _save(self, summary: dict[str, Any]) -> None:
        self._setup.compile_for_saving()
        self._setup.backend.run_on_chief(lambda: self._write(summary))
        log_summary(self._directory.path, summary)

    def _division(self) -> dict[str, Any]:
        """Returns what a model must know to find its test images in data without splits."""
        config = self._setup.config
        if not self._setup.dataset.division:
            return {}
        fractions = {
            "test_split": config.data.test_split,
            "validation_split": config.data.validation_split,
        }
        return {"seed": config.train.seed} | {k: v for k, v in fractions.items() if v}

    def _write(self, summary: dict[str, Any]) -> None:
        config, setup = self._setup.config, self._setup
        self._directory.require_present()
        metadata = ModelMetadata(
            classes=setup.dataset.classes,
            pixels=setup.interface.pixels,
            logits=setup.objective.logits,
            task=setup.objective.task,
            test_flip=config.train.test_flip,
            test_shift=config.train.test_shift,
            preprocessing=preprocessing_of_run(flatten(dataclasses.asdict(config))),
            division=self._division(),
        )
        save_model(self._directory.path / "model.keras", setup.model, metadata)
        write_json(self._directory.path / "summary.json", summary)
