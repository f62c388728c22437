"""Peers: which are compared, that they train the same model, in turn, and what is reported."""

import dataclasses
import json
import math
from typing import Any

import pytest

from distcnn import benchmark as benchmark_command
from distcnn.benchmarking.comparing import ComparisonPlan
from distcnn.benchmarking.peers import spec as spec_module
from distcnn.benchmarking.peers.graph import Node
from distcnn.benchmarking.peers.process import serve
from distcnn.benchmarking.peers.rounds import compare_with_peers, require_same_model
from distcnn.benchmarking.peers.side import fastest
from distcnn.benchmarking.peers.spec import PeerSpec, parse_peers, require_equivalent
from distcnn.benchmarking.peers.tables import floor_table, peer_table
from distcnn.benchmarking.progress import Budget
from distcnn.benchmarking.results import Results
from distcnn.cli.parser import load_config, parse_config
from distcnn.errors import DistcnnError, UsageError
from tests.benchmarking.samples import floor, peers, results
from tests.benchmarking.test_benchmark import NET

SPEC = PeerSpec(
    model="article",
    parameters=2264458,
    image_shape=(32, 32, 3),
    classes=10,
    batch=64,
    precision="float32",
    optimizer="adam",
    learning_rate=1e-3,
    momentum=0.9,
    pixel_scale=1 / 255,
    pixel_offset=0.0,
    nodes=(Node("dense", (0,), {"units": 10}, "dense"), Node("add", (0, 1))),
)


@pytest.fixture
def without_jax(monkeypatch):
    monkeypatch.setattr(spec_module, "is_installed", lambda name: name != "jax")


def test_peers_are_a_list_of_names(without_jax):
    assert parse_peers(None) == ([], [])
    assert parse_peers("plain") == (["plain"], [])
    assert parse_peers("torch, plain,torch") == (["torch", "plain"], [])
    missing = ["jax is not installed: pip install jax"]
    assert parse_peers("all") == (["plain", "torch"], missing)
    with pytest.raises(UsageError, match=r"^jax is not installed: pip install jax$"):
        parse_peers("plain,jax")
    for wrong in ("tensorflow", "plain,", "all,torch", ""):
        with pytest.raises(UsageError, match=r"expected a list of plain, torch, jax, or all"):
            parse_peers(wrong)


def test_bare_compare_means_plain(monkeypatch):
    def benchmark(*_args, **settings):
        raise LookupError(settings)

    monkeypatch.setattr(benchmark_command.ScalingBenchmark, "run", benchmark)
    monkeypatch.setattr(benchmark_command.signal, "signal", lambda *_: None)
    for flags in (("--compare",), ("--compare", "plain"), ("--compare", "--floor")):
        with pytest.raises(LookupError) as caught:
            benchmark_command.main([*NET, *flags, "--budget", "50"])
        plan = caught.value.args[0]["comparisons"]
        expected = ComparisonPlan(peers=("plain",), floor="--floor" in flags, seconds=50.0)
        assert plan == expected
    assert not ComparisonPlan()
    for wrong in ("0", "-1"):
        with pytest.raises(UsageError, match=r"budget is .*; expected a number of seconds"):
            benchmark_command.main([*NET, "--floor", "--budget", wrong])


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"optimizer": {"name": "lamb"}}, "optimizer.name is lamb; .* adam or sgd"),
        ({"optimizer": {"clip_norm": 1.0}}, "pass --optimizer.clip_norm 0.0"),
        ({"optimizer": {"ema": 0.99}}, "optimizer.ema is 0.99"),
        ({"train": {"accumulation_steps": 2}}, "pass --train.accumulation_steps 1"),
        ({"precision": {"policy": "mixed_float16"}}, "float32 or mixed_bfloat16"),
    ],
)
def test_what_other_frameworks_cannot_compute_is_refused(sections, message):
    config = load_config("article", **sections)
    with pytest.raises(UsageError, match=message):
        require_equivalent(config, ["torch"])
    require_equivalent(config, ["plain"])


def test_another_number_of_parameters_is_another_model():
    require_same_model("torch", {"parameters": 2264458}, SPEC)
    with pytest.raises(DistcnnError, match=r"article of torch has 2,264,459 .* the 2,264,458 of"):
        require_same_model("torch", {"parameters": 2264459}, SPEC)


def test_a_spec_is_written_and_read_back(tmp_path):
    SPEC.write(tmp_path / "spec.json")
    assert PeerSpec.read(tmp_path / "spec.json") == SPEC


def failing() -> float:
    raise RuntimeError("no compiler\nat all")


def test_the_fastest_setting_is_kept():
    candidates = {"eager": lambda: 0.05, "broken": failing, "compiled": lambda: 0.04}
    best, words = fastest(candidates, Budget(60), lambda _: None)
    assert best == "compiled"
    assert words == ("compiled (tried: eager 50 ms, broken failed: no compiler, compiled 40 ms)")
    best, words = fastest(candidates, Budget(0), lambda _: None)
    assert best == "eager"
    assert "compiled not tried: no time left" in words
    with pytest.raises(RuntimeError, match="no compiler"):
        fastest({"broken": failing}, Budget(60), lambda _: None)


class Counting:
    def __init__(self) -> None:
        self.steps = 0

    def run(self, steps: int) -> list[float]:
        self.steps += steps
        return [0.01] * steps

    def loss(self) -> float:
        return 0.5


def test_a_side_trains_what_it_is_asked_for():
    side = Counting()
    answers: list[dict[str, Any]] = []
    serve(side, ["3\n", "2\n"], lambda **content: answers.append(content))
    assert side.steps == 5
    assert [len(answer["seconds"]) for answer in answers] == [3, 2]
    assert all(answer["loss"] == 0.5 and answer["waited"] >= 0 for answer in answers)


SCALED = ("--model.factory", "tests.tiny:scaled")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Distcnn twice and plain Keras, each in its process."""
    folder = tmp_path_factory.mktemp("peers")
    config = parse_config("benchmark", "", [*NET, *SCALED, "--data.image_size", "16"])
    assert config is not None
    (folder / "config.yaml").write_text(config.to_yaml())
    lines: list[str] = []
    arguments = (str(folder / "config.yaml"), ["plain"], 12, folder, Budget(120), 1)
    return compare_with_peers(*arguments, lines.append), lines, folder


def test_sides_are_timed_in_turn(compared):
    comparison, lines, folder = compared
    assert [row.title.split()[0] for row in comparison.rows] == ["distcnn", "distcnn", "plain"]
    assert comparison.rows[1].title.endswith("again")
    assert comparison.batch == 16
    assert comparison.rounds >= 3
    assert comparison.rows[0].ratio == 1.0
    for row in comparison.rows:
        assert row.steps >= comparison.rounds
        assert row.ratio_low <= row.ratio <= row.ratio_high
        assert row.ratio == pytest.approx(row.step_ms / comparison.rows[0].step_ms)
        assert row.images_per_second == pytest.approx(16e3 / row.step_ms)
        assert math.isfinite(row.loss)
        assert row.idle_cores < 0.2
        assert row.precision == comparison.rows[0].precision
    again = comparison.rows[1]
    assert comparison.noise == max(again.ratio_high - 1, 1 - again.ratio_low)
    assert comparison.missing == ()
    assert any(line.startswith("plain: building, ") for line in lines)
    assert json.loads((folder / "spec.json").read_text())["model"] == "scaled"


def test_a_peer_that_is_not_ready_in_time_is_left_out(compared, tmp_path):
    config = str(compared[2] / "config.yaml")
    comparison = compare_with_peers(config, ["plain"], 5, tmp_path, Budget(0.1), 1, print)
    assert [row.title.split()[0] for row in comparison.rows] == ["distcnn", "distcnn"]
    assert comparison.rounds == 1
    assert comparison.missing[0].startswith("plain was not ready within the budget of 0 s")


def test_a_side_that_fails_is_quoted(tmp_path):
    config = parse_config("benchmark", "", [*NET, "--model.factory", "tests.tiny:missing"])
    assert config is not None
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    arguments = (str(tmp_path / "config.yaml"), ["plain"], 5, tmp_path, Budget(60), 1, print)
    with pytest.raises(DistcnnError, match=r"distcnn failed: error: .*model.factory is"):
        compare_with_peers(*arguments)


def test_float16_chosen_for_a_gpu_is_refused_as_one_that_is_set(tmp_path):
    flags = [*NET, *SCALED, "--data.image_size", "16", "--precision.policy", "mixed_float16"]
    config = parse_config("benchmark", "", flags)
    assert config is not None
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    arguments = (str(tmp_path / "config.yaml"), ["torch"], 5, tmp_path, Budget(60), 1, print)
    with pytest.raises(UsageError, match=r"policy is mixed_float16; .* float32 or mixed_bfloat16"):
        compare_with_peers(*arguments)


def test_the_table_names_the_gpu():
    notes = "\n".join(peer_table(dataclasses.replace(peers(), gpu="NVIDIA H100")).notes)
    assert f"NVIDIA H100, {peers().cpu}, {peers().cores} cores; load" in notes
    assert "NVIDIA" not in "\n".join(peer_table(peers()).notes)


def test_the_tables_tell_the_ratio_the_settings_and_the_floor():
    table = peer_table(peers())
    text = "\n".join(["; ".join(row) for row in table.rows] + list(table.notes))
    assert "torch 2.13.0; mixed_bfloat16; 52.60; 1,217; 1.759; 1.741-1.777; 100" in text
    assert "eager (tried: eager 52.6 ms, torch.compile 99 ms); channels_last" in text
    assert "floor of the comparison: 0.9%" in text
    assert "AMD EPYC 9B14, 2 cores; load 0.10 before, 1.90 after; 20 rounds in 61 s" in text
    assert "jax is not installed: pip install jax" in text
    assert "too few" not in text
    assert "disturb" not in text
    crowded = dataclasses.replace(peers(), load_before=4.5)
    for disturbed in (crowded, dataclasses.replace(peers(), noise=0.4)):
        assert "other programs disturb this machine" in peer_table(disturbed).notes[2]
    few = dataclasses.replace(peers(), rounds=1)
    busy = dataclasses.replace(
        few, rows=tuple(dataclasses.replace(row, idle_cores=0.5) for row in few.rows)
    )
    assert "1 rounds are too few for an interval" in peer_table(busy).notes[2]
    assert "torch 2.13.0 kept 0.50 cores busy" in "\n".join(peer_table(busy).notes)

    table = floor_table(floor())
    text = "\n".join(["; ".join(row) for row in table.rows] + list(table.notes))
    assert "training step, without input; 29.90; 1.000; 463" in text
    assert "floor: convolutions and products alone; 24.00; 1.246; 576" in text
    assert "11 convolutions; 22.00" in text
    assert "at the peak of a large product; 15.32; 1.952; 902" in text
    assert "the step is 1.246 times the floor (1.231-1.260" in text


def test_results_hold_peers_and_floor_and_older_ones_can_be_read():
    whole = results(peers=peers(), floor=floor())
    assert Results.from_json(json.loads(json.dumps(whole.to_json())), "new") == whole
    older = results().to_json()
    del older["peers"], older["floor"]
    assert Results.from_json(older, "old") == results()
