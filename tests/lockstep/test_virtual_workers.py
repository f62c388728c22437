"""With virtual workers, a run is the same to the last bit for any number of workers."""

from typing import Any

import pytest

from tests.lockstep.cases import VIRTUAL
from tests.lockstep.groups import Outcome, run_plan

ELASTIC = " by 4, 1 and 2 workers"
"""Suffix of a case that 4 workers begin, one continues and 2 finish."""

SCRIPT = "script"
"""A model that a script fits in a session."""

BY_WORKERS = {4: ("horovod", "off"), 1: ("one_device", "auto"), 2: ("horovod", "auto")}
"""Strategy, and whether memory is shared, by number of workers, in the order of the elastic run."""


def plan(workers: int, run: str) -> list[dict[str, Any]]:
    strategy, memory = BY_WORKERS[workers]
    every = {"distribute__strategy": strategy}
    own = every | {"distribute__shared_memory": memory}
    cases: list[dict[str, Any]]
    cases = [{"name": n, "case": n, "overrides": own} for n in (*VIRTUAL, "not_virtual")]
    cases.append({"name": SCRIPT, "distribute": {"strategy": strategy, "shared_memory": memory}})
    if workers == 2:
        by_sockets = every | {"distribute__shared_memory": "off"}
        cases.append({"name": "by sockets", "case": "virtual_uneven", "overrides": by_sockets})
    stop = {"stop_at": 3} if workers != 2 else {}
    for case in ("virtual", "virtual_bfloat16"):
        name = case + ELASTIC
        cases.append({"name": name, "case": case, "overrides": every, "run": run + case, **stop})
    return cases


CLUSTER = ("virtual", "virtual_bfloat16")
"""What a TF_CONFIG cluster of two trains."""


@pytest.fixture(scope="module")
def clustered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """The outcomes of TensorFlow's own collectives, by case."""
    own = {"distribute__strategy": "multi_worker"}
    entries = [{"name": case, "case": case, "overrides": own} for case in CLUSTER]
    return run_plan("multi_worker", 2, entries, tmp_path_factory.mktemp("cluster") / "2")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Outcome]]:
    """The outcomes by number of workers."""
    folder, outcomes = tmp_path_factory.mktemp("virtual"), {}
    for workers, (strategy, _) in BY_WORKERS.items():
        kind = strategy if workers > 1 else "alone"
        entries = plan(workers, str(folder / "run"))
        outcomes[workers] = run_plan(kind, workers, entries, folder / str(workers))
    return outcomes


KEYS = ("weights_sha256", "loss", "accuracy", "val_loss", "val_accuracy", "test_loss")


def numbers(outcome: Outcome) -> dict[str, Any]:
    """What must be the same to the last bit, in every rank."""
    summaries = [result.get("summary", result) for result in outcome.results]
    found = [{key: s[key] for key in KEYS if key in s} | {"sha": s.get("sha")} for s in summaries]
    assert all(each == found[0] for each in found)
    assert len(found[0]) >= 5, summaries
    return found[0]


@pytest.mark.parametrize("case", [*VIRTUAL, SCRIPT])
def test_any_number_of_workers_reaches_the_bits_of_one(case, made):
    """Batch normalisation, dropout, mixup, Adam and averages; three transports."""
    alone = numbers(made[1][case])
    assert [numbers(made[workers][case]) for workers in (2, 4)] == [alone, alone]
    if case == "virtual_uneven":
        assert numbers(made[2]["by sockets"]) == alone
    if case == "virtual_pointwise":
        assert all(
            result["products"] for workers in made.values() for result in workers[case].results
        )


@pytest.mark.parametrize("case", CLUSTER)
def test_the_collectives_of_tensorflow_reach_them_too(case, made, clustered):
    assert numbers(clustered[case]) == numbers(made[1][case])


@pytest.mark.parametrize("case", ["virtual", "virtual_bfloat16"])
def test_the_number_of_workers_may_change_during_the_run(case, made):
    stopped = [r["summary"] for workers in (4, 1) for r in made[workers][case + ELASTIC].results]
    assert stopped == [None] * 5
    assert numbers(made[2][case + ELASTIC]) == numbers(made[1][case])


def test_without_them_the_weights_depend_on_the_number_of_workers(made):
    """The negative control: batch normalisation and dropout are each worker's own."""
    hashes = {numbers(made[workers]["not_virtual"])["weights_sha256"] for workers in BY_WORKERS}
    assert len(hashes) == len(BY_WORKERS)
