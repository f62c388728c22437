"""What keeps replicas in lockstep, and what happens when something makes them differ."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from distcnn.distribute.consistency import (
    ReplicaMismatchError,
    average_across_replicas,
    require_identical_state,
    verify_reduction,
)
from distcnn.distribute.tensorflow import OneDevice
from distcnn.errors import UsageError
from tests.lockstep.groups import Outcome, run_plan
from tests.lockstep.test_equality import TOLERANCE, difference

KINDS = ["horovod", "multi_worker", "mirrored"]


def plan(kind: str) -> list[dict[str, Any]]:
    own: dict[str, Any] = {"distribute__strategy": kind, "train__epochs": 2}
    if kind == "mirrored":
        own["distribute__devices"] = 2
    entries: list[dict[str, Any]] = [
        {"name": "reduced", "case": "sgd"},
        {"name": "unreduced", "case": "sgd", "without_reduction": True},
        {"name": "unguarded", "case": "sgd", "without_reduction": True, "without_guard": True},
        {"name": "dropout", "case": "batchnorm"},
        {"name": "same dropout", "case": "batchnorm", "same_dropout": True},
        {"name": "dropout again", "case": "batchnorm"},
    ]
    if kind != "mirrored":
        entries += [
            {"name": "drift", "case": "adam", "drift": True},
            {"name": "other rate", "case": "adam", "rank_1": {"optimizer__lr": 0.5}},
            {"name": "taken", "case": "adam", "taken": True},
            {"name": "own start", "case": "sgd", "own_start": True},
        ]
    if kind == "horovod":
        fp16 = {"distribute__compression": "fp16"}
        entries += [
            {"name": "compressed", "case": "sgd", "overrides": fp16},
            {"name": "compressed by one", "case": "sgd", "rank_1": fp16},
        ]
    return [{**entry, "overrides": own | entry.get("overrides", {})} for entry in entries]


@pytest.fixture(scope="module", params=KINDS)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("guards") / "out"
    return run_plan(request.param, 2, plan(request.param), folder)


def test_without_reduction_the_weights_differ(made):
    """The negative control of the equality tests."""
    assert difference(made["unguarded"].weights, made["reduced"].weights) > 100 * TOLERANCE
    assert made["unguarded"].summary["weights_agree"] is False


def test_without_reduction_the_run_stops_after_the_first_epoch(made):
    for result in made["unreduced"].results:
        assert "after step 5, r" in result["error"]  # ranks or replicas
        assert "0 and 1 hold different values of model conv2d" in result["error"]
        assert "kernel" in result["error"]


def test_dropout_differs_between_replicas_and_repeats_per_seed(made):
    again, first, same = (made[n].weights for n in ("dropout again", "dropout", "same dropout"))
    for a, b in zip(again, first, strict=True):
        np.testing.assert_array_equal(a, b)
    assert difference(same, first) > 100 * TOLERANCE


def test_batch_statistics_are_averaged_before_they_are_saved(made):
    """By default each worker has its own; yet all save and evaluate the same ones."""
    assert made["dropout"].summary["weights_agree"] is True


@pytest.mark.parametrize("made", ["horovod", "multi_worker"], indirect=True)
def test_a_difference_names_the_first_variable_and_the_rank(made):
    for result in made["drift"].results:
        assert "after step 5, ranks 0 and 1 hold different values of" in result["error"]
        assert "model conv2d" in result["error"]
        assert "bias" in result["error"]


@pytest.mark.parametrize("made", ["horovod", "multi_worker"], indirect=True)
def test_ranks_with_different_settings_do_not_start(made):
    for rank, value in enumerate((0.01, 0.5)):
        message = made["other rate"].results[rank]["error"]
        assert f"ranks 0 and 1 differ in optimizer.lr (rank {rank} has {value})" in message


@pytest.mark.parametrize("made", ["horovod"], indirect=True)
def test_ranks_that_would_reduce_in_different_ways_do_not_wait_for_each_other(made):
    for rank, value in enumerate(("none", "fp16")):
        message = made["compressed by one"].results[rank]["error"]
        expected = f"ranks 0 and 1 differ in distribute.compression (rank {rank} has {value})"
        assert expected in message


@pytest.mark.parametrize("made", ["horovod", "multi_worker"], indirect=True)
def test_what_stops_rank_0_stops_all_with_the_same_message(made):
    for result in made["taken"].results:
        assert "holds files that are not a run" in result["error"]


@pytest.mark.parametrize("made", ["horovod", "multi_worker"], indirect=True)
def test_all_ranks_begin_with_the_weights_of_rank_0(made):
    for ours, theirs in zip(made["own start"].weights, made["reduced"].weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("made", ["horovod"], indirect=True)
def test_gradients_may_be_sent_as_float16(made):
    error = difference(made["compressed"].weights, made["reduced"].weights)
    assert 0 < error < 1e-2
    assert made["compressed"].summary["weights_agree"] is True


class Two(OneDevice):
    """Two replicas in one process that do not reduce."""

    name = "broken"
    local_replicas = 2

    def run(self, function: Any, *arguments: Any) -> list[Any]:
        return [function(*arguments), function(*arguments)]


def test_a_backend_that_does_not_reduce_is_found_at_the_start():
    with pytest.raises(
        ReplicaMismatchError,
        match="all-reduce check failed for strategy broken: summing over 2 replicas",
    ):
        verify_reduction(Two())


class Apart(OneDevice):
    """Three replicas in one process, whose variables are lists."""

    local_replicas = 3

    def local_values(self, variable: Any) -> list[np.ndarray]:
        return [np.asarray(value) for value in variable.parts]


class Parted:
    """A variable with a value in each replica."""

    def __init__(self, *parts: float) -> None:
        self.parts = [np.float32(part) for part in parts]
        self.path, self.shape, self.dtype = "layer/mean", (), tf.float32

    def assign(self, value: Any) -> None:
        self.parts = [np.float32(value)] * len(self.parts)


def test_the_mean_leaves_equal_values_bit_identical():
    apart, equal = Parted(1.0, 2.0, 6.0), Parted(0.1, 0.1, 0.1)
    average_across_replicas(Apart(), [apart, equal])
    assert apart.parts == [3.0] * 3
    assert equal.parts == [np.float32(0.1)] * 3


def test_every_replica_that_differs_is_named():
    groups = {"model": [Parted(1, 1, 1), Parted(1, 2, 3), Parted(1, 1, 2)]}
    with pytest.raises(
        ReplicaMismatchError, match=r"replicas 0 and 1, 2 hold .* layer/mean \(and 1 more"
    ):
        require_identical_state(Apart(), groups, step=9)
    require_identical_state(Apart(), {"model": [Parted(1, 1, 1)]}, step=9)


def test_keras_writers_work_in_rank_0_alone():
    from distcnn.training.callbacks.callback_list import callbacks_for_rank

    class Mine(keras.callbacks.Callback):
        chief_only = True

    stopping, csv = keras.callbacks.EarlyStopping(), keras.callbacks.CSVLogger("x")
    mine = [stopping, csv, Mine()]
    assert callbacks_for_rank(mine, is_chief=True) == list(enumerate(mine))
    assert callbacks_for_rank(mine, is_chief=False) == [(0, stopping)]
    with pytest.raises(UsageError, match="BackupAndRestore would overwrite the run"):
        callbacks_for_rank([keras.callbacks.BackupAndRestore("x")], is_chief=True)
