"""If a rank dies, the others stop and name it; then any number of ranks can resume the run."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import psutil
import pytest

from tests.lockstep.groups import Group, start_group
from tests.lockstep.test_equality import TOLERANCE, difference
from tests.runs import flags, rows, small_config

OVERRIDES = {
    "data__synthetic_examples": 1200,  # 68 steps an epoch
    "model__factory": "tests.tiny:plain",
    "train__global_batch_size": 16,
    "train__epochs": 6,
    "logging__progress": "lines",
    "logging__every_steps": 10,
    "train__callbacks": ["tests.tiny:Unhurried"],
}

KINDS = ["horovod", "multi_worker"]

Start = Callable[..., Group]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Starts a training run in a folder with a group of the given kind."""

    def begin(
        kind: str, size: int, run: Path, *, unhurried: bool = False, **overrides: object
    ) -> Group:
        config = small_config(run, **OVERRIDES | overrides)
        arguments = ["-m", "distcnn.train", *flags(config)]
        environment = {"UNHURRIED": "0.01"} if unhurried else {}
        return start_group(kind, size, arguments, tmp_path_factory.mktemp(kind), **environment)

    return begin


def wait_until(condition: Callable[[], bool], group: Group, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert any(p.poll() is None for p in group.processes), group.output()
        assert time.monotonic() < deadline, group.output()
        time.sleep(0.02)


def in_mid_epoch(run: Path) -> bool:
    """Returns whether there is a checkpoint and the epoch after it has begun."""
    saved = any((run / "checkpoints").glob("step-*.npz"))  # a thread writes it meanwhile
    return saved and len(rows(run)) >= 8  # the seventh is that of the first epoch


def weights_of(run: Path) -> list[np.ndarray]:
    weights: list[np.ndarray] = keras.saving.load_model(run / "model.keras").get_weights()
    return weights


@pytest.fixture(scope="module", params=KINDS)
def whole(
    request: pytest.FixtureRequest, start: Start, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, str, set[str]]:
    """An uninterrupted run of two ranks: its kind, folder, output and where it listened."""
    run = tmp_path_factory.mktemp("whole") / "run"
    group = start(request.param, 2, run, unhurried=True)
    wait_until(lambda: in_mid_epoch(run), group)
    listening = set()
    launcher = psutil.Process(group.processes[0].pid)
    for process in [launcher, *launcher.children(recursive=True), *group.ranks()]:
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                listening.add(connection.laddr.ip)
    assert group.wait() == [0] * len(group.processes), group.output()
    return request.param, run, group.output(), listening


def test_rank_0_alone_prints_and_writes(whole):
    kind, run, output, _ = whole
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["strategy"], summary["world_size"], summary["weights_agree"]) == (kind, 2, True)
    assert output.count("test accuracy") == 1
    assert output.count(f"strategy        {kind} on CPU") == 1
    assert ("gradients by shared memory" in output) == (kind == "horovod")
    assert "[1]<std" not in output
    steps = [row["step"] for row in rows(run)]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("whole", ["horovod"], indirect=True)
def test_nothing_listens_beyond_loopback_on_a_single_host(whole):
    """Except with multi_worker, whose server TensorFlow opens on all interfaces."""
    assert whole[3] == {"127.0.0.1"}


def test_kill_9_of_one_rank_ends_all_and_the_same_command_goes_on(whole, start, tmp_path):
    kind, uninterrupted, _, _ = whole
    run = tmp_path / "run"
    group = start(kind, 2, run, unhurried=True)
    wait_until(lambda: in_mid_epoch(run), group)
    ranks = group.ranks()
    assert len(ranks) == 2
    killed = time.monotonic()
    ranks[1].send_signal(signal.SIGKILL)
    codes = group.wait(timeout=30)
    assert time.monotonic() - killed < 30
    psutil.wait_procs(ranks, timeout=1)
    assert not [rank for rank in ranks if rank.is_running()]
    assert all(codes), group.output()
    last = group.logs[0].read_text().strip().splitlines()[-1]
    assert "rank 1" in last, group.output()
    assert not (run / "summary.json").exists()

    again = start(kind, 2, run)
    assert again.wait() == [0] * len(again.processes), again.output()
    assert "resumed" in again.output()
    assert difference(weights_of(run), weights_of(uninterrupted)) <= 1e-6


def test_an_exception_in_one_rank_ends_all_with_its_message_last(whole, start, tmp_path):
    kind = whole[0]
    run = tmp_path / "run"
    group = start(kind, 2, run, train__callbacks=["tests.tiny:FailsInRank1"])
    codes = group.wait(timeout=120)
    assert all(codes), group.output()
    message = "error: rank 1: ValueError: the disk of this host is on fire"
    assert message in group.logs[-1].read_text().strip().splitlines()[-1], group.output()
    assert "rank 1" in group.logs[0].read_text().strip().splitlines()[-1]


def test_a_signal_stops_all_at_one_step_and_other_numbers_of_workers_go_on(whole, start, tmp_path):
    kind, uninterrupted, _, _ = whole
    run = tmp_path / "run"
    group = start(kind, 2, run, unhurried=True)
    wait_until(lambda: in_mid_epoch(run), group)
    (group.processes[0] if kind == "horovod" else group.ranks()[1]).send_signal(signal.SIGTERM)
    codes = group.wait(timeout=60)
    assert codes == [75] * len(codes), group.output()
    last = group.logs[0].read_text().strip().splitlines()[-1]
    assert "stopped by SIGTERM after step" in last or kind == "multi_worker", group.output()
    stopped = sorted((run / "checkpoints").glob("step-*.npz"))[-1]
    assert int(stopped.stem.removeprefix("step-")) % 68 != 0

    other = start("horovod", 3, run) if kind == "horovod" else start("alone", 1, run)
    assert other.wait() == [0], other.output()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["world_size"] == (3 if kind == "horovod" else 1)
    assert summary["weights_agree"] is True
    assert difference(weights_of(run), weights_of(uninterrupted)) <= TOLERANCE
    seen = {row["step"]: row["loss"] for row in rows(uninterrupted)}
    for row in rows(run):
        assert row["loss"] == pytest.approx(seen[row["step"]], rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_that_is_no_number_is_in_the_last_line(kind, start, tmp_path):
    """Every rank meets it, and any of them may be the first to end."""
    nan = {"model__factory": "tests.tiny:exploding", "model__args": {"at": 12}}
    group = start(kind, 2, tmp_path / "run", **nan)
    assert group.wait(timeout=120) == [1] * len(group.processes), group.output()
    for log in group.logs:
        last = log.read_text().strip().splitlines()[-1]
        assert "the loss of step 12 is not finite" in last, group.output()


def test_a_second_ctrl_c_ends_all_at_once(start, tmp_path):
    run = tmp_path / "run"
    group = start("horovod", 2, run, train__epochs=100)
    wait_until(lambda: in_mid_epoch(run), group)
    ranks = group.ranks()
    for _ in range(2):
        group.processes[0].send_signal(signal.SIGINT)
        time.sleep(0.6)
    (code,) = group.wait(timeout=60)
    psutil.wait_procs(ranks, timeout=5)
    assert not [rank for rank in ranks if rank.is_running()]
    last = group.logs[0].read_text().strip().splitlines()[-1]
    saved = "stopped by SIGTERM after step"  # before the second one came
    expected = {130: "stopped by a second signal", 75: saved}
    assert expected[code] in last, group.output()


def test_the_ranks_save_and_end_when_their_launcher_is_killed(start, tmp_path):
    run = tmp_path / "run"
    long_epoch = {"data__synthetic_examples": 20_000}
    group = start("horovod", 2, run, unhurried=True, **long_epoch)
    wait_until(lambda: (run / "metrics.jsonl").exists() and len(rows(run)) >= 2, group)
    ranks = group.ranks()
    assert not list((run / "checkpoints").glob("step-*.npz"))
    group.processes[0].kill()
    group.wait()
    psutil.wait_procs(ranks, timeout=25)
    assert not [rank for rank in ranks if rank.is_running()]
    assert len(list((run / "checkpoints").glob("step-*.npz"))) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_that_cannot_be_written_ends_all_ranks(kind, start, tmp_path):
    run = tmp_path / "run"
    group = start(kind, 2, run)
    wait_until((run / "config.yaml").exists, group)
    (run / "checkpoints").touch()  # a file in place of the folder
    assert set(group.wait()) == {1}, group.output()
    assert "error: rank 0: the checkpoint" in group.output()
    assert "step-00000068.npz cannot be written: File exists" in group.output()
    assert not (run / "summary.json").exists()
