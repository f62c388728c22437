"""N workers reach the same weights as one worker with the same global batches."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.lockstep.cases import ANY_WORKERS
from tests.lockstep.groups import Outcome, StartedPlan, run_plan, start_plan

TOLERANCE = 1e-5
"""Largest difference, relative to the largest weight of a variable, or to 0.1 if that is larger."""

HALF_TOLERANCE = {
    "float16": 1e-5,
    "bfloat16": 1e-2,
    "bfloat16_factors": 1e-2,
    "bfloat16_pointwise": 1e-2,
}
"""In half precision each shard's gradient is rounded by itself: to 11 bits, or to 8. float16 runs
at a learning rate that changes the weights little in 20 steps."""

OWN_SOCKETS = " by Horovod's sockets"
"""Suffix of a case that does not reduce through shared memory."""

FORBIDDEN = " without memory"
"""Suffix of a case in which the system does not let one rank share memory."""

GROUPS: dict[str, tuple[str, int, list[str]]] = {
    "mirrored x2": ("mirrored", 2, list(ANY_WORKERS)),
    "multi_worker x2": ("multi_worker", 2, list(ANY_WORKERS)),
    "horovod x2": (
        "horovod",
        2,
        [f"{case}{OWN_SOCKETS}" for case in ANY_WORKERS]
        + ["adam", "sync_empty", "uneven", "bfloat16", "bfloat16_pointwise", "own_step"]
        + ["adam" + FORBIDDEN],
    ),
    "horovod x3": (
        "horovod",
        3,
        [
            f"{case}{OWN_SOCKETS}"
            for case in ("adam", "sgd", "accumulation", "uneven", "bfloat16", "factors")
        ]
        + ["bfloat16_pointwise" + OWN_SOCKETS]
        + ["sync_batchnorm" + OWN_SOCKETS, "adam"],
    ),
    "horovod x4": ("horovod", 4, ["adam", "sync_batchnorm", "uneven"]),
}


def case_of(name: str) -> str:
    return name.removesuffix(OWN_SOCKETS).removesuffix(FORBIDDEN)


def plan_of(kind: str, names: list[str]) -> list[dict[str, Any]]:
    overrides = {"distribute__strategy": kind}
    if kind == "mirrored":
        overrides["distribute__devices"] = 2  # type: ignore[assignment]
    plan = []
    for name in names:
        case, more = case_of(name), {}
        if name.endswith(OWN_SOCKETS):
            more = {"distribute__shared_memory": "off"}
        plan.append(
            {
                "name": name,
                "case": case,
                "overrides": overrides | more,
                "overflow": case == "float16",
                "without_memory": name.endswith(FORBIDDEN),
            }
        )
    return plan


@pytest.fixture(scope="session")
def started_alone(tmp_path_factory: pytest.TempPathFactory) -> StartedPlan:
    """Every case, trained by one worker beside the first group, as it leaves a core idle."""
    plan = plan_of("one_device", list(ANY_WORKERS))
    return start_plan("alone", 1, plan, tmp_path_factory.mktemp("alone") / "out")


@pytest.fixture
def alone(started_alone: StartedPlan) -> dict[str, Outcome]:
    """Every case, trained by one worker."""
    return started_alone.outcomes()


@pytest.fixture(scope="session")
def groups(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Outcome]]:
    """The outcomes of each group by case, filled on demand."""
    return {}


@pytest.fixture
def outcome(
    request: pytest.FixtureRequest,
    started_alone: StartedPlan,
    groups: dict[str, dict[str, Outcome]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Outcome]:
    group, case = request.param
    if group not in groups:
        kind, size, names = GROUPS[group]
        folder = tmp_path_factory.mktemp("group") / "out"
        groups[group] = run_plan(kind, size, plan_of(kind, names), folder)
    return case, groups[group][case]


def difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """Returns the largest difference between weights, relative to the scale of their variable."""
    return max(
        float(np.abs(a - b).max() / max(np.abs(b).max(), 0.1))
        for a, b in zip(ours, theirs, strict=True)
    )


EVERY = [(group, case) for group, (_, _, cases) in GROUPS.items() for case in cases]


@pytest.mark.parametrize("outcome", EVERY, indirect=True, ids=lambda pair: " ".join(pair))
def test_any_number_of_workers_reaches_the_weights_of_one(outcome, alone):
    name, several = outcome
    case = case_of(name)
    summary, single = several.summary, alone[case].summary
    assert summary["steps"] == single["steps"] >= 20
    assert summary["weights_agree"] is True
    hashes = {result["summary"]["weights_sha256"] for result in several.results}
    assert hashes == {summary["weights_sha256"]}
    if summary["strategy"] == "horovod":
        transport = "shared memory" if name == case else "Horovod"
        assert {result["transport"] for result in several.results} == {transport}
    overlaps = summary["strategy"] == "multi_worker" or several.results[0]["transport"] == "Horovod"
    for result in several.results:
        assert result["bucket_bytes"] == (1000 if overlaps else 0)
        assert result["spare_thread"] or not overlaps
        assert (result["factored"] > 0) == (overlaps and case.endswith("factors"))
        assert (result["products"] > 0) == case.endswith("pointwise")
        # Only gradients may be rounded on the way.
        assert result["sum_of_upcast"] == 1 + (summary["world_size"] - 1) * 2.0**-9
    bound = HALF_TOLERANCE.get(case, TOLERANCE)
    assert difference(several.weights, alone[case].weights) <= bound
    for key in ("val_loss", "test_loss", "loss"):
        rounding = 1e-2 if case in HALF_TOLERANCE else 1e-5
        assert summary[key] == pytest.approx(single[key], rel=rounding)
    for key in ("val_accuracy", "test_accuracy"):
        assert summary[key] == pytest.approx(
            single[key], abs=0.05 if case in HALF_TOLERANCE else 1e-6
        )
    if case == "float16":
        # One replica overflowed once: all skipped that step and halved the loss scale once.
        assert [r["iterations"] for r in several.results] == [19] * len(several.results)
        assert [r["scale"] for r in several.results] == [2.0**14] * len(several.results)


@pytest.fixture
def in_bfloat16(groups, tmp_path_factory) -> list[list[np.ndarray]]:
    """The weights of two workers with shared memory, Horovod and TensorFlow's collectives."""
    names = {"horovod x2": ["bfloat16", "bfloat16" + OWN_SOCKETS], "multi_worker x2": ["bfloat16"]}
    for group, cases in names.items():
        if group not in groups:
            plan = plan_of(GROUPS[group][0], cases)
            folder = tmp_path_factory.mktemp("group") / "out"
            groups[group] = run_plan(*GROUPS[group][:2], plan, folder)
    return [groups[group][case].weights for group, cases in names.items() for case in cases]


def test_what_is_sent_as_bfloat16_is_summed_in_float32(in_bfloat16):
    """bfloat16 gradients are sent as they are."""
    by_memory, by_horovod, by_tensorflow = in_bfloat16
    assert difference(by_memory, by_horovod) == 0.0
    assert difference(by_horovod, by_tensorflow) == 0.0


def test_the_cases_train(alone):
    """Otherwise equal weights would prove nothing."""
    for name, outcome in alone.items():
        assert outcome.results[0]["moved"] > 100 * TOLERANCE, name


def test_data_are_not_divided_evenly(alone):
    """The last batch of an epoch has 15 images in most cases, one image in `uneven`."""
    assert alone["adam"].summary["steps"] == 4 * 5
    assert alone["uneven"].summary["steps"] == 7 * 3
    assert Path(alone["uneven"].folder, "run/metrics.jsonl").exists()
