"""The first command that a user of several workers runs."""

import json
from pathlib import Path

import pytest

from tests.lockstep.groups import start_group


@pytest.mark.parametrize(
    ("kind", "size", "flags"),
    [
        ("horovod", 4, []),
        ("multi_worker", 2, []),
        ("mirrored", 1, ["--distribute.strategy=mirrored", "--distribute.devices=2"]),
    ],
)
def test_quickstart_is_learned_by_any_strategy(kind, size, flags, tmp_path: Path):
    run = tmp_path / "run"
    command = ["-m", "distcnn.train", "--recipe", "quickstart", "--out", str(run), *flags]
    group = start_group(kind, size, command, tmp_path)
    assert group.wait(600) == [0] * len(group.processes), group.output()
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["strategy"], summary["world_size"]) == (kind, max(size, 2))
    assert summary["weights_agree"] is True
    assert summary["global_batch_size"] == 32
    assert summary["test_accuracy"] >= 0.97
