"""Users' scripts, unchanged, compute on several workers what they compute in plain Python."""

import pytest

from tests.scripting.comparing import (
    REFUSED,
    TOLERANCES,
    all_scripts,
    largest_difference,
    run_scripts,
)

SAMPLE = ["callbacks", "few_rows", "gan", "multi_label", "segmentation"]
"""Scripts that run on every kind of group; `python -m tests.scripting.comparing` runs all."""

BROKEN = [
    *("classifier:gradients", "own_step:gradients"),
    *("regression:losses", "sequences:losses"),
    *("multi_label:metrics", "own_step:metrics"),
]
"""Scripts with a part of the session switched off that they need."""


FAST = ["classifier:fast", "segmentation:fast"]
"""Scripts in their fast form, which rounds otherwise than Keras."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run_scripts("plain", all_scripts(), tmp_path_factory.mktemp("scripts") / "plain")


def require_equal(plain, received, names):
    for name in names:
        assert "error" not in plain[name][0], plain[name][0]["error"]
        for result in received[name]:
            assert "error" not in result, result["error"]
            difference, path = largest_difference(plain[name][0], result)
            assert difference <= TOLERANCES.get(name, 1e-5), (name, path, difference)


def test_two_horovod_processes(plain, tmp_path):
    received = run_scripts("horovod-2", [*all_scripts(), *FAST], tmp_path / "group")
    require_equal(plain, received, all_scripts())
    for entry in FAST:
        expected = plain[entry.partition(":")[0]][0]
        for result in received[entry]:
            assert "error" not in result, result["error"]
            assert 0 < largest_difference(expected, result)[0] < 1e-4, entry


def test_three_horovod_processes(plain, tmp_path):
    names = [*SAMPLE, "weighted_mean"]
    received = run_scripts("horovod-3", [*names, *BROKEN], tmp_path / "group")
    require_equal(plain, received, names)
    for entry in BROKEN:
        expected = plain[entry.partition(":")[0]][0]
        difference, _ = largest_difference(expected, received[entry][0])
        assert difference > 1e-4, entry


@pytest.mark.parametrize("group", ["multi_worker-2", "mirrored-2"])
def test_tf_distribute(group, plain, tmp_path):
    kind = group.split("-")[0]
    refused = [name for name, each in REFUSED if each == kind]
    received = run_scripts(group, [*SAMPLE, "on_batch", *refused], tmp_path / "group")
    require_equal(plain, received, [*SAMPLE, "on_batch"])
    for name in refused:
        assert REFUSED[name, kind] in received[name][0]["error"]
