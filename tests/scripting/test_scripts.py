"""Users' scripts, unchanged, compute on several workers what they compute in plain Python."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.scripting.comparing import (
    REFUSED,
    TOLERANCES,
    all_scripts,
    largest_difference,
    run_scripts,
)

SAMPLE = ["callbacks", "few_rows", "gan", "multi_label", "segmentation"]
"""Scripts that run on tf.distribute; `python -m tests.scripting.comparing` runs all."""

ON_THREE = ["few_rows", "multi_label", "weighted_mean"]
"""Scripts that run on three processes."""

BROKEN = [
    *("classifier:gradients", "own_step:gradients"),
    *("regression:losses", "sequences:losses", "multi_label:metrics"),
]
"""Scripts with a part of the session switched off that they need."""

FAST = ["classifier:fast", "segmentation:fast"]
"""Scripts in their fast form, which rounds otherwise than Keras."""

SHARD = "pipelines:shard"
"""A script of which each worker computes its own rows only."""


def refused_by(kind):
    return [name for name, each in REFUSED if each == kind]


PLAN = {
    "plain": all_scripts(),
    "horovod-2": [*all_scripts(), *FAST, *BROKEN, SHARD],
    "horovod-3": [*ON_THREE, SHARD],
    "multi_worker-2": [*SAMPLE, "on_batch", *refused_by("multi_worker"), SHARD],
    "mirrored-2": [*SAMPLE, "on_batch", *refused_by("mirrored"), SHARD],
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Runs all groups, two at a time, since the processes of each often wait."""
    folder = tmp_path_factory.mktemp("scripts")
    with ThreadPoolExecutor(2) as pool:
        yield {
            group: pool.submit(run_scripts, group, names, folder / group)
            for group, names in PLAN.items()
        }


def require_equal(outcomes, group, names):
    plain, received = outcomes["plain"].result(), outcomes[group].result()
    for name in names:
        assert "error" not in plain[name][0], plain[name][0]["error"]
        for result in received[name]:
            assert "error" not in result, result["error"]
            difference, path = largest_difference(plain[name][0], result)
            assert difference <= TOLERANCES.get(name, 1e-5), (name, path, difference)


def difference_of(outcomes, group, entry):
    received = outcomes[group].result()[entry][0]
    assert "error" not in received, received["error"]
    return largest_difference(outcomes["plain"].result()[entry.partition(":")[0]][0], received)[0]


def test_two_horovod_processes(outcomes):
    require_equal(outcomes, "horovod-2", all_scripts())


@pytest.mark.parametrize("entry", FAST)
def test_the_fast_form_only_rounds_otherwise(entry, outcomes):
    assert 0 < difference_of(outcomes, "horovod-2", entry) < 1e-4


def test_three_horovod_processes(outcomes):
    require_equal(outcomes, "horovod-3", ON_THREE)


@pytest.mark.parametrize("entry", BROKEN)
def test_without_a_part_of_the_session_the_results_differ(entry, outcomes):
    assert difference_of(outcomes, "horovod-2", entry) > 1e-4


@pytest.mark.parametrize("group", [group for group in PLAN if group != "plain"])
def test_workers_that_compute_their_own_rows_only(group, outcomes):
    assert difference_of(outcomes, group, SHARD) < 1e-5


def test_a_divided_pipeline_computes_the_same_to_the_bit(outcomes):
    received = outcomes["horovod-2"].result()
    for whole, own in zip(received["pipelines"], received[SHARD], strict=True):
        assert largest_difference(whole, own)[0] == 0


@pytest.mark.parametrize("group", ["multi_worker-2", "mirrored-2"])
def test_tf_distribute(group, outcomes):
    kind = group.split("-")[0]
    require_equal(outcomes, group, [*SAMPLE, "on_batch"])
    for name in refused_by(kind):
        assert REFUSED[name, kind] in outcomes[group].result()[name][0]["error"]
