"""`--precision.deterministic`, in processes of their own, which cannot leave it again."""

import json
from pathlib import Path

from tests.runs import flags, small_config

SCRIPT = """
import keras, numpy
numbers = numpy.random.default_rng(1)
images, labels = numbers.random((64, 8, 8, 1), "float32"), numbers.integers(0, 3, 64)
layers = [keras.layers.Conv2D(4, 3), keras.layers.Flatten(), keras.layers.Dense(3)]
model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
print("losses", model.fit(images, labels, batch_size=16, epochs=2, verbose=0).history["loss"])
"""


def test_runs_and_scripts_repeat_with_deterministic_kernels_alone(run_module):
    config = small_config(Path("run"), precision__deterministic=True, train__epochs=1)
    done = run_module("distcnn.train", *flags(config))
    assert done.returncode == 0, done.stderr
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["steps"] > 0
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert all(0 <= row["input_wait"] < 1 for row in rows)
    Path("script.py").write_text(SCRIPT)
    command = ("distcnn.run", "--precision.deterministic", "true", "script.py")
    first, second = (run_module(*command) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("losses") == 1
    assert second.stdout == first.stdout
