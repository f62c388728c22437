from pathlib import Path

import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distcnn import train
from distcnn.training.callbacks.tensorboard import Profiler
from tests.after.conftest import RUN, Finished
from tests.runs import rows


def events(run: Path, name: str) -> EventAccumulator:
    accumulator = EventAccumulator(str(run / "tensorboard" / name), {"tensors": 0})
    return accumulator.Reload()


def scalars(accumulator: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    points = accumulator.Tensors(tag)
    return [(point.step, float(tf.make_ndarray(point.tensor_proto))) for point in points]


def test_scalars_are_the_rows(finished: Finished):
    recorded = rows(finished.path)
    written = events(finished.path, "train")
    names = {key: key for key in ("loss", "accuracy", "learning_rate")}
    names |= {key: f"speed/{key}" for key in ("images_per_second", "step_ms", "input_wait")}
    assert set(written.Tags()["tensors"]) == {*names.values(), "speed/save_stall"}
    ((step, stall),) = scalars(written, "speed/save_stall")
    assert step == 30  # the first row after the only save that another epoch follows
    assert 0 < stall < 60
    for key, tag in names.items():
        expected = [(row["step"], row[key]) for row in recorded if row[key] is not None]
        assert scalars(written, tag) == [(step, pytest.approx(v)) for step, v in expected]
    assert [step for step, _ in scalars(written, "loss")] == [10, 20, 21, 30, 40, 42]

    written = events(finished.path, "validation")
    assert set(written.Tags()["tensors"]) == {"loss", "accuracy"}
    for key in ("loss", "accuracy"):
        ends = [(row["step"], row[f"val_{key}"]) for row in recorded if "val_loss" in row]
        assert scalars(written, key) == [(step, pytest.approx(v)) for step, v in ends]
    assert [step for step, _ in scalars(written, "loss")] == [21, 42]


def test_every_folder_has_one_writer(finished: Finished):
    """Since TensorBoard follows only the newest file of a folder."""
    files = [p.parent.name for p in finished.path.glob("tensorboard/*/events.out.*")]
    assert sorted(files) == ["images", "train", "validation"]


def test_images_and_the_graph(finished: Finished):
    written = events(finished.path, "images")
    steps = {tag: [e.step for e in written.Tensors(tag)] for tag in written.Tags()["tensors"]}
    assert steps == {
        "batch/augmented": [0],
        "first_layer/filters": [0, 21, 42],
        "first_layer/input": [0, 21, 42],
        "first_layer/feature_maps": [0, 21, 42],
        "validation/confusion_matrix": [42],
        "validation/worst_mistakes": [42],
    }
    for tag in steps:
        width, height, png = tf.make_ndarray(written.Tensors(tag)[0].tensor_proto)
        pixels = tf.io.decode_png(png).numpy()
        assert pixels.shape == (int(height), int(width), 3)
        assert pixels.std() > 5, tag
    operations = {node.op for node in written.Graph().node}
    assert {"Conv2D", "MatMul", "Softmax"} <= operations


def test_a_profile_is_written(finished: Finished):
    (profile,) = finished.path.glob("tensorboard/plugins/profile/*/*.xplane.pb")
    assert b"step_num" in profile.read_bytes()  # else the Profile page does not know the steps


@pytest.mark.parametrize(
    ("flag", "folders"),
    [("--logging.images=false", ["train", "validation"]), ("--logging.tensorboard=false", [])],
)
def test_less_is_written_on_demand(flag, folders):
    options = ["--data.name=synthetic", "--data.synthetic_examples=200", "--train.epochs=1"]
    assert train.main([*RUN, *options, flag, "--out=run"]) == 0
    assert sorted(path.name for path in Path("run").glob("tensorboard/*")) == folders


@pytest.mark.parametrize(
    ("together", "first", "last", "profiled"),
    [(1, 2, 3, [2, 3]), (4, 6, 7, [8]), (4, 3, 6, [4, 8]), (1, 9, 20, [9, 10]), (1, 30, 40, [])],
)
def test_profiled_are_the_executions_of_the_steps(together, first, last, profiled, monkeypatch):
    """All executions that contain one of the steps, up to the end of the training."""

    class Training:
        steps_per_execution = together
        step = 0

    training = Training()
    running = False
    seen = []

    def switch(on: bool) -> None:
        nonlocal running
        assert running != on
        running = on

    profiler = tf.profiler.experimental
    monkeypatch.setattr(profiler, "start", lambda folder: switch(True))
    monkeypatch.setattr(profiler, "stop", lambda: switch(False))
    callback = Profiler(Path("folder"), training, first, last)  # type: ignore[arg-type]
    while training.step < 10:
        callback.on_train_batch_begin(0)
        training.step = min(10, training.step + together)
        if running:
            seen.append(training.step)
        callback.on_train_batch_end(0)
    callback.on_train_end()
    assert not running
    assert seen == profiled


def test_models_without_a_convolution_have_no_feature_maps():
    options = ["--model.factory=tests.tiny:fixed_input", "--model.args={}", "--train.epochs=1"]
    assert train.main([*RUN, *options, "--out=run"]) == 0
    tags = events(Path("run"), "images").Tags()["tensors"]
    assert set(tags) == {
        "batch/augmented",
        "validation/confusion_matrix",
        "validation/worst_mistakes",
    }
