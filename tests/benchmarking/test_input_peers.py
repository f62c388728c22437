import json
import sys

import numpy as np
import pytest
from PIL import Image

from distcnn.benchmarking.input_peers import _measure, main
from distcnn.errors import DistcnnError

NO_TORCH = (
    "import sys; print('ready', flush=True); [print(7.0, 0.5, flush=True) for _ in sys.stdin]"
)


def test_pipelines_of_photographs_are_measured_in_turn(tmp_path, capsys, monkeypatch):
    assert main([str(tmp_path / "images"), "--make", "24"]) == 0
    assert "24 images" in capsys.readouterr().out
    files = sorted(tmp_path.glob("images/train/*/*.jpg"))
    assert len(files) == 24
    assert 80_000 < np.mean([file.stat().st_size for file in files]) < 125_000
    with Image.open(files[0]) as image:
        assert image.size == (500, 375)
    program = tmp_path / "program.py"
    program.write_text(NO_TORCH)
    monkeypatch.setattr("distcnn.benchmarking.input_peers._TORCH_PROGRAM", program)
    flags = ["--rounds", "2", "--seconds", "0.1", "--batch_size", "8", "--side", "32"]
    result = tmp_path / "result.json"
    flags = [*flags, "--torch", sys.executable, "--json", str(result)]
    assert main([str(tmp_path / "images"), *flags]) == 0
    results = json.loads(result.read_text())["pipelines"]
    assert list(results) == [
        "distcnn",
        "bare decoder",
        "crops alone",
        "plain tf.data",
        "torchvision",
    ]
    for measures in results.values():
        assert all(len(values) == 2 and min(values) > 0 for values in measures.values())
    torch = {"images_per_second": [7.0, 7.0], "cpu_seconds_per_image": [0.5, 0.5]}
    assert results["torchvision"] == torch
    program.write_text("")
    with pytest.raises(DistcnnError, match="has ended; expected a Python with torch"):
        main([str(tmp_path / "images"), *flags])


def test_no_pipeline_always_follows_the_same_one():
    names, calls = ["a", "b", "c", "d"], []

    def reading(name):
        def read(seconds):
            calls.append(name)
            return float(names.index(name)), seconds

        return read

    results = _measure({name: reading(name) for name in names}, 8, 0.5)
    rounds = [tuple(calls[start : start + 4]) for start in range(0, 32, 4)]
    assert all(sorted(order) == names for order in rounds)
    assert len(set(rounds)) > 4
    assert results["c"] == {"images_per_second": [2.0] * 8, "cpu_seconds_per_image": [0.5] * 8}
