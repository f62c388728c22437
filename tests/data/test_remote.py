"""Data at an address: copied once, brought up to date, refused with a reason."""

import dataclasses
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distcnn.config import DataConfig
from distcnn.data.remote import with_local_files
from distcnn.data.sources import open_source
from distcnn.errors import DataError, UsageError


class Bucket:
    """A file system like those of fsspec, over a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.copied: list[str] = []
        self.fails: set[str] = set()

    def find(self, root: str, detail: bool) -> dict[str, dict[str, Any]]:
        if not (self.folder / root).is_dir():
            raise FileNotFoundError(f"no bucket\n{root}")
        files = sorted(path for path in (self.folder / root).rglob("*") if path.is_file())
        return {
            str(path.relative_to(self.folder)): {
                "size": path.stat().st_size,
                "ETag": str(hash(path.read_bytes())),
            }
            for path in files
        }

    def get_file(self, place: str, target: str) -> None:
        if place in self.fails:
            raise ConnectionError("reset by peer")
        shutil.copy(self.folder / place, target)
        self.copied.append(place)


@pytest.fixture
def bucket(tmp_path, image_folder, monkeypatch):
    found = Bucket(tmp_path)

    def url_to_fs(address: str) -> tuple[Bucket, str]:
        kind, _, root = address.partition("://")
        if kind != "s3":
            raise ImportError("install gcsfs")
        return found, root

    core: Any = types.ModuleType("fsspec.core")
    core.url_to_fs = url_to_fs
    monkeypatch.setitem(sys.modules, "fsspec", types.ModuleType("fsspec"))
    monkeypatch.setitem(sys.modules, "fsspec.core", core)
    return found


def test_a_folder_is_copied_once_and_kept_up_to_date(bucket, image_folder):
    config = DataConfig(name="folder", dir="s3://images")
    (image_folder / "train" / "cat" / "notes.txt").write_text("not wanted")
    source: Any = open_source(config)
    assert len(bucket.copied) == 16
    local: Any = open_source(DataConfig(name="folder", dir=str(image_folder), on_error="skip"))
    first = np.arange(12)
    np.testing.assert_array_equal(
        source.train.resized((8, 8, 3)).gather(first), local.train.resized((8, 8, 3)).gather(first)
    )
    assert open_source(config).content_hash() == source.content_hash()
    assert len(bucket.copied) == 16
    shutil.rmtree(image_folder / "test" / "cat")
    shutil.copy(image_folder / "train" / "dog" / "b.JPEG", image_folder / "train" / "dog" / "a.jpg")
    (image_folder / "train" / "dog" / "c.png").unlink()
    changed: Any = open_source(config)
    assert bucket.copied[16:] == ["images/train/dog/a.jpg"]
    assert (len(changed.train), len(changed.test)) == (11, 2)
    assert changed.content_hash() != source.content_hash()
    # The copy does not depend on this host or on when it was made.
    again = with_local_files(config)
    shutil.rmtree(Path(str(again.dir)).parent)
    assert open_source(config).content_hash() == changed.content_hash()


def test_a_file_of_labels_brings_its_images(bucket, image_folder):
    (image_folder / "labels.csv").write_text("path,label\ntrain/cat/a.jpg,x\ntrain/dog/a.jpg,y\n")
    config = DataConfig(labels="s3://images/labels.csv", test_split=0.0)
    assert len(open_source(config).train or ()) == 2
    both = dataclasses.replace(config, dir="s3://images")
    assert len(open_source(both).train or ()) == 2


def test_what_cannot_be_copied_is_named(bucket, image_folder, monkeypatch):
    config = DataConfig(name="folder", dir="s3://images")
    bucket.fails = {"images/train/dog/a.jpg"}
    with pytest.raises(DataError, match=r"train/dog/a\.jpg cannot be copied: reset by peer; run"):
        open_source(config)
    before = len(bucket.copied)
    bucket.fails = set()
    open_source(config)
    assert len(set(bucket.copied)) == len(bucket.copied) == 16 > before > 0
    with pytest.raises(DataError, match="s3://elsewhere cannot be listed: no bucket elsewhere"):
        open_source(DataConfig(name="folder", dir="s3://elsewhere"))
    with pytest.raises(UsageError, match="install gcsfs"):
        open_source(DataConfig(name="folder", dir="gs://images"))
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(UsageError, match=r"needs fsspec; pip install"):
        open_source(config)
