"""The trials of a search in Optuna, kept in a journal file in the search's folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from distcnn.searching.space import Space

_NAME = "search"
_TRIALS_BEFORE_PRUNING = 5

PRUNERS = ("median", "asha", "none")
"""The names of the pruners."""

STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}
"""The states of a trial, in words."""


@dataclass(frozen=True)
class Row:
    """A trial, for tables and plots.

    Attributes:
        number: Its number, from 0.
        state: One of `STATES`.
        value: The metric at its end, or when it was pruned; None without one.
        settings: The values that were varied, by key.
        values: The metric by epoch.
        attributes: What was noted of it: `seconds`, `reason`.
    """

    number: int
    state: str
    value: float | None
    settings: dict[str, Any]
    values: dict[int, float]
    attributes: dict[str, Any]


class Study:
    """The trials of a search.

    Args:
        folder: The search's folder.
        space: What is varied.
        metric: What is compared; the least is best if its name holds `loss`, else the greatest.
        pruner: One of `PRUNERS`.
        seed: Seed of the suggestions.
    """

    def __init__(self, folder: Path, space: Space, metric: str, pruner: str, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        self.minimises = "loss" in metric
        journal = JournalFileBackend(str(folder / "journal.log"))
        self._storage = storage = optuna.storages.JournalStorage(journal)
        self._study = optuna.create_study(
            study_name=_NAME,
            storage=storage,
            direction="minimize" if self.minimises else "maximize",
            pruner=_pruner(pruner),
            load_if_exists=True,
        )
        # A sampler of the same seed would repeat its suggestions after a restart.
        seed += len(self._study.trials)
        self._study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)

    def __len__(self) -> int:
        return len(self._study.trials)

    def unfinished(self) -> list[int]:
        """Returns the numbers of the trials that a search has left running."""
        found = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        # One that was killed before it had all its values has none to go on with.
        for trial in found:
            if set(trial.params) != set(self._space):
                self._study.tell(trial.number, state=TrialState.FAIL)
        return [trial.number for trial in found if set(trial.params) == set(self._space)]

    def ask(self) -> int:
        """Begins a trial and returns its number."""
        trial = self._study.ask()
        for key, setting in self._space.items():
            setting.suggest(trial, key)
        return trial.number

    def settings(self, number: int) -> dict[str, Any]:
        """Returns the values of a trial by key."""
        params = self._study.trials[number].params
        return {key: params[key] for key in self._space}

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Notes a trial's metric after an epoch, and returns whether to stop the trial."""
        trial = self._trial(number)
        if epoch not in self._study.trials[number].intermediate_values:
            trial.report(value, epoch)
        return trial.should_prune()

    def finish(self, number: int, value: float, **attributes: Any) -> None:
        """Notes that a trial is done."""
        self._note(number, attributes)
        self._study.tell(number, value)

    def prune(self, number: int, **attributes: Any) -> None:
        """Notes that a trial was stopped, with the metric of its last epoch."""
        self._note(number, attributes)
        self._study.tell(number, state=TrialState.PRUNED)

    def fail(self, number: int, reason: str) -> None:
        """Notes that a trial ended with an error."""
        self._note(number, {"reason": reason})
        self._study.tell(number, state=TrialState.FAIL)

    def _note(self, number: int, attributes: dict[str, Any]) -> None:
        trial = self._trial(number)
        for name, value in attributes.items():
            trial.set_user_attr(name, value)

    def _trial(self, number: int) -> optuna.trial.Trial:
        """Returns a trial that may have been begun by an earlier search."""
        study = self._storage.get_study_id_from_name(_NAME)
        known = self._storage.get_trial_id_from_study_id_trial_number(study, number)
        return optuna.trial.Trial(self._study, known)

    def rows(self) -> list[Row]:
        """Returns all trials by number."""
        return [
            Row(
                trial.number,
                STATES.get(trial.state, trial.state.name.lower()),
                trial.value,
                {key: trial.params.get(key) for key in self._space},
                dict(trial.intermediate_values),
                dict(trial.user_attrs),
            )
            for trial in self._study.get_trials(deepcopy=False)
        ]

    def best(self) -> Row | None:
        """Returns the best of the finished trials, or None."""
        done = [row for row in self.rows() if row.state == "finished" and row.value is not None]
        return best_of(done, minimises=self.minimises)

    def importances(self) -> dict[str, float]:
        """Returns how much of the variance of the metric each key explains; empty if unknown."""
        done = [row for row in self.rows() if row.state == "finished"]
        if len(done) < 2 or len({row.value for row in done}) < 2:
            return {}
        found: dict[str, float] = optuna.importance.get_param_importances(
            self._study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
        )
        return found


def best_of(rows: Sequence[Row], *, minimises: bool) -> Row | None:
    """Returns the best of some trials that have a value; the first of equal ones."""
    sign = -1 if minimises else 1
    return max(rows, key=lambda row: (sign * (row.value or 0.0), -row.number), default=None)


def _pruner(name: str) -> optuna.pruners.BasePruner:
    if name == "median":
        return optuna.pruners.MedianPruner(_TRIALS_BEFORE_PRUNING, n_warmup_steps=1)
    if name == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    return optuna.pruners.NopPruner()
