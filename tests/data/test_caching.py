import fcntl
import json
import logging
import os
import resource
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from distcnn.config import DataConfig
from distcnn.data import caching
from distcnn.data.arrays import ArraySplit
from distcnn.data.cache_location import cache_folder
from distcnn.data.caching import load
from distcnn.data.folder import FolderSplit, open_folder
from distcnn.errors import DataError
from distcnn.runtime import free_space
from distcnn.runtime.files import locked

SHAPE = (8, 10, 3)


def config(root, **options):
    return DataConfig(name="folder", dir=str(root), **options)


def load_train(root, shape=SHAPE, **options):
    chosen = config(root, **options)
    source: Any = open_folder(chosen)
    return load(source.train, shape, chosen)


def read(split):
    return split.gather(tf.range(len(split), dtype=tf.int64)).numpy()


def count_passes(monkeypatch):
    passes: list[int] = []
    decode_all = caching.decode_all

    def counted(*args):
        passes.append(1)
        return decode_all(*args)

    monkeypatch.setattr(caching, "decode_all", counted)
    return passes


def spoil(root):
    first = root / "train" / "cat" / "a.jpg"
    first.write_bytes(first.read_bytes()[:-40])
    (root / "train" / "cat" / "c.png").write_bytes(b"")
    (root / "train" / "dog" / "b.JPEG").write_text("this is text")
    (root / "train" / "dog" / "e.webp").write_bytes(b"RIFF....WEBP")


@pytest.mark.parametrize("shape", [SHAPE, (5, 5, 1)])
def test_all_caches_give_the_same_images(image_folder, shape):
    splits = {c: load_train(image_folder, shape, cache=c) for c in ("memory", "disk", "none")}
    assert isinstance(splits["memory"], ArraySplit)
    assert isinstance(splits["disk"], ArraySplit)
    assert isinstance(splits["none"], FolderSplit)
    expected = read(splits["none"])
    assert expected.shape == (12, *shape)
    np.testing.assert_array_equal(read(splits["memory"]), expected)
    np.testing.assert_array_equal(read(splits["disk"]), expected)
    assert all(s.labels.tolist() == [0] * 6 + [1] * 6 for s in splits.values())


@pytest.mark.parametrize("cache", ["disk", "none"])
def test_a_second_run_decodes_nothing_until_a_file_changes(image_folder, cache, monkeypatch):
    passes = count_passes(monkeypatch)
    for expected in (1, 1):
        load_train(image_folder, cache=cache)
        assert len(passes) == expected
    load_train(image_folder, (4, 4, 3), cache=cache)
    assert len(passes) == 2
    os.utime(image_folder / "train" / "cat" / "a.jpg", ns=(1, 1))
    load_train(image_folder, cache=cache)
    assert len(passes) == 3
    assert not list(cache_folder().glob(".*partial"))


def test_auto_takes_what_fits(image_folder, monkeypatch, tmp_path):
    assert caching._choose_cache(1000, "auto", 1) == "memory"
    monkeypatch.setattr(caching, "available_memory", lambda: 3999)
    assert caching._choose_cache(1000, "auto", 1) == "disk"
    monkeypatch.setattr(caching, "writable_disk", lambda folder: 1999)
    assert caching._choose_cache(1000, "auto", 1) == "none"
    assert isinstance(load_train(image_folder), ArraySplit | FolderSplit)


def test_capacity(tmp_path, monkeypatch):
    assert 0 < free_space.available_memory() < 1 << 50
    assert free_space.writable_disk(tmp_path / "not" / "there") > 0
    (tmp_path / "file").write_text("x")
    assert free_space.writable_disk(tmp_path / "file" / "below") == 0
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    monkeypatch.setattr(free_space, "_CGROUP", tmp_path)
    assert free_space.available_memory() == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert free_space.available_memory() > 600


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_every_bad_image_is_found(image_folder, cache):
    spoil(image_folder)
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            load_train(image_folder, cache=cache)
        message = str(caught.value)
        assert message.startswith("4 of 12 images cannot be decoded: ")
        assert "\n" not in message
        for name in ("cat/a.jpg (", "cat/c.png (the file is empty)", "dog/b.JPEG (not an image"):
            assert name in message
        assert "e.webp" not in message
        assert "pass --data.on_error skip" in message


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_skip_leaves_the_bad_images_out(image_folder, cache, caplog):
    good = read(load_train(image_folder, cache="none"))
    spoil(image_folder)
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "distcnn"):
            split = load_train(image_folder, cache=cache, on_error="skip")
        assert "4 of 12 images" in caplog.text
        assert split.labels.tolist() == [0] * 4 + [1] * 4
        np.testing.assert_array_equal(read(split), np.delete(good, [0, 2, 7, 10], axis=0))


def test_skip_does_not_empty_a_class(image_folder):
    for path in (image_folder / "train" / "dog").iterdir():
        path.write_bytes(b"no")
    with pytest.raises(DataError, match="class with label 1 has no images"):
        load_train(image_folder, cache="memory", on_error="skip")


def test_cache_folder_that_cannot_be_made(image_folder, cache_home, monkeypatch, caplog):
    (cache_home / "file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home / "file"))
    with pytest.raises(DataError, match=r"Not a directory.*--data\.cache memory or none"):
        load_train(image_folder, cache="disk")
    assert len(load_train(image_folder, cache="none")) == 12
    assert "cannot record" in caplog.text
    monkeypatch.setattr(caching, "available_memory", lambda: 0)
    assert isinstance(load_train(image_folder, cache="auto"), FolderSplit)


def test_full_disk(image_folder):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(DataError, match=r"cannot store 0\.0 MB .*File too large"):
            load_train(image_folder, cache="disk")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(cache_folder().glob("*.npy"))
    assert not list(cache_folder().glob(".*partial"))
    assert len(load_train(image_folder, cache="disk")) == 12


def test_array_without_verdict_is_decoded_again(image_folder, monkeypatch):
    load_train(image_folder, cache="disk")
    (verdict,) = cache_folder().glob("*.json")
    assert json.loads(verdict.read_text())["bad"] == []
    verdict.unlink()
    passes = count_passes(monkeypatch)
    load_train(image_folder, cache="disk")
    assert len(passes) == 1


def test_lock_keeps_other_processes_out(tmp_path):
    code = (
        "import sys, pathlib; from distcnn.runtime.files import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    path = tmp_path / "lock"
    command = [sys.executable, "-c", code, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with path.open("r+b") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process.communicate()
    with locked(path):
        assert process.returncode == 0


def test_array_splits_are_only_resized():
    split = ArraySplit(np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, np.int64))
    loaded = load(split, (6, 6, 3), DataConfig(name="digits", cache="disk"))
    assert loaded.image_shape == (6, 6, 3)
    assert not cache_folder().exists()
