"""The tracker `mlflow`: a run in MLflow's store, the one of MLFLOW_TRACKING_URI or a local one."""

import contextlib
import fcntl
import getpass
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow

from distcnn.training.tracking.values import files_of, numbers, results

_KIND = "mlflow.experimentKind"
_LONGEST = 500  # the limit of a parameter's value in older servers


class MlflowRun:
    """One run in MLflow, for the whole life of the run directory.

    Args:
        folder: The run directory.
        config: The configuration by dotted key.
        experiment: Name of MLflow's experiment.
        identity: The run's identity if it was begun before, else empty.
    """

    def __init__(
        self, folder: Path, config: dict[str, Any], experiment: str, identity: str
    ) -> None:
        for name in ("mlflow", "alembic"):  # they report each table of a new store
            logging.getLogger(name).setLevel(logging.WARNING)
        self._folder = folder
        self._finished = False
        with _alone(mlflow.get_tracking_uri()):
            self._client = mlflow.MlflowClient()
            place = "" if identity else self._experiment(experiment)
        self.identity = identity or self._begin(config, place)
        self._client.update_run(self.identity, status="RUNNING")

    def _experiment(self, name: str) -> str:
        """Returns the identity of the experiment, which is made if there is none."""
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                place: str = self._client.create_experiment(name)
            except mlflow.exceptions.MlflowException:
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
            else:  # or MLflow takes it for one of language models
                self._client.set_experiment_tag(place, _KIND, "custom_model_development")
                return place
        identity: str = found.experiment_id
        return identity

    def _begin(self, config: dict[str, Any], place: str) -> str:
        tags = {"mlflow.source.name": " ".join(sys.argv)}
        with contextlib.suppress(KeyError, OSError):  # a user without a name, as in containers
            tags["mlflow.user"] = getpass.getuser()
        run = self._client.create_run(place, tags=tags, run_name=self._folder.name)
        name: str = run.info.run_id
        values = [
            mlflow.entities.Param(key, str(value)[:_LONGEST]) for key, value in config.items()
        ]
        for start in range(0, len(values), 100):  # as many as a request may hold
            self._client.log_batch(name, params=values[start : start + 100])
        return name

    def log(self, row: dict[str, Any]) -> None:
        """Logs the numbers of a row at its step."""
        now = mlflow.utils.time.get_current_time_millis()
        metrics = [
            mlflow.entities.Metric(key, value, now, row["step"])
            for key, value in numbers(row).items()
        ]
        self._client.log_batch(self.identity, metrics=metrics)

    def finish(self, summary: dict[str, Any]) -> None:
        """Logs the results and the files, and ends the run."""
        for key, value in results(summary).items():
            self._client.log_metric(self.identity, f"final_{key}", value, step=summary["steps"])
        for file in files_of(self._folder):
            self._client.log_artifact(self.identity, str(file))
        self._client.set_terminated(self.identity, "FINISHED")
        self._finished = True

    def close(self) -> None:
        """Marks an unfinished run as stopped; resuming it marks it as running again."""
        if not self._finished:
            self._client.set_terminated(self.identity, "KILLED")


@contextlib.contextmanager
def _alone(store: str) -> Iterator[None]:
    """Keeps other runs of this machine from making the same local database at the same time."""
    if not store.startswith("sqlite:"):
        yield
        return
    database = urlsplit(store).path[1:]  # sqlite:///FILE
    with Path(f"{database}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def open_run(folder: Path, config: dict[str, Any], experiment: str, identity: str) -> MlflowRun:
    """Returns the run in MLflow, begun or continued."""
    return MlflowRun(folder, config, experiment, identity)
