"""`find_lr` and `find_batch` on small runs, on one worker and on two."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from distcnn import find_batch, find_lr
from distcnn.benchmarking.process_groups import WorkersFailedError
from distcnn.cli.parser import load_config
from distcnn.errors import DistcnnError, UsageError

FLAGS = [
    *("--recipe=quickstart", "--model.factory=tests.tiny:plain", "--precision.policy=float32"),
    *("--data.name=synthetic", "--data.synthetic_examples=600", "--train.global_batch_size=64"),
    *("--optimizer.name=sgd", "--optimizer.lr_scaling=linear", "--optimizer.base_batch_size=16"),
]


def on_two(module, *arguments):
    """Runs a module on two workers of `multi_worker`, which needs no Horovod."""
    from distcnn.distribute.launching import tf_config, unplaced_environment

    command = [sys.executable, "-m", module, "--distribute.strategy=multi_worker", *arguments]
    processes = [
        subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for line, environment in tf_config(2, command, unplaced_environment())
    ]
    printed = [process.communicate(timeout=300) for process in processes]
    return [p.returncode for p in processes], printed


def test_the_range_test_is_the_same_on_one_worker_and_on_two(capsys):
    options = ("--low=1e-3", "--high=1e4", "--steps=40")
    assert find_lr.main([*FLAGS, *options, "--json=one.json", "--plot=one.png"]) == 0
    printed = capsys.readouterr().out
    one = json.loads(Path("one.json").read_text())
    assert "in 40 steps of 64 images" in printed
    assert one["diverged"]
    assert "the loss diverged after rate" in printed
    assert len(one["rates"]) < 40
    assert one["lr_scaling_factor"] == 4
    flag = f"(--optimizer.lr {one['steepest'] / 4:.2g})"
    assert f"suggestion      {one['steepest']:.2g}  where the loss falls fastest  {flag}" in printed
    assert Path("one.png").read_bytes().startswith(b"\x89PNG")
    codes, output = on_two("distcnn.find_lr", *FLAGS, *options, "--json=two.json")
    assert codes == [0, 0], output
    two = json.loads(Path("two.json").read_text())
    assert two["workers"] == 2
    assert two["rates"] == one["rates"]
    assert two["losses"][:20] == pytest.approx(one["losses"][:20], rel=1e-4)
    assert b"suggestion" in output[0][0]
    assert b"suggestion" not in output[1][0]
    left = {path.name for path in Path().iterdir()} - {"cache"}  # which the data set may have made
    assert left == {"one.json", "one.png", "two.json"}


def test_the_range_test_begins_with_the_weights_and_the_layers_of_the_run(capsys):
    from tests.tiny import plain

    other = plain((32, 32, 3), 10)
    for weight in other.trainable_variables:
        weight.assign(0 * weight)
    other.save("zero.keras")
    phase = '[{"train": "head", "epochs": 1, "learning_rate": 0.5}]'
    options = ("--init_from=zero.keras", f"--train.phases={phase}", "--low=0.1", "--high=1")
    assert find_lr.main([*FLAGS, *options, "--steps=20", "--json=found.json"]) == 0
    found = json.loads(Path("found.json").read_text())
    assert found["rates"][:1] + found["rates"][19:] == pytest.approx([0.1, 1])
    assert found["losses"][0] == pytest.approx(math.log(10), rel=1e-5)
    printed = capsys.readouterr().out
    assert "--optimizer.lr" not in printed


def test_the_range_test_of_a_run_of_phases_is_that_of_the_first_one(capsys):
    phases = "[{epochs: 1, learning_rate: 0.1}, {train: head, epochs: 1}]"  # of 10 steps an epoch
    options = ("--low=1e-3", "--high=1e4", "--steps=40", "--json=one.json")
    assert find_lr.main([*FLAGS, *options, f"--train.phases={phases}"]) == 0
    printed = capsys.readouterr().out
    found = json.loads(Path("one.json").read_text())
    assert len(found["rates"]) > 20  # as many as the run has steps
    assert "phase           1 of 2, which trains all; for the rate of another one" in printed
    assert f"(learning_rate: {found['steepest'] / 4:.2g})" in printed


def test_the_largest_batch_is_found_in_processes_of_its_own(capsys):
    options = ("--seconds=0.1", "--json=found.json")
    assert find_batch.main([*FLAGS, *options, "--low=64", "--high=64"]) == 0
    found = json.loads(Path("found.json").read_text())
    (size,) = found["sizes"]
    assert found["largest"] == found["fast_enough"] == size["batch"] == 64
    assert size["images_per_second"] > 0
    assert 200 < size["peak_memory_mb"] < 4000
    printed = capsys.readouterr().out
    assert "largest         64 images per worker, 64 per step; larger ones were not" in printed
    with pytest.raises(DistcnnError, match=r"of 64 images per worker does not fit into 0\.1 GB"):
        find_batch.main([*FLAGS, "--limit=0.1", "--bisections=0"])
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        (1, "error: ResourceExhaustedError: Graph execution error"),
        (1, "error: rank 1: OOM when allocating tensor with shape[4096,32,32,64]"),
        (1, "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9126805504 bytes."),
        (1, "[1]<stderr>:terminate called after throwing an instance of 'std::bad_alloc'"),
        (-9, "training"),
        (137, "Process 1 exit with status code -9"),
    ],
)
def test_lack_of_memory_on_any_worker_means_that_a_batch_does_not_fit(code, printed, monkeypatch):
    def fail(strategy, workers, plan, folder):
        (entry,) = plan["entries"]
        config = load_config(entry["config"])
        assert (strategy, workers) == ("multi_worker", 2)
        assert config.distribute.strategy == "multi_worker"
        log = folder / "output.txt"
        log.write_text(f"start\n{printed}\n")
        if config.train.batch_size > 100:
            raise WorkersFailedError("failed", log, [0, code])
        assert config.train.global_batch_size is None
        (phase,) = config.train.parsed_phases
        assert (phase.train, phase.freeze_batchnorm) == ("last 2", False)
        return [{"images_per_second": 9.0, "peak_memory_mb": 99.0, "training_images": 600}]

    monkeypatch.setattr("distcnn.tuning.batch_trials.run_workers", fail)
    phases = (
        '[{"train": "head", "epochs": 2}, {"train": "last 2", "epochs": 1}, '
        '{"train": "last 2", "freeze_batchnorm": true, "epochs": 1}]'
    )
    arguments = (
        *("--workers=2", "--distribute.strategy=multi_worker", "--json=found.json"),
        f"--train.phases={phases}",
    )
    assert find_batch.main([*FLAGS, *arguments]) == 0
    found = json.loads(Path("found.json").read_text())
    fits = {size["batch"]: size["fits"] for size in found["sizes"]}
    assert fits == {64: True, 96: True, 104: False, 112: False, 128: False}
    assert found["largest"] == 96


def test_other_failures_are_not_taken_for_lack_of_memory(monkeypatch):
    def fail(strategy, workers, plan, folder):
        (folder / "output.txt").write_text("error: the loss is not a number")
        raise WorkersFailedError("it failed: the loss", folder / "output.txt", [1])

    monkeypatch.setattr("distcnn.tuning.batch_trials.run_workers", fail)
    with pytest.raises(DistcnnError, match="it failed: the loss"):
        find_batch.main(FLAGS)


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (find_lr, ["--low=1", "--high=0.1"], r"low is 1 and high is 0\.1; expected 0 < low < high"),
        (find_lr, ["--tolerance=1"], "tolerance is 1; expected more than 1"),
        (find_lr, ["--steps=0"], "steps is 0; expected at least 1"),
        (find_lr, ["--out=here"], "out is here, but a range test has no run directory"),
        (find_lr, ["--plot=missing/a.png"], "which does not exist"),
        (
            find_lr,
            ["--checkpoint.resume=runs/a"],
            "resume is runs/a, but a range test begins a new",
        ),
        (find_batch, ["--low=32", "--high=16"], "high is 16; expected at least low, 32"),
        (find_batch, ["--limit=0"], "limit is 0; expected more than 0"),
        (find_batch, ["--out=here"], "out is here, which does not apply to find_batch"),
        (find_batch, ["--checkpoint.resume=runs/a"], "which does not apply to find_batch"),
        (find_batch, ["--workers=0"], "workers is 0; expected at least 1"),
    ],
)
def test_wrong_flags_are_named(command, arguments, message):
    with pytest.raises(UsageError, match=message):
        command.main([*FLAGS, *arguments])


def test_find_batch_refuses_to_be_launched(monkeypatch):
    cluster = json.dumps(
        {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}
    )
    monkeypatch.setenv("TF_CONFIG", cluster)
    with pytest.raises(UsageError, match="start it once, with --workers N"):
        find_batch.main(FLAGS)
