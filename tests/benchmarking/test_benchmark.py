"""The benchmark command, end to end, with real workers."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from distcnn import benchmark as benchmark_command
from distcnn.benchmarking.process_groups import run_workers
from distcnn.benchmarking.report import write_report
from distcnn.benchmarking.results import Results, read_results
from distcnn.cli.parser import parse_config
from distcnn.errors import DistcnnError
from tests.benchmarking.samples import results

NET = (
    "--recipe",
    "quickstart",
    "--data.name",
    "synthetic",
    "--model.factory",
    "tests.tiny:tiny",
    "--train.batch_size",
    "16",
)
QUICK = ("--steps", "12", "--warmup", "2", "--data.image_size", "16")


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """Weak and strong scaling with Horovod, the comparison and the prediction, in one run."""
    folder = tmp_path_factory.mktemp("benchmark")
    command = [
        *(sys.executable, "-m", "distcnn.benchmark", *NET, *QUICK),
        *("--workers", "1,2", "--distribute.strategy", "horovod"),
        *("--compare", "plain", "--compare_steps", "6", "--predict", "8,64"),
        *("--floor", "--budget", "200"),
        *("--distribute.sync_batchnorm", "false", "--out", "bench", "--json", "copy.json"),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "progress        training step: tracing" in done.stderr
    assert "progress        floor: timing in turn" in done.stderr
    return folder, done.stdout, read_results(folder / "bench")


def test_every_count_is_measured(benchmark):
    folder, printed, results = benchmark
    assert [(row.scaling, row.workers) for row in results.rows] == [
        (scaling, workers) for scaling in ("weak", "strong") for workers in (1, 2)
    ]
    weak, strong = results.rows[:2], results.rows[2:]
    assert [row.global_batch for row in weak] == [16, 32]
    assert [row.global_batch for row in strong] == [16, 16]
    assert [row.strategy for row in weak] == ["one_device", "horovod"]
    cores = len(os.sched_getaffinity(0))
    assert [row.oversubscribed for row in weak] == [False, cores < 2]
    for row in results.rows:
        assert row.steps >= 5
        assert row.step_ms_p25 <= row.step_ms_p50 <= row.step_ms_p95
        assert row.step_ms_p50_low <= row.step_ms_p50 <= row.step_ms_p50_high
        assert row.images_per_second == pytest.approx(1000 * row.global_batch / row.step_ms_p25)
        alone = next(r for r in results.rows if (r.scaling, r.workers) == (row.scaling, 1))
        efficiency = row.images_per_second / row.workers / alone.images_per_second
        assert row.efficiency == pytest.approx(efficiency)
        total = row.input_share + row.compute_share + row.communication_share
        assert total == pytest.approx(1)
        assert (row.communication_share == 0) or row.workers > 1
        assert (row.communication_noise is None) == (row.workers == 1)
        assert row.input_images_per_second > row.images_per_second
        assert row.compile_seconds * 1000 > row.step_ms_p95
        assert 0 < row.share_of_peak < 1
        assert row.peak_memory_mb > 100
        assert row.verdict in printed
    names = {"results.json", "results.csv", "results.md", "scaling.png", "environment.json"}
    assert {path.name for path in (folder / "bench").iterdir()} == names
    copy = json.loads((folder / "copy.json").read_text())
    assert Results.from_json(copy, "copy.json") == results


def test_plain_keras_is_compared(benchmark):
    _, printed, results = benchmark
    operations = ["training step", "input of a batch", "evaluation", "prediction"]
    assert [comparison.what for comparison in results.comparisons] == operations
    for comparison in results.comparisons:
        assert comparison.plain_precision == "float32"
        assert comparison.ratio_low <= comparison.ratio <= comparison.ratio_high
        ratio = comparison.plain_ms / comparison.distcnn_ms
        assert comparison.ratio == pytest.approx(ratio)
        assert comparison.noise > 0
    assert "against a plain Keras script" in printed


def test_the_floor_is_below_the_step(benchmark):
    _, printed, results = benchmark
    floor = results.floor
    assert results.peers is None
    assert floor.batch == 16
    assert floor.rounds == 6
    assert floor.convolutions >= 2
    assert floor.products >= 2
    assert 0 < floor.floor_ms < floor.step_ms
    assert floor.ratio == pytest.approx(floor.step_ms / floor.floor_ms)
    assert floor.peak_ms == pytest.approx(1e3 * floor.gflop / floor.peak_gflops)
    assert f"the step is {floor.ratio:.3f} times the floor" in printed


def test_more_workers_are_predicted(benchmark):
    _, _, results = benchmark
    assert results.prediction is not None
    points = {point.workers: point for point in results.prediction.points}
    assert set(points) >= {1, 8, 64}
    assert points[1].efficiency == 1
    assert points[64].efficiency < points[8].efficiency < 1
    assert points[1].error is not None
    assert points[64].error is None
    assert (points[2].error is None) == (len(os.sched_getaffinity(0)) < 2)
    gradients = results.parameters - 16  # without the moving statistics
    in_16_bits, in_32_bits = 2 * gradients, 4 * gradients
    assert in_16_bits <= results.prediction.bytes_per_step <= in_32_bits
    assert 0 < results.prediction.last_bytes <= results.prediction.bytes_per_step


@pytest.fixture
def measured_again(benchmark, monkeypatch):
    """Makes the command measure what the run of this file has measured."""
    monkeypatch.setattr(benchmark_command.ScalingBenchmark, "run", lambda *_, **__: benchmark[2])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return benchmark


def test_a_slower_run_fails_against_its_baseline(measured_again):
    _, _, results = measured_again
    faster = results.to_json()
    for row in faster["rows"]:
        for key in ("step_ms_p25", "step_ms_p50", "step_ms_p50_low", "step_ms_p50_high"):
            row[key] /= 1000
    Path("faster.json").write_text(json.dumps(faster))
    with pytest.raises(DistcnnError, match=r"slower than faster.json: weak scaling, one_device"):
        benchmark_command.main([*NET, *QUICK, "--baseline", "faster.json", "--out", "again"])
    assert Path("again/results.json").exists()


def test_a_run_that_is_as_fast_passes_against_its_baseline(measured_again, capsys):
    folder, _, results = measured_again
    baseline = str(folder / "bench")
    assert benchmark_command.main([*NET, *QUICK, "--baseline", baseline, "--out", "again"]) == 0
    assert f"not slower than {baseline}" in capsys.readouterr().out
    assert read_results(Path("again")) == results


def test_the_baseline_is_not_overwritten(run_module):
    write_report(results(), Path("bench"))
    before = Path("bench/results.json").read_bytes()
    done = run_module("distcnn.benchmark", "--baseline", "bench", "--out", "bench")
    assert done.returncode == 2
    assert "would overwrite the baseline bench; choose another --out" in done.stderr
    assert Path("bench/results.json").read_bytes() == before


@pytest.mark.parametrize("strategy", ["mirrored", "multi_worker"])
def test_other_strategies(strategy, run_module):
    command = (*NET, *QUICK, "--workers", "2", "--scaling", "strong", "--out", "bench")
    done = run_module("distcnn.benchmark", *command, "--distribute.strategy", strategy)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = read_results(Path("bench")).rows
    assert (row.strategy, row.workers, row.efficiency) == (strategy, 2, None)
    assert row.communication_share + row.compute_share > 0.3


def test_oversubscribed_workers_use_all_their_cores(tmp_path):
    config = parse_config("benchmark", "", [*NET, "--distribute.strategy", "multi_worker"])
    assert config is not None
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    entry = {"kind": "steps", "arguments": {"count": 5, "warmup": 1}}
    entry["config"] = str(tmp_path / "config.yaml")
    cores = len(os.sched_getaffinity(0))
    plan = {"cores_per_process": cores, "entries": [entry]}
    (measured,) = run_workers("multi_worker", 2, plan, tmp_path / "group")
    assert measured["environment"]["cores"] == cores


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--workers", "0,2"), "workers is '0,2'; expected numbers of workers"),
        (("--predict", "8"), "predict needs a measurement of at least 2 workers"),
        (("--steps", "2"), "steps is 2; expected at least 5"),
        (("--baseline", "none.json"), "none.json cannot be read"),
        (("--cores_per_worker", "few"), "cores_per_worker is 'few'; expected fixed"),
        (("--worker", "2"), "unknown argument --worker; did you mean --workers?"),
    ],
)
def test_wrong_flags_are_refused_at_once(arguments, message, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(DistcnnError, match=re.escape(message)):
        benchmark_command.main(arguments)
    assert not Path("benchmarks").exists()


def test_a_worker_that_fails_is_quoted(run_module):
    done = run_module(
        "distcnn.benchmark", "--model.factory", "tests.tiny:missing", "--workers", "1"
    )
    assert done.returncode == 1
    assert "one_device with 1 worker failed: error: model.factory is" in done.stderr


def ranks_of(launcher: psutil.Process) -> list[psutil.Process]:
    ranks = []
    for child in launcher.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "HOROVOD_RANK" in child.environ() and sys.executable == child.cmdline()[0]:
                ranks.append(child)
    return ranks


def test_a_signal_leaves_no_worker_behind(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [
        *(sys.executable, "-m", "distcnn.benchmark", *NET, *QUICK, "--steps", "100000"),
        *("--workers", "2", "--distribute.strategy", "horovod", "--out", "bench"),
    ]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with psutil.Popen(command, cwd=scratch, env=environment, stderr=subprocess.DEVNULL) as process:
        while len(workers := ranks_of(process)) < 2:
            assert process.poll() is None
            time.sleep(0.2)
        process.terminate()
        assert process.wait(timeout=60) == 143
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive
    assert not list(scratch.glob("distcnn-*"))


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's signal of a parent's death")
def test_a_kill_leaves_no_worker_behind(tmp_path):
    command = [sys.executable, "-m", "distcnn.benchmark", *NET, *QUICK, "--workers", "1"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with psutil.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as process:
        while not (workers := process.children()):
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(workers, timeout=5)
    for worker in alive:
        worker.kill()
    assert not alive


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("--recipe", "article"), "synthetic"),
        (("--recipe", "article", "--data.name", "cifar10"), "cifar10"),
        (("--recipe", "article", "--data.dir=images"), "cifar10"),
        (("--recipe", "quickstart"), "digits"),
        (("--recipe", "mine.yaml"), "cifar10"),
    ],
)
def test_only_images_that_need_a_download_become_synthetic(arguments, name, monkeypatch):
    def benchmark(config, *_args, **_settings):
        raise LookupError(config.data.name)

    monkeypatch.setattr(benchmark_command, "ScalingBenchmark", benchmark)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    Path("mine.yaml").write_text("recipe: article\ndata: {dir: images}\n")
    with pytest.raises(LookupError, match=name):
        benchmark_command.main(arguments)


def test_other_weights_and_phases_are_not_dropped_in_silence(monkeypatch, caplog):
    def benchmark(config, *_args, **_settings):
        assert config.init_from is None
        assert config.model.weights == "none"
        assert config.train.phases == []
        raise LookupError

    caplog.set_level("INFO", "distcnn")
    monkeypatch.setattr(benchmark_command, "ScalingBenchmark", benchmark)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for flags, line in (
        (("--init_from", "runs/first"), "random, as fast as those of init_from runs/first"),
        ((), "random, as fast as those of model.weights imagenet"),
    ):
        with pytest.raises(LookupError):
            benchmark_command.main(("--recipe", "finetune", "--data.dir=images", *flags))
        assert line in caplog.text
        assert "phases          not timed apart" in caplog.text
        caplog.clear()
