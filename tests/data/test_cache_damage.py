"""Caches of decoded images that were damaged: found, named, and decoded again."""

import json
import logging
import os
import shutil
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tensorflow as tf

from distcnn.data import caching
from distcnn.data.image_file import ImageFile, write_images
from distcnn.runtime.files import block_checksums
from distcnn.runtime.watched_file import DamagedFileError, WatchedFile
from tests.data.test_caching import count_passes, load_train, read, spoil


def cut(path):
    os.truncate(path, path.stat().st_size - 100)


def flip(position):
    def change(path):
        with path.open("r+b") as file:
            file.seek(position)
            byte = file.read(1)
            file.seek(position)
            file.write(bytes([byte[0] ^ 16]))

    return change


def set_bad(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bad": [3, 4]}))


def write(content):
    return lambda path: path.write_bytes(content)


PIXEL_DAMAGE = {
    "cut": (cut, r"has 2908 bytes; expected 3008"),
    "empty": (write(b""), "has 0 bytes"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"x"), "has 3009 bytes"),
    "first pixel": (flip(128), "match its checksums in 1 blocks of 1 MiB, the first at byte 0"),
    "last pixel": (flip(-1 + 3008), "does not match its checksum"),
    "header": (flip(60), "does not match its checksum"),
}
VERDICT_DAMAGE = {
    "list of bad images": (set_bad, "does not match its checksum"),
    "no JSON": (write(b"{"), "is not a record"),
    "no text": (write(b"\xff\xfe\x00"), "is not a record"),
    "empty": (write(b""), "is not a record"),
    "list": (write(b"[]"), "is not a record"),
    "number": (write(b"7"), "is not a record"),
    "deep": (write(b"[" * 100_000), "is not a record"),
    "other keys": (write(b'{"bad": [], "sha256": "0"}'), "is not a record"),
    "other types": (
        write(b'{"bad": 3, "key": 1, "checksums": 2, "sha256": 0}'),
        "not match its checksum",
    ),
    "unchecked": (write(b'{"bad": [], "key": "", "checksums": []}'), "has no checksum"),
}


def damaged_loads(image_folder, monkeypatch, caplog, path, change, cache):
    """Loads a damaged cache twice; returns the warning."""
    expected = read(load_train(image_folder, cache="memory"))
    change(path)
    passes = count_passes(monkeypatch)
    with caplog.at_level(logging.WARNING, "distcnn"):
        for _ in range(2):
            split = load_train(image_folder, cache=cache)
            np.testing.assert_array_equal(read(split), expected)
    assert len(passes) == 1
    (record,) = caplog.records
    message = record.getMessage()
    assert str(path) in message
    assert "\n" not in message
    assert message.endswith("; decoding the images again")
    return message


@pytest.mark.parametrize("damage", list(PIXEL_DAMAGE))
def test_damaged_pixels_are_decoded_again(damage, image_folder, monkeypatch, caplog):
    load_train(image_folder, cache="disk")
    (path,) = caching.cache_folder().glob("*.npy")
    change, words = PIXEL_DAMAGE[damage]
    assert words in damaged_loads(image_folder, monkeypatch, caplog, path, change, "disk")


@pytest.mark.parametrize("cache", ["disk", "none"])
@pytest.mark.parametrize("damage", list(VERDICT_DAMAGE))
def test_a_damaged_verdict_is_found_anew(damage, cache, image_folder, monkeypatch, caplog):
    load_train(image_folder, cache=cache)
    (path,) = caching.cache_folder().glob("*.json")
    change, words = VERDICT_DAMAGE[damage]
    assert words in damaged_loads(image_folder, monkeypatch, caplog, path, change, cache)


@pytest.mark.parametrize("name", ["*.npy", "*.json"])
def test_the_files_of_another_cache_are_not_taken(name, image_folder, monkeypatch, caplog):
    load_train(image_folder, (8, 10, 3), cache="disk")
    (path,) = caching.cache_folder().glob(name)
    load_train(image_folder, (10, 8, 3), cache="disk")
    (other,) = (found for found in caching.cache_folder().glob(name) if found != path)
    damaged_loads(
        image_folder, monkeypatch, caplog, path, lambda path: shutil.copy(other, path), "disk"
    )


def test_an_unreadable_cache_is_decoded_again(image_folder, monkeypatch, caplog):
    load_train(image_folder, cache="disk")
    (path,) = caching.cache_folder().glob("*.npy")
    real = os.open

    def refuse(name, *args, **kwargs):
        if name == path and not caplog.records:
            raise PermissionError(13, "Permission denied", str(path))
        return real(name, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    message = damaged_loads(image_folder, monkeypatch, caplog, path, lambda path: None, "disk")
    assert "cannot be read: Permission denied" in message


def test_a_removed_cache_is_decoded_again_quietly(image_folder, monkeypatch, caplog):
    load_train(image_folder, cache="disk")
    next(caching.cache_folder().glob("*.npy")).unlink()
    passes = count_passes(monkeypatch)
    load_train(image_folder, cache="disk")
    assert len(passes) == 1
    assert not caplog.records


def test_the_list_of_bad_images_outlives_the_pixels(image_folder, monkeypatch, caplog):
    spoil(image_folder)
    for _ in range(2):
        load_train(image_folder, cache="disk", on_error="skip")
    passes = count_passes(monkeypatch)
    split = load_train(image_folder, cache="none", on_error="skip")
    assert split.labels.tolist() == [0] * 4 + [1] * 4
    assert not passes


def test_two_processes_decode_a_damaged_cache_once(image_folder):
    load_train(image_folder, cache="disk")
    (path,) = caching.cache_folder().glob("*.npy")
    cut(path)
    code = (
        "import sys, logging; logging.basicConfig(level='WARNING', format='%(message)s')\n"
        "from tests.data.test_caching import load_train, read\n"
        "print(read(load_train(sys.argv[1], cache='disk')).sum())"
    )
    command = [sys.executable, "-c", code, str(image_folder)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    results = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert results[0][0] == results[1][0]
    assert sum(errors.count("decoding the images again") for _, errors in results) == 1


@pytest.fixture
def opened(image_folder):
    split = load_train(image_folder, cache="disk")
    (path,) = caching.cache_folder().glob("*.npy")
    return split, path, read(split)


@pytest.mark.parametrize("change", [cut, write(b""), flip(128), flip(3007)])
def test_damage_during_a_run_is_an_error_that_names_the_file(opened, change):
    """With a memory map, the first two of these killed the process, and the others were silent."""
    split, path, _ = opened
    gather = tf.function(split.gather)
    gather(tf.constant([11], tf.int64))
    change(path)
    with pytest.raises(tf.errors.OpError) as caught:
        gather(tf.constant([0, 11], tf.int64))
    message = str(caught.value)
    assert f"{path} " in message
    assert "start the run again, which decodes the images anew" in message


def test_a_file_that_is_replaced_or_removed_is_read_on(opened):
    split, path, expected = opened
    copy = path.with_name("copy")
    copy.write_bytes(bytes(3008))
    copy.replace(path)
    np.testing.assert_array_equal(read(split), expected)
    path.unlink()
    np.testing.assert_array_equal(read(split), expected)


def test_a_file_that_is_only_touched_is_verified_once_more(opened, monkeypatch):
    split, path, expected = opened
    runs = []
    file = split._read._images._file
    find_damage = file._find_damage

    def counted(descriptor):
        runs.append(1)
        return find_damage(descriptor)

    monkeypatch.setattr(file, "_find_damage", counted)
    for _ in range(3):
        np.testing.assert_array_equal(read(split), expected)
    assert not runs
    path.touch()
    for _ in range(3):
        np.testing.assert_array_equal(read(split), expected)
    assert len(runs) == 1


def test_a_disk_that_damages_what_is_written_is_named(image_folder, monkeypatch):
    monkeypatch.setattr(caching, "write_images", lambda *args: [*write_images(*args)[:-1], 1])
    with pytest.raises(
        DamagedFileError, match=r"npy does not match.*check the disk, or use --data"
    ):
        load_train(image_folder, cache="disk")


def test_image_files_are_npy_files(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (50, 6, 4, 3), dtype=np.uint8)
    order = np.random.default_rng(1).permutation(50)
    checksums = write_images(
        tmp_path / "x.npy", images.shape, lambda store: store(order, images[order])
    )
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), images)
    file = ImageFile(tmp_path / "x.npy", images.shape, checksums, "none")
    for rows in (order, np.arange(50), np.array([49, 49, 0, 1, 2, 9]), np.array([], np.int64)):
        np.testing.assert_array_equal(file[rows], images[rows])


def test_block_checksums(tmp_path, monkeypatch):
    monkeypatch.setattr("distcnn.runtime.files._BLOCKS_PER_TASK", 2)
    content = np.random.default_rng(0).bytes((5 << 20) + 7)
    (tmp_path / "x").write_bytes(content)
    with (tmp_path / "x").open("rb") as file:
        found = block_checksums(file.fileno())
    assert found == [
        zlib.crc32(content[start : start + (1 << 20)]) for start in range(0, 6 << 20, 1 << 20)
    ]


def test_watched_file_closes_with_its_last_user(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    file = WatchedFile(tmp_path / "x", lambda descriptor: None, "none")
    descriptor = file._descriptor
    buffer = bytearray(2)
    file.read_into(memoryview(buffer), 1)
    assert buffer == b"bc"
    del file
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(descriptor)
