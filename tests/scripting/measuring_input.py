"""Measures `--input shard` against `whole`, with a costly Dataset.map.

    python -m tests.scripting.measuring_input [--workers N] [--repetitions N]

trains a small model on N Horovod processes, which share this machine's cores, in turn with both.
After the first epoch it measures steps per second, and a worker's processor time and mapped rows.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from tests.lockstep.groups import start_group

SCRIPT = """
import json, sys, time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

STEPS, BATCH = 10, 32
mapped = 0


def count(label):
    global mapped
    mapped += 1
    return label


def load(image, label):
    label = tf.ensure_shape(tf.numpy_function(count, [label], tf.int64, stateful=False), ())
    pixels = tf.image.resize(tf.io.decode_jpeg(image, channels=3), (64, 64), antialias=True)
    return tf.image.stateless_random_flip_left_right(pixels, [label, 1]) / 255.0, label % 10


pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
image = tf.io.encode_jpeg(pixels.repeat(16, 0).repeat(16, 1))
labels = tf.data.Dataset.range(STEPS * BATCH)
data = labels.map(lambda label: (image, label)).shuffle(STEPS * BATCH, seed=1)
data = data.map(load).batch(BATCH).prefetch(2)
model = keras.Sequential(
    [keras.Input((64, 64, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
)
model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
model.fit(data, verbose=0)
before, start, processor = mapped, time.perf_counter(), time.process_time()
history = model.fit(data, epochs=3, verbose=0)
found = {
    "speed": 3 * STEPS / (time.perf_counter() - start),
    "processor": (time.process_time() - processor) / (3 * STEPS),
    "rows": (mapped - before) / (3 * STEPS),
    "loss": history.history["loss"][-1],
}
with open(sys.argv[1], "a") as file:
    file.write(json.dumps(found) + "\\n")
"""


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "script.py").write_text(SCRIPT)
        for _ in range(options.repetitions):
            for mode in ("whole", "shard"):
                arguments = ["-m", "distcnn.run", "--input", mode, "script.py", f"{mode}.json"]
                started = start_group("horovod", options.workers, arguments, folder)
                assert not any(started.wait()), started.output()
        for mode in ("whole", "shard"):
            lines = (folder / f"{mode}.json").read_text().splitlines()
            runs = [json.loads(line) for line in lines]
            speeds = [run["speed"] for run in runs]
            seconds = statistics.median(run["processor"] for run in runs)
            print(
                f"{mode:6} {statistics.median(speeds):6.2f} steps/s ({min(speeds):.2f} to "
                f"{max(speeds):.2f}), {1000 * seconds:.0f} ms of processor time in each step, "
                f"{runs[0]['rows']:.1f} of 32 rows mapped, final loss {runs[0]['loss']:.6f}"
            )


if __name__ == "__main__":
    main()
