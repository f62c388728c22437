"""The command `distcnn.run`: what a script finds, what it prints, how it ends."""

import json

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


LOGGER = """
import os
FOLDER = os.environ.get("MLFLOW_TRACKING_URI", "the default")
MODE = os.environ.get("WANDB_MODE", "online")
"""


def test_every_rank_prints_if_wanted_and_only_rank_0_records_and_shows_progress(run, tmp_path):
    (tmp_path / "wandb.py").write_text(LOGGER)
    code, output = run(
        """
import wandb
print(f"rank {rank} records {wandb.MODE} in {wandb.FOLDER}")
model.fit(x, y, batch_size=4, epochs=2, verbose=2)
""",
        flags=("--output", "all"),
    )
    assert code == 0, output
    assert output.count("rank 0 records online in the default") == 1
    assert output.count("rank 1 records disabled in file:///") == 1
    assert output.count("Epoch 1/2") == 2
    assert output.count("epoch 1/2: ") == output.count("epoch 2/2: ") == 1


@pytest.mark.parametrize("last", ["rank 0 alike, but later", "rank 1 alone"])
def test_a_script_that_fails_shows_its_own_traceback_and_its_exit_code(last, run):
    code, output = run(
        f"""
import time
def own():
    if {last == "rank 1 alone"} and rank == 0:
        time.sleep(100)
    time.sleep(1 - rank)
    raise ValueError('my own fault')
own()
"""
    )
    assert code != 0
    chief = last != "rank 1 alone"
    lines = output.replace("[0]<stderr>:", "").replace("[1]<stderr>:", "").splitlines()
    assert ("error: rank 1:" in lines) != chief, output
    assert lines.count("Traceback (most recent call last):") == 1
    assert lines.count("ValueError: my own fault") == 1
    assert any(line.endswith("in own") for line in lines)
    assert "runpy" not in output


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


DRIFT = """
class Drift(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.layers[0].bias.assign(self.model.layers[0].bias + rank)

model.fit(x, y, batch_size=4, epochs=3, verbose=0, callbacks=[Drift()])
"""

PER_WORKER = """
import tensorflow as tf
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

XLA = """
model.jit_compile = sys.argv[1] == "off"
model.fit(x, y, epochs=1, verbose=0)
print("compiled", model.jit_compile)
"""

PLAN = {
    "exit": ([], "sys.exit('no data today')\n", []),
    "drift": ([], DRIFT, []),
    "per worker": (["--batch", "per_worker", "--lr_scaling", "linear"], PER_WORKER, ["4", "0.05"]),
    "global": ([], PER_WORKER, ["8", "0.1"]),
    "iterator": (["--batch", "per_worker"], "model.fit(iter([(x, y)]), verbose=0)\n", []),
    "xla on": (["--precision.xla", "on"], XLA, ["on"]),
    "xla off": (["--precision.xla", "off"], XLA, ["off"]),
}
"""Flags, script and arguments of command lines that one group of processes runs in turn."""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What each command line of the plan has returned and printed, by rank."""
    folder = tmp_path_factory.mktemp("plan")
    plan = {}
    for name, (flags, text, arguments) in PLAN.items():
        script = folder / f"{name}.py"
        script.write_text(HEAD + text)
        plan[name] = [*flags, str(script), *arguments]
    line = ["-m", "tests.scripting.command_worker", str(folder), json.dumps(plan)]
    group = start_group("horovod", 2, line, folder, PYTHONHASHSEED="0")
    assert group.wait(200) == [0], group.output()
    return {
        name: [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(2)]
        for name in plan
    }


def test_a_script_that_exits_with_a_message_shows_it_and_fails(ran):
    for result in ran["exit"]:
        assert result["code"] == 1
        assert "no data today" in result["warnings"]


def test_weights_that_differ_between_ranks_stop_the_run(ran):
    for result in ran["drift"]:
        assert "ranks 0 and 1 hold different values of" in result["error"]


def test_a_batch_per_worker_is_a_larger_batch_with_a_scaled_rate(ran):
    ours, expected = ran["per worker"][0], ran["global"][0]
    assert (ours["code"], expected["code"]) == (0, 0)
    assert [line.split()[0] for line in ours["output"].splitlines()] == ["steps", "loss"] * 2
    assert ours["output"] == expected["output"]


def test_a_batch_per_worker_of_data_that_makes_its_own_is_refused(ran):
    for result in ran["iterator"]:
        assert "drop --batch per_worker" in result["error"]


@pytest.mark.parametrize("xla", ["on", "off"])
def test_xla_is_chosen_by_a_flag(xla, ran):
    assert [result["code"] for result in ran[f"xla {xla}"]] == [0, 0]
    assert f"compiled {xla == 'on'}" in ran[f"xla {xla}"][0]["output"]
