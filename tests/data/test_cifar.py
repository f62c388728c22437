import dataclasses
import hashlib
import io
import os
import pickle
import tarfile

import numpy as np
import pytest

from distcnn.config import DataConfig
from distcnn.data import cifar
from distcnn.data.cifar import open_cifar
from distcnn.data.cifar_batches import read_python_batch
from distcnn.errors import DataError

COUNTS = {"cifar10": (4, 6), "cifar100": (7, 5)}
NAMES = ["cifar10", "cifar100"]


def records(name, seed, count):
    random = np.random.default_rng(seed)
    data = random.integers(0, 256, (count, 3072), dtype=np.uint8)
    return data, random.integers(0, len(cifar.SETS[name].classes), count).tolist()


def batch_bytes(name, index, seed, count):
    """A batch in the layout with that index: 0 pickled, 1 binary."""
    data, labels = records(name, seed, count)
    if index == 0:
        key = b"labels" if name == "cifar10" else b"fine_labels"
        return pickle.dumps({b"data": data, key: labels}, protocol=4)
    columns = [np.array(labels, np.uint8)[:, None], data]
    if name == "cifar100":
        columns.insert(0, np.zeros((count, 1), np.uint8))
    return np.concatenate(columns, axis=1).tobytes()


def files(name, index):
    layout, counts = cifar.SETS[name].layouts[index], cifar.SETS[name].batch_images
    train = {n: batch_bytes(name, index, s, counts[0]) for s, n in enumerate(layout.train)}
    return train | {layout.test[0]: batch_bytes(name, index, 99, counts[1])}


def write_folder(name, index, folder):
    folder.mkdir(parents=True)
    for file, content in files(name, index).items():
        (folder / file).write_bytes(content)


def write_archive(name, index, path, monkeypatch, content=None):
    layout = cifar.SETS[name].layouts[index]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for file, data in (files(name, index) if content is None else content).items():
            member = tarfile.TarInfo(f"{layout.folder}/{file}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    expect_checksum(name, index, path, monkeypatch)


def expect_checksum(name, index, path, monkeypatch):
    layouts = list(cifar.SETS[name].layouts)
    checksum = hashlib.new(layouts[index].algorithm, path.read_bytes()).hexdigest()
    layouts[index] = dataclasses.replace(layouts[index], checksum=checksum)
    changed = dataclasses.replace(cifar.SETS[name], layouts=tuple(layouts))
    monkeypatch.setitem(cifar.SETS, name, changed)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    for name, counts in COUNTS.items():
        changed = dataclasses.replace(cifar.SETS[name], batch_images=counts)
        monkeypatch.setitem(cifar.SETS, name, changed)


def check(source, name):
    assert source.name == name
    assert source.image_shape == (32, 32, 3)
    batches = len(cifar.SETS[name].layouts[0].train)
    assert len(source.train) == batches * COUNTS[name][0]
    assert len(source.test) == COUNTS[name][1]
    data, labels = records(name, 99, COUNTS[name][1])
    assert source.test.labels.tolist() == labels
    images = source.test.gather(np.arange(len(source.test))).numpy()
    np.testing.assert_array_equal(images.transpose(0, 3, 1, 2).reshape(data.shape), data)
    expected = [x for s in range(batches) for x in records(name, s, COUNTS[name][0])[1]]
    assert source.train.labels.tolist() == expected


def open_dir(name, folder):
    return open_cifar(DataConfig(name=name, dir=str(folder)))


def test_official_facts():
    assert len(cifar.SETS["cifar10"].classes) == 10
    assert len(set(cifar.SETS["cifar100"].classes)) == 100
    assert list(cifar.SETS["cifar100"].classes) == sorted(cifar.SETS["cifar100"].classes)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("index", [0, 1])
def test_reads_folders_and_archives(name, index, tmp_path, monkeypatch):
    layout = cifar.SETS[name].layouts[index]
    write_folder(name, index, tmp_path / "a" / layout.folder)
    check(open_dir(name, tmp_path / "a"), name)
    check(open_dir(name, tmp_path / "a" / layout.folder), name)
    write_archive(name, index, tmp_path / "b" / layout.archive, monkeypatch)
    check(open_dir(name, tmp_path / "b"), name)
    assert [path.name for path in (tmp_path / "b").iterdir()] == [layout.archive]


@pytest.mark.parametrize("name", NAMES)
def test_finds_what_keras_left(name, cache_home, monkeypatch):
    datasets = cache_home / "keras" / "datasets"
    folder, archive = cifar.SETS[name].keras_names
    for path in (datasets / f"{folder}_archive", datasets / archive):
        write_archive(name, 0, path, monkeypatch)
        check(open_cifar(DataConfig(name=name)), name)
        path.unlink()
    write_folder(name, 0, datasets / folder / cifar.SETS[name].layouts[0].folder)
    check(open_cifar(DataConfig(name=name)), name)


def test_downloads_into_keras_cache(tmp_path, cache_home, monkeypatch):
    write_archive("cifar10", 0, tmp_path / "cifar-10-python.tar.gz", monkeypatch)
    monkeypatch.setattr(cifar, "URL", tmp_path.as_uri())
    check(open_cifar(DataConfig(name="cifar10")), "cifar10")
    assert (cache_home / "keras" / "datasets" / "cifar-10-python.tar.gz").is_file()
    monkeypatch.setattr(cifar, "URL", "http://127.0.0.1:1")
    check(open_cifar(DataConfig(name="cifar10")), "cifar10")


def test_keras_home_rule(tmp_path, monkeypatch):
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cifar._keras_datasets() == tmp_path / ".keras" / "datasets"
    monkeypatch.setenv("HOME", str(tmp_path / "missing"))
    assert str(cifar._keras_datasets()) == "/tmp/.keras/datasets"


def test_a_given_dir_is_the_only_place(tmp_path, cache_home, monkeypatch):
    path = cache_home / "keras" / "datasets" / "cifar-10-python.tar.gz"
    write_archive("cifar10", 0, path, monkeypatch)
    with pytest.raises(
        DataError, match=r"looked for cifar-10-batches-py, .* pass --data.name folder for images in"
    ):
        open_dir("cifar10", tmp_path)


def test_reads_the_pickles_of_python_2():
    """The opcodes of the official batches: protocol 2, byte strings, numpy.core.multiarray."""
    data, labels = records("cifar10", 0, 4)
    raw = data.tobytes()
    content = (
        (
            b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
            b"K\x00\x85U\x01b\x87R(K\x01K\x04M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
            b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
            b"T" + len(raw).to_bytes(4, "little") + raw + b"tbU\x06labels]("
        )
        + b"".join(b"K" + bytes([label]) for label in labels)
        + b"eu."
    )
    images, read_labels = read_python_batch(content, 1)
    np.testing.assert_array_equal(images.transpose(0, 3, 1, 2).reshape(4, 3072), data)
    assert read_labels.tolist() == labels


def test_a_batch_that_is_no_file_does_not_stop_the_reader(tmp_path):
    folder = tmp_path / "batches"
    write_folder("cifar10", 0, folder)
    for write in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        (folder / "data_batch_2").unlink()
        write(folder / "data_batch_2")
        with pytest.raises(DataError, match="data_batch_2: it is not a regular file"):
            open_dir("cifar10", folder)


def test_batches_that_are_not_the_published_ones_are_named(tmp_path, monkeypatch, caplog):
    folder = tmp_path / "cifar-10-batches-py"
    write_folder("cifar10", 0, folder)
    published = cifar.SETS["cifar10"].layouts[0]
    sums = {n: hashlib.md5((folder / n).read_bytes()).hexdigest() for n in published.md5}
    assert set(sums) == {*published.train, *published.test}
    changed = dataclasses.replace(published, md5=sums)
    layouts = (changed, *cifar.SETS["cifar10"].layouts[1:])
    small = dataclasses.replace(cifar.SETS["cifar10"], layouts=layouts)
    monkeypatch.setitem(cifar.SETS, "cifar10", small)
    open_dir("cifar10", tmp_path)
    assert "differ" not in caplog.text
    content = bytearray((folder / "data_batch_3").read_bytes())
    content[len(content) // 2] ^= 1  # a pixel
    (folder / "data_batch_3").write_bytes(content)
    open_dir("cifar10", tmp_path)
    assert f"data_batch_3 in {folder} differ from the published files" in caplog.text
    assert "unpack cifar-10-python.tar.gz again" in caplog.text


class Malicious:
    def __reduce__(self):
        return os.system, (f"touch {os.environ['XDG_CACHE_HOME']}/owned",)


def broken_batches():
    data, labels = records("cifar10", 0, 4)
    good = {b"data": data, b"labels": labels}
    return {
        "posix.system": Malicious(),
        "a dictionary": {b"data": data},
        "expected uint8": good | {b"data": data[:, :-1]},
        "its data is list": good | {b"data": [1]},
        "expected 4 of each": good | {b"labels": labels[:-1]},
        "3 images": good | {b"data": data[:3]},
        "labels from 0 to 10": good | {b"labels": [0, 1, 2, 10]},
        "labels from -1": good | {b"labels": [0, 1, 2, -1]},
        "not a list of integers": good | {b"labels": "abcd"},
    }


@pytest.mark.parametrize("message", list(broken_batches()))
@pytest.mark.parametrize("in_archive", [False, True])
def test_refuses_broken_pickles(message, in_archive, tmp_path, cache_home, monkeypatch):
    content = pickle.dumps(broken_batches()[message], protocol=4)
    if in_archive:
        batches = files("cifar10", 0) | {"data_batch_2": content}
        write_archive("cifar10", 0, tmp_path / "cifar-10-python.tar.gz", monkeypatch, batches)
    else:
        write_folder("cifar10", 0, tmp_path / "cifar-10-batches-py")
        (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_dir("cifar10", tmp_path)
    assert "data_batch_2" in str(caught.value)
    assert not (cache_home / "owned").exists()


def test_refuses_cut_batches(tmp_path):
    write_folder("cifar10", 0, tmp_path / "py")
    path = tmp_path / "py" / "test_batch"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="test_batch is not a CIFAR batch"):
        open_dir("cifar10", tmp_path / "py")
    write_folder("cifar10", 1, tmp_path / "bin")
    path = tmp_path / "bin" / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"test_batch\.bin .* expected a multiple of 3073"):
        open_dir("cifar10", tmp_path / "bin")
    path.unlink()
    with pytest.raises(DataError, match=r"cannot read .*test_batch\.bin: No such file"):
        open_dir("cifar10", tmp_path / "bin")


def test_refuses_batches_of_absurd_size(tmp_path, monkeypatch):
    write_folder("cifar10", 1, tmp_path / "bin")
    path = tmp_path / "bin" / "data_batch_4.bin"
    os.truncate(path, 1 << 40)
    with pytest.raises(DataError, match=r"data_batch_4\.bin has 1099511627776 bytes; expected at"):
        open_dir("cifar10", tmp_path / "bin")
    monkeypatch.setattr(cifar, "MAX_BATCH_BYTES", 1000)
    write_archive("cifar10", 0, tmp_path / "cifar-10-python.tar.gz", monkeypatch)
    with pytest.raises(DataError, match=r"cifar-10-batches-py/data_batch_1 has \d+ bytes"):
        open_dir("cifar10", tmp_path)


def test_refuses_broken_archives(tmp_path, monkeypatch):
    path = tmp_path / "cifar-10-python.tar.gz"
    write_archive("cifar10", 0, path, monkeypatch)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"x")
    with pytest.raises(DataError, match="damaged or not the expected file: its sha256 is"):
        open_dir("cifar10", tmp_path)
    for content in (whole[: len(whole) // 2], b"no archive", whole[:40] + b"x" * 50 + whole[90:]):
        path.write_bytes(content)
        expect_checksum("cifar10", 0, path, monkeypatch)
        with pytest.raises(DataError, match="cannot be unpacked"):
            open_dir("cifar10", tmp_path)
    batches = files("cifar10", 0)
    del batches["data_batch_3"]
    write_archive("cifar10", 0, path, monkeypatch, batches)
    with pytest.raises(DataError, match="lacks the batches data_batch_3"):
        open_dir("cifar10", tmp_path)
