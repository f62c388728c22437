"""TensorBoard's files, where they cannot be written."""

import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto import event_pb2

from distcnn.errors import DistcnnError
from distcnn.launching.record import append
from distcnn.training.callbacks.tensorboard import TensorBoardRestarts, TensorBoardScalars


def test_restarts_are_written_once_each_at_the_step_they_resumed_at(tmp_path):
    (tmp_path / "launch").mkdir()
    restart = {"resumed_at": 20, "steps_lost": 3, "workers": 2, "seconds": {"total": 9.5}}
    append(tmp_path / "launch", restart)  # before this process began
    write = TensorBoardRestarts(tmp_path)
    write({"step": 21})
    assert not (tmp_path / "tensorboard").exists()
    append(tmp_path / "launch", {"cause": "killed at its start"})
    append(tmp_path / "launch", restart | {"resumed_at": 40})
    write({"step": 41})
    write({"step": 42})
    (file,) = (tmp_path / "tensorboard/restarts").iterdir()
    found = [
        (value.tag, event.step, tf.make_ndarray(value.tensor).item())
        for event in map(event_pb2.Event.FromString, RawEventFileLoader(str(file)).Load())
        for value in event.summary.value
    ]
    assert found == [("seconds", 40, 9.5), ("steps_lost", 40, 3), ("workers", 40, 2)]


def test_a_folder_that_cannot_be_written_is_named_in_one_line(tmp_path):
    (tmp_path / "tensorboard").write_text("not a folder")
    with pytest.raises(DistcnnError, match=r"cannot be written to \S+/tensorboard/train: ") as told:
        TensorBoardScalars(tmp_path / "tensorboard")
    assert "\n" not in str(told.value)
    assert "--logging.tensorboard false" in str(told.value)
