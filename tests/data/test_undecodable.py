import logging
import os
import re
from pathlib import Path

import pytest

from distcnn.config import DataConfig
from distcnn.data.caching import load
from distcnn.data.folder import open_folder
from distcnn.data.undecodable import name_all
from distcnn.errors import DataError


def load_train(root, **options):
    config = DataConfig(name="folder", dir=str(root), cache="memory", **options)
    train = open_folder(config).train
    assert train is not None
    return load(train, (4, 4, 3), config)


def test_all_bad_images_are_named_in_a_file(image_folder, cache_home, caplog):
    cat = image_folder / "train" / "cat"
    names = [f"bad{number}.png" for number in range(4)]
    names += ["\x1b[2J.png", os.fsdecode(b"caf\xe9.png")]
    for name in names:
        (cat / name).write_text("no image")
    with pytest.raises(DataError) as caught:
        load_train(image_folder)
    message = str(caught.value)
    assert message.count("\n") == 0
    assert message.startswith("6 of 18 images cannot be decoded: ")
    found = re.search(r", \.\.\. \(all are listed in (.*\.txt)\); repair or", message)
    assert found
    path = Path(found[1])
    assert path.parent == cache_home / "distcnn"
    lines = path.read_bytes().splitlines()
    reason = b" (not an image of a known format (JPEG, PNG, GIF, BMP, WebP, TIFF, AVIF))"
    folder = os.fsencode(cat)
    shown = [*(name.encode() for name in names[:4]), b"\\x1b[2J.png", b"caf\xe9.png"]
    assert sorted(lines) == sorted(folder + b"/" + name + reason for name in shown)

    with caplog.at_level(logging.WARNING, "distcnn"):
        assert len(load_train(image_folder, on_error="skip")) == 12
    assert f"(all are listed in {path}); skipping them" in caplog.text


def test_few_images_need_no_file(tmp_path):
    folder = tmp_path / "cache"
    assert name_all(["a (x)", "b (y)", "c (z)"], folder) == "a (x), b (y), c (z)"
    assert not folder.exists()


def test_a_file_that_cannot_be_written_is_no_further_error(tmp_path):
    (tmp_path / "file").write_text("x")
    text = name_all(list("abcd"), tmp_path / "file")
    assert text.startswith("a, b, c, ... (cannot list all in ")
    assert text.endswith(".txt: File exists)")
