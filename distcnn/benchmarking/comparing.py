"""Compares a training step with plain Keras, other frameworks and its floor, within a budget."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distcnn.benchmarking.machine import Machine
from distcnn.benchmarking.peers.results import Floor, PeerComparison
from distcnn.benchmarking.peers.rounds import compare_with_peers
from distcnn.benchmarking.peers.spec import FRAMEWORKS, PLAIN
from distcnn.benchmarking.process_groups import run_workers
from distcnn.benchmarking.progress import Budget, print_progress
from distcnn.benchmarking.results import Comparison
from distcnn.distribute.strategies import default_strategy


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The results of comparisons.

    Attributes:
        with_plain: Training, input, evaluation and prediction against plain Keras.
        with_peers: The training step against other frameworks, or None.
        floor: The training step against its convolutions and products, or None.
    """

    with_plain: tuple[Comparison, ...] = ()
    with_peers: PeerComparison | None = None
    floor: Floor | None = None


@dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
    """What to compare a training step with.

    Attributes:
        peers: Names of the peers; see `distcnn.benchmarking.peers.spec`.
        steps: Number of training steps of each side, if the budget suffices.
        floor: Whether to time the convolutions and products alone.
        seconds: Budget of time for everything together.
    """

    peers: tuple[str, ...] = ()
    steps: int = 100
    floor: bool = False
    seconds: float = 600.0

    def __bool__(self) -> bool:
        """Whether there is anything to compare."""
        return bool(self.peers) or self.floor

    def run(self, config: str, machine: Machine, folder: Path) -> Compared:
        """Runs the comparisons, each on all cores.

        Args:
            config: File of the configuration of the run on one device.
            machine: The hardware.
            folder: Folder for the files of the processes.

        Raises:
            DistcnnError: If a process fails.
        """
        budget = Budget(self.seconds)
        results: dict[str, Any] = {}
        tasks = self._tasks(config, machine, folder)
        weights = [weight for _, weight, _ in tasks]
        for number, (name, weight, task) in enumerate(tasks):
            part = budget.part(weight / sum(weights[number:]))
            results[name] = task(part)
        return Compared(**results)

    def _tasks(
        self, config: str, machine: Machine, folder: Path
    ) -> list[tuple[str, int, Callable[[Budget], Any]]]:
        """Returns what to measure, with the weight of each in the budget."""
        cores = None if machine.gpus else machine.cores

        def group(kind: str, budget: Budget) -> Any:
            arguments = {"repeats": self.steps, "budget": [budget.seconds, budget.start]}
            entry = {"kind": kind, "config": config, "arguments": arguments}
            plan = {"cores_per_process": cores, "entries": [entry]}
            strategy = default_strategy(1)
            (result,) = run_workers(strategy, 1, plan, folder / kind, print_progress)
            return result

        def with_plain(budget: Budget) -> tuple[Comparison, ...]:
            print_progress(f"comparing with plain Keras, {budget.seconds:.0f} s")
            return tuple(Comparison(**entry) for entry in group("compare", budget))

        def with_peers(budget: Budget) -> PeerComparison:
            print_progress(f"comparing with {', '.join(self.peers)}, {budget.seconds:.0f} s")
            return compare_with_peers(
                config,
                self.peers,
                self.steps,
                folder / "peers",
                budget,
                machine.cores,
                print_progress,
            )

        def floor(budget: Budget) -> Floor:
            print_progress(f"timing the convolutions and products alone, {budget.seconds:.0f} s")
            return Floor(**group("floor", budget))

        tasks: list[tuple[str, int, Callable[[Budget], Any]]] = []
        if PLAIN in self.peers:
            tasks.append(("with_plain", 2, with_plain))
        if set(self.peers) & set(FRAMEWORKS):
            tasks.append(("with_peers", 2 + len(self.peers), with_peers))
        if self.floor:
            tasks.append(("floor", 1, floor))
        return tasks
