"""The first command that a user of several workers runs."""

import json
from pathlib import Path

import pytest

from tests.lockstep.groups import start_group

SHORT = ["--train.epochs=2"]
"""Too short for the moving statistics, and so for the accuracy on other images."""


@pytest.mark.parametrize(
    ("kind", "size", "flags", "metric", "least"),
    [
        # Since any strategy reaches the weights of one worker, one of them runs the whole recipe.
        (
            "mirrored",
            1,
            ["--distribute.strategy=mirrored", "--distribute.devices=2"],
            "test_accuracy",
            0.97,
        ),
        ("multi_worker", 2, SHORT, "accuracy", 0.8),
        ("horovod", 2, SHORT, "accuracy", 0.8),
    ],
)
def test_quickstart_is_learned_by_any_strategy(kind, size, flags, metric, least, tmp_path: Path):
    run = tmp_path / "run"
    command = ["-m", "distcnn.train", "--recipe", "quickstart", "--out", str(run), *flags]
    group = start_group(kind, size, command, tmp_path)
    assert group.wait(600) == [0] * len(group.processes), group.output()
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["strategy"], summary["world_size"]) == (kind, max(size, 2))
    assert summary["weights_agree"] is True
    assert summary["global_batch_size"] == 32
    assert summary[metric] >= least
