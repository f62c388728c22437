"""Times the sides in turn: one process for each, of which only one computes at a time."""

import contextlib
import json
import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distcnn.benchmarking.peers.results import PeerComparison, PeerRow
from distcnn.benchmarking.peers.spec import FRAMEWORKS, PeerSpec
from distcnn.benchmarking.process_groups import environment_of_children, quote_failure, terminate
from distcnn.benchmarking.progress import Budget, Heartbeat, Say, rounds
from distcnn.benchmarking.statistics import ratio_of_quartiles
from distcnn.errors import DistcnnError, UsageError
from distcnn.runtime.files import parse_json
from distcnn.runtime.rank_process import die_with_parent
from distcnn.storage.environment import describe_environment

_REST = 0.05
"""Seconds before each turn, in which the threads of the previous side stop spinning."""

_TURN_SECONDS = 0.25
_MOST_STEPS = 5
_LONG_STEP = 0.5
"""Seconds of a step that a cold cache does not change much, so that no untimed one precedes it."""

_BEAT = 5.0


class OutOfTimeError(Exception):
    """A side was not ready within the budget."""


class SideProcess:
    """A running side.

    Args:
        name: "distcnn", or the name of a peer.
        task: What the process is told; see `distcnn.benchmarking.peers.side.Task`.
        folder: Folder for its files.
        heartbeat: Takes lines of progress.
    """

    def __init__(self, name: str, task: dict[str, Any], folder: Path, heartbeat: Heartbeat) -> None:
        self.name = name
        self.turns: list[list[float]] = []
        self.loss = math.nan
        self.steps_per_turn = 1
        self._idle = [0.0, 0.0]
        self._heartbeat = heartbeat
        self._log = folder / f"{name}.txt"
        file = folder / f"{name}.json"
        file.write_text(json.dumps(task))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "distcnn.benchmarking.peers.process", str(file)],
                env=environment_of_children(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_until_ready(self, budget: Budget | None) -> dict[str, Any]:
        """Waits until the side is built; returns its description.

        Args:
            budget: How long to wait, or None for as long as it takes.

        Raises:
            OutOfTimeError: If it takes longer.
            DistcnnError: If the process fails.
        """
        while "ready" not in (answer := self._next(budget)):
            self._heartbeat.line(f"{self.name}: {answer['say']}")
        description: dict[str, Any] = answer["ready"]
        return description

    def warm_up(self) -> None:
        """Trains a few steps, and chooses how many a turn has."""
        seconds = min(self._run(3))
        self.steps_per_turn = max(1, min(_MOST_STEPS, math.ceil(_TURN_SECONDS / seconds)))
        self._lead = 0 if seconds > _LONG_STEP else 1
        self._idle = [0.0, 0.0]

    def turn(self) -> None:
        """Times one turn.

        Raises:
            DistcnnError: If the process fails, or the loss is no number.
        """
        time.sleep(_REST)
        self.turns.append(self._run(self._lead + self.steps_per_turn)[self._lead :])

    @property
    def idle_cores(self) -> float:
        """How many cores the process kept busy while it waited, on average."""
        return self._idle[0] / max(self._idle[1], 1e-9)

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(OSError):
            if self._process.stdin:
                self._process.stdin.close()
        terminate(self._process)
        self._process.wait()
        self._reader.join()
        if self._process.stdout:
            self._process.stdout.close()

    def _run(self, steps: int) -> list[float]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the answer then says what happened
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
        answer = self._next(None)
        self.loss = answer["loss"]
        self._idle[0] += answer["idle_cores"] * answer["waited"]
        self._idle[1] += answer["waited"]
        if not math.isfinite(self.loss):
            raise DistcnnError(
                f"the loss of {self.name} is {self.loss}, so its times mean nothing; lower "
                "--optimizer.lr"
            )
        seconds: list[float] = answer["seconds"]
        return seconds

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _next(self, budget: Budget | None) -> dict[str, Any]:
        while True:
            if budget is not None and budget.left <= 0:
                raise OutOfTimeError
            try:
                line = self._answers.get(timeout=_BEAT)
            except queue.Empty:
                self._heartbeat.beat()
                continue
            if line is None:
                self._process.wait()
                raise quote_failure(self.name, self._log)
            answer: dict[str, Any] = parse_json(line)
            return answer


def compare_with_peers(
    config: str,
    peers: Sequence[str],
    steps: int,
    folder: Path,
    budget: Budget,
    cores: int,
    say: Say,
) -> PeerComparison:
    """Times the training step of distcnn, twice, and of its peers.

    In each round, every side has one turn of a few steps on a batch that stays in memory; the round
    after that begins with the next side. A side that waits blocks on a pipe.

    Args:
        config: File of the configuration of the run on one device.
        peers: Names of the peers.
        steps: Number of steps of distcnn to time, if the budget suffices.
        folder: Folder for the files of the processes.
        budget: Time for building and timing; every side is timed at least once. A peer that is not
            built in time is left out.
        cores: Number of cores that each side computes on.
        say: Takes lines of progress.

    Raises:
        UsageError: If a peer cannot compute the step.
        DistcnnError: If a side fails, or has another number of parameters.
    """
    folder.mkdir(parents=True, exist_ok=True)
    load_before = os.getloadavg()[0]
    missing: list[str] = []
    heartbeat = Heartbeat(say)
    with _running(config, peers, folder, budget, cores, heartbeat, missing) as (sides, described):
        ours = sides[0]
        heartbeat.line("timing in turn")
        wanted = math.ceil(steps / ours.steps_per_turn)
        measured = 0
        for number in rounds("timing in turn", wanted, budget, heartbeat.line):
            first = number % len(sides)
            for side in (*sides[first:], *sides[:first]):
                side.turn()
            measured = number + 1
    spec = PeerSpec.read(folder / "spec.json")
    rows = [_row(side, described[side.name], ours, spec.batch) for side in sides]
    return PeerComparison(
        batch=spec.batch,
        rounds=measured,
        noise=max(rows[1].ratio_high - 1, 1 - rows[1].ratio_low),
        cpu=describe_environment(None, {})["cpu"],
        gpu=spec.gpu,
        cores=cores,
        load_before=load_before,
        load_after=os.getloadavg()[0],
        seconds=budget.spent,
        rows=tuple(rows),
        missing=tuple(missing),
    )


@contextlib.contextmanager
def _running(
    config: str,
    peers: Sequence[str],
    folder: Path,
    budget: Budget,
    cores: int,
    heartbeat: Heartbeat,
    missing: list[str],
) -> Iterator[tuple[list[SideProcess], dict[str, dict[str, Any]]]]:
    """Builds and warms up the sides one after the other, and ends them at the end."""
    sides: list[SideProcess] = []
    described: dict[str, dict[str, Any]] = {}
    names = ("distcnn", "distcnn again", *peers)
    try:
        for position, name in enumerate(names):
            heartbeat.line(f"{name}: building, {budget.left:.0f} s of the budget left")
            own = name.startswith("distcnn")
            # Trying settings may take half of what is left for this side.
            tuning = max(budget.left, 0.0) / (len(names) - position) / 2
            task = {
                "side": "distcnn" if own else name,
                "config": config,
                "folder": str(folder),
                "describe": position == 0,
                "cores": cores,
                "budget": tuning,
            }
            side = SideProcess(name, task, folder, heartbeat)
            sides.append(side)
            try:
                described[name] = side.wait_until_ready(None if own else budget)
            except OutOfTimeError:
                sides.remove(side)
                side.close()
                missing.append(
                    f"{name} was not ready within the budget of {budget.seconds:.0f} s; raise "
                    "--budget"
                )
                heartbeat.line(missing[-1])
                continue
            spec = PeerSpec.read(folder / "spec.json")
            if set(peers) & set(FRAMEWORKS) and spec.without_equivalent:
                raise UsageError(spec.without_equivalent)
            require_same_model(name, described[name], spec)
            side.warm_up()
        yield sides, described
    finally:
        for side in sides:
            side.close()


def require_same_model(name: str, description: dict[str, Any], spec: PeerSpec) -> None:
    """Checks that a side trains the model of the run.

    Raises:
        DistcnnError: If it has another number of parameters.
    """
    received = description["parameters"]
    if received != spec.parameters:
        raise DistcnnError(
            f"the {spec.model} of {name} has {received:,} parameters; expected the "
            f"{spec.parameters:,} of the Keras model; the two are not the same model"
        )


def _row(side: SideProcess, description: dict[str, Any], ours: SideProcess, batch: int) -> PeerRow:
    times = [float(np.median(turn)) for turn in side.turns]
    reference = [float(np.median(turn)) for turn in ours.turns]
    ratio, low, high = ratio_of_quartiles(times, reference)
    step_ms = 1e3 * float(np.percentile(times, 25))
    again = " again" if side.name.endswith("again") else ""
    return PeerRow(
        title=description["title"] + again,
        precision=description["precision"],
        step_ms=step_ms,
        images_per_second=1e3 * batch / step_ms,
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        steps=sum(map(len, side.turns)),
        settings=tuple(description["settings"]),
        loss=side.loss,
        idle_cores=side.idle_cores,
    )
