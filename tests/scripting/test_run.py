"""The command `distcnn.run`: what a script finds, what it prints, how it ends."""

import pytest

from tests.lockstep.groups import start_group

HEAD = """
import os, sys
import keras, numpy as np
rank = int(os.environ.get("HOROVOD_RANK", 0))
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
model.compile(optimizer="sgd", loss="mse")
x, y = np.ones((12, 3), "float32"), np.ones((12, 2), "float32")
"""


@pytest.fixture
def run(tmp_path):
    """Runs scripts on two Horovod processes; returns the exit code and the output."""

    def start(text, *arguments, flags=()):
        (tmp_path / "own_module.py").write_text("NAME = 'beside the script'\n")
        script = tmp_path / "script.py"
        script.write_text(HEAD + text)
        line = ["-m", "distcnn.run", *flags, str(script), *arguments]
        group = start_group("horovod", 2, line, tmp_path / "work")
        (code,) = group.wait(200)
        return code, group.output()

    return start


def test_a_script_finds_its_arguments_and_modules_and_rank_0_alone_speaks_and_writes(run, tmp_path):
    code, output = run(
        """
from own_module import NAME
print("arguments", __name__, sys.argv[1:], NAME)
history = model.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[
    keras.callbacks.TensorBoard("tb"), keras.callbacks.CSVLogger("log.csv")])
model.save("model.keras")
model.save_weights("own.weights.h5")
print("loaded", keras.models.load_model("model.keras").count_params())
sys.exit(0 if rank == 0 or os.path.exists("own.weights.h5") else 3)
""",
        *("--epochs", "2"),
    )
    assert code == 0, output
    assert output.count("arguments __main__ ['--epochs', '2'] beside the script") == 1
    assert output.count("loaded 8") == 1
    assert len((tmp_path / "work" / "log.csv").read_text().splitlines()) == 3


def test_a_script_that_fails_shows_its_own_traceback_and_its_exit_code(run):
    code, output = run("def own():\n    raise ValueError('my own fault')\nown()\n")
    assert code != 0
    assert "in own\n" in output.replace("[0]<stderr>:", "").replace("[1]<stderr>:", "")
    assert "my own fault" in output
    assert "runpy" not in output
    code, output = run("sys.exit('no data today')")
    assert code != 0
    assert "no data today" in output


def test_batches_that_differ_between_ranks_stop_the_run(run):
    code, output = run("model.fit(x + rank, y, batch_size=4, epochs=2, verbose=0)\n")
    assert code != 0
    assert "at step 1, rank 1 read another batch than rank 0" in output


DIVIDED = """
import tensorflow as tf

data = tf.data.Dataset.from_tensor_slices((x * np.arange(12)[:, None], y))
data = data.shuffle(12, seed=int(sys.argv[1]) * rank).map(lambda x, y: (2 * x, y)).batch(5)
model.fit(data, epochs=2, verbose=0, validation_data=data)
print("trained")
"""


@pytest.mark.parametrize("differs", [0, 1])
def test_workers_that_compute_their_own_rows_stop_if_their_elements_differ(differs, run):
    code, output = run(DIVIDED, str(differs), flags=("--input", "shard"))
    assert output.count("each worker computes its own rows of a Dataset: map of") == 1, output
    assert ("at step 1, rank 1 read another batch than rank 0" in output) == bool(differs)
    assert ("trained" in output, code == 0) == ((not differs,) * 2)


def test_weights_that_differ_between_ranks_stop_the_run(run):
    code, output = run(
        """
class Drift(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.layers[0].bias.assign(self.model.layers[0].bias + rank)

model.fit(x, y, batch_size=4, epochs=3, verbose=0, callbacks=[Drift()])
"""
    )
    assert code != 0
    assert "ranks 0 and 1 hold different values of" in output


PER_WORKER = """
size = int(sys.argv[1])
keras.utils.set_random_seed(5)
x = np.random.default_rng(0).normal(size=(40, 3)).astype("float32")
y = x[:, :2]
data = tf.data.Dataset.from_tensor_slices((x, y)).batch(size, drop_remainder=True)
for given in ({"x": x, "y": y, "batch_size": size}, {"x": data}):
    model.compile(keras.optimizers.SGD(float(sys.argv[2])), "mse")
    history = model.fit(**given, epochs=2, verbose=0).history
    rate = float(model.optimizer.learning_rate)
    print(f"steps {int(model.optimizer.iterations)} rate {rate:.3f}")
    print("loss", *(f"{value:.5f}" for value in history["loss"]))
"""


def found(output):
    lines = [line.rpartition(">:")[2] for line in output.splitlines()]
    return [line for line in lines if line.startswith(("steps", "loss"))]


def test_a_batch_per_worker_is_a_larger_batch_with_a_scaled_rate(run):
    script = "import tensorflow as tf\n" + PER_WORKER
    flags = ("--batch", "per_worker", "--lr_scaling", "linear")
    code, output = run(script, "4", "0.05", flags=flags)
    assert code == 0, output
    code, expected = run(script, "8", "0.1")
    assert code == 0, expected
    assert len(found(output)) == 4
    assert found(output) == found(expected)


def test_a_batch_per_worker_of_data_that_makes_its_own_is_refused(run):
    code, output = run("model.fit(iter([(x, y)]), verbose=0)\n", flags=("--batch", "per_worker"))
    assert code != 0
    assert "drop --batch per_worker" in output


@pytest.mark.parametrize("xla", ["on", "off"])
def test_xla_is_chosen_by_a_flag(xla, run):
    code, output = run(
        "model.jit_compile = sys.argv[1] == 'off'\n"
        "model.fit(x, y, epochs=1, verbose=0)\n"
        "print('compiled', model.jit_compile)\n",
        xla,
        flags=("--precision.xla", xla),
    )
    assert code == 0, output
    assert f"compiled {xla == 'on'}" in output
