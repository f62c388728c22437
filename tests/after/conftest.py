"""A finished run, its model and its images, shared by the tests of this folder."""

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pytest

from distcnn import train
from distcnn.config import DataConfig
from distcnn.data.dataset import load_split
from distcnn.data.sources import open_source
from tests.data.samples import encoded, pixels

RUN = [
    *("--recipe=quickstart", "--model.factory=tests.tiny:tiny", "--train.epochs=2"),
    *("--train.batch_size=64", "--precision.policy=float32", "--logging.every_steps=10"),
    *("--logging.progress=none", "--data.pixels=signed"),
]
"""The command line of the shared run: 21 steps per epoch."""


@dataclass(frozen=True)
class Finished:
    """A finished run; do not write into its folder."""

    path: Path

    @property
    def file(self) -> Path:
        return self.path / "model.keras"

    def model(self) -> keras.Model:
        return keras.saving.load_model(self.file)

    def images(self, split: str = "test") -> tuple[np.ndarray, np.ndarray]:
        """The images of a split as the model takes them, and their labels."""
        data = DataConfig(name="digits")
        part = load_split(data, open_source(data), (32, 32, 3), 21, split)  # type: ignore[arg-type]
        pixels = part.gather(np.arange(len(part))).numpy()
        return pixels / np.float32(127.5) - 1, part.labels


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    path = tmp_path_factory.mktemp("finished") / "run"
    assert train.main([*RUN, "--logging.profile=2,3", f"--out={path}"]) == 0
    return Finished(path)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Two classes of PNG files: 20 + 20 training, 6 + 6 test images of several sizes."""
    root = tmp_path / "images"
    for part, count in (("train", 20), ("test", 6)):
        for label, name in enumerate(("cat", "dog")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                array = pixels(9 + number, 14 - number % 3, seed=100 * label + number)
                (folder / f"{number:02d}.png").write_bytes(encoded(array, "PNG"))
    return root
