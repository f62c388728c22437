"""Model files that are none."""

import os
import zipfile

import pytest

from distcnn.errors import DistcnnError
from distcnn.storage.model_file import load_model, read_description


@pytest.mark.parametrize("read", [load_model, read_description])
def test_a_model_that_would_expand_is_refused(read, tmp_path):
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", bytes(10**7))
    with pytest.raises(DistcnnError, match=r"it has [\d,]+ bytes and would expand to 10,000,002$"):
        read(path)


@pytest.mark.parametrize("read", [load_model, read_description])
def test_a_fifo_does_not_stop_the_reader(read, tmp_path):
    os.mkfifo(tmp_path / "model.keras")
    with pytest.raises(DistcnnError, match="it is not a regular file"):
        read(tmp_path / "model.keras")
