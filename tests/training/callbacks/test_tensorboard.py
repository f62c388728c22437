"""TensorBoard's files, where they cannot be written."""

import pytest

from distcnn.errors import DistcnnError
from distcnn.training.callbacks.tensorboard import TensorBoardScalars


def test_a_folder_that_cannot_be_written_is_named_in_one_line(tmp_path):
    (tmp_path / "tensorboard").write_text("not a folder")
    with pytest.raises(DistcnnError, match=r"cannot be written to \S+/tensorboard/train: ") as told:
        TensorBoardScalars(tmp_path / "tensorboard")
    assert "\n" not in str(told.value)
    assert "--logging.tensorboard false" in str(told.value)
