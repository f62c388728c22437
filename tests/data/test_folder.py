import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from distcnn.config import DataConfig
from distcnn.data.file_list import FileList
from distcnn.data.folder import FolderSplit
from distcnn.data.sources import open_source
from distcnn.data.verify import decode_all, explain
from distcnn.errors import DataError
from tests.data.samples import encoded, pixels


def open_folder(root, **options):
    return open_source(DataConfig(name="folder", dir=str(root), **options))


def test_opens_sorted_classes_and_files(image_folder):
    (image_folder / "train" / "cat" / ".hidden").write_text("x")
    (image_folder / "train" / "cat" / "Thumbs.db").write_text("x")
    (image_folder / "train" / ".DS_Store").write_text("x")
    source = open_folder(image_folder)
    assert source.classes == ("cat", "dog")
    assert source.image_shape is None
    assert source.validation is None
    assert source.train.labels.tolist() == [0] * 6 + [1] * 6
    assert source.train.labels.dtype == np.int64
    assert source.test.labels.tolist() == [0, 0, 1, 1]
    assert source.train.describe(7) == str(image_folder / "train" / "dog" / "b.JPEG")


def test_gather_in_a_graph_equals_direct(image_folder):
    split = open_folder(image_folder).train.resized((8, 8, 3))
    dataset = tf.data.Dataset.range(len(split)).batch(5).map(split.gather, num_parallel_calls=2)
    read = np.concatenate([batch.numpy() for batch in dataset])
    np.testing.assert_array_equal(read, split.gather(tf.range(12, dtype=tf.int64)).numpy())
    part = split.subset(np.array([7, 2]))
    assert part.labels.tolist() == [1, 0]
    np.testing.assert_array_equal(part.gather(tf.constant([0, 1])).numpy(), read[[7, 2]])


def test_gather_without_a_size_is_refused(image_folder):
    with pytest.raises(ValueError, match="resized"):
        open_folder(image_folder).train.gather(tf.constant([0]))


def test_val_and_test_only(image_folder):
    shutil.copytree(image_folder / "test", image_folder / "val")
    assert len(open_folder(image_folder).validation) == 4
    shutil.rmtree(image_folder / "train")
    shutil.rmtree(image_folder / "val")
    source = open_folder(image_folder)
    assert source.train is None
    assert source.classes == ("cat", "dog")


def test_fingerprint_follows_the_files(image_folder):
    before = open_folder(image_folder).train.fingerprint()
    assert open_folder(image_folder).train.fingerprint() == before
    assert open_folder(image_folder).train.subset(np.arange(11)).fingerprint() != before
    os.utime(image_folder / "train" / "cat" / "a.jpg", ns=(1, 1))
    assert open_folder(image_folder).train.fingerprint() != before


def message_of(root, **options):
    with pytest.raises(DataError) as caught:
        open_folder(root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_strays_fail_or_are_left_out(image_folder, caplog):
    notes = image_folder / "train" / "cat" / "notes.txt"
    notes.write_text("x")
    message = message_of(image_folder)
    assert f"1 entry is not an image in a class folder; the first is {notes} (its name" in message
    assert "pass --data.on_error skip" in message
    assert len(open_folder(image_folder, on_error="skip").train) == 12
    assert "1 entry" in caplog.text


def test_a_table_beside_the_classes_may_have_been_meant(image_folder):
    table = image_folder / "train" / "labels.csv"
    table.write_text("path,label\n")
    expected = (
        f"outside of the class folders; to take the labels from it, pass --data.labels {table}"
    )
    assert expected in message_of(image_folder)


def test_folders_in_class_folders_are_named_with_the_remedy(image_folder, caplog):
    cat = image_folder / "train" / "cat"
    (cat / "notes.txt").write_text("x")
    (cat / "persian").mkdir()
    shutil.copy(cat / "a.jpg", cat / "persian")
    expected = (
        "2 entries are not images in a class folder; the first is "
        f"{cat}/persian (a folder in a class folder; move its images up to {cat})"
    )
    assert expected in message_of(image_folder)
    assert len(open_folder(image_folder, on_error="skip").train) == 12
    assert expected in caplog.text
    for path in cat.iterdir():
        if path.is_file():
            path.rename(cat / "persian" / path.name)
    assert f"move those of the folder persian in it up to {cat}" in message_of(image_folder)


@pytest.mark.parametrize("kind", ["a FIFO", "a device", "a socket"])
def test_special_files_named_as_images_are_strays(image_folder, kind, monkeypatch):
    monkeypatch.chdir(image_folder / "train" / "dog")
    if kind == "a FIFO":
        os.mkfifo("x.png")
    elif kind == "a device":
        os.symlink("/dev/zero", "x.png")  # noqa: PTH211
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("x.png")
    assert f"dog/x.png ({kind}; expected a regular file)" in message_of(image_folder)
    assert len(open_folder(image_folder, on_error="skip").train) == 12


def test_usual_extensions_and_junk(image_folder):
    cat = image_folder / "train" / "cat"
    for name in ("1.jpe", "2.JFIF", "3.jif", "4.Tif", "5.avif", "6.pjpeg"):
        shutil.copy(cat / "a.jpg", cat / name)
    for name in ("desktop.ini", "THUMBS.DB", ".hidden"):
        (cat / name).write_text("x")
    for name in ("@eaDir", "__MACOSX", "lost+found"):
        (image_folder / "train" / name).mkdir()
        (cat / name).mkdir()
    source = open_folder(image_folder)
    assert source.classes == ("cat", "dog")
    assert len(source.train) == 18


@pytest.mark.parametrize(
    ("old", "new"),
    [("val", "valid"), ("val", "validation"), ("val", "Val"), ("train", "training")],
)
def test_splits_may_be_spelt_differently(image_folder, old, new):
    shutil.copytree(image_folder / "test", image_folder / "val")
    (image_folder / "test").rename(image_folder / "TESTING")
    (image_folder / old).rename(image_folder / new)
    source = open_folder(image_folder)
    assert [len(s) for s in (source.train, source.validation, source.test)] == [12, 4, 4]
    shutil.copytree(image_folder / "TESTING", image_folder / old)
    names = " and ".join(sorted((old, new)))
    message = message_of(image_folder)
    assert f"contains the folders {names}; expected one of them" in message


def test_folders_that_look_like_splits_are_pointed_out(image_folder, caplog):
    shutil.copytree(image_folder / "test", image_folder / "dev")
    (image_folder / "docs" / "more").mkdir(parents=True)
    open_folder(image_folder)
    (warning,) = caplog.messages
    assert f"{image_folder}/dev looks like a split of the images, but is not used" in warning


def test_a_single_class_is_refused(image_folder):
    shutil.rmtree(image_folder / "train" / "dog")
    message = message_of(image_folder)
    assert "train contains 1 class (cat); expected at least 2" in message


def test_class_names_that_are_not_utf_8(image_folder):
    for part in ("train", "test"):
        (image_folder / part / "dog").rename(image_folder / part / os.fsdecode(b"d\xf6g"))
    source = open_folder(image_folder)
    assert source.classes == ("cat", "d\ufffdg")
    assert source.test.labels.tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(decode_all(source.train.resized((4, 4, 3))), [])
    (image_folder / "train" / "cat").rename(image_folder / "train" / os.fsdecode(b"d\xe4g"))
    assert "2 class folders named d\ufffdg, which differ only in bytes" in message_of(image_folder)


def test_names_cannot_control_the_terminal(image_folder):
    evil = image_folder / "train" / "\x1b[2J"
    evil.mkdir()
    assert f"{image_folder}/train/\\x1b[2J contains no images" in message_of(image_folder)
    (evil / "\x9b1m.txt").write_text("x")
    (evil / "a.png").write_bytes(encoded(pixels(4, 4), "PNG"))
    assert "/\\x1b[2J/\\x9b1m.txt (" in message_of(image_folder)


def test_folders_that_cannot_be_read(image_folder, monkeypatch):
    def refused(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", refused)
    assert f"the folder {image_folder} cannot be read: Permission denied" in message_of(
        image_folder
    )


def test_layout_errors(tmp_path, image_folder):
    assert "does not exist" in message_of(tmp_path / "missing")
    (tmp_path / "file").write_text("x")
    assert "is a file" in message_of(tmp_path / "file")
    os.mkfifo(tmp_path / "fifo")
    assert "fifo is a FIFO; expected a folder" in message_of(tmp_path / "fifo")
    assert "null is a device; expected a folder" in message_of("/dev/null")
    (tmp_path / "loop").symlink_to("loop")
    assert "cannot be read: Too many levels of symbolic links" in message_of(tmp_path / "loop")
    (tmp_path / "empty").mkdir()
    assert "is empty" in message_of(tmp_path / "empty")
    assert len(open_folder(image_folder / "train", test_split=0.0).train) == 12
    (tmp_path / "other" / "stuff").mkdir(parents=True)
    assert "neither class folders nor a train or test folder" in message_of(tmp_path / "other")
    (tmp_path / "bare" / "train").mkdir(parents=True)
    assert "contains no class folders" in message_of(tmp_path / "bare")
    (image_folder / "val").mkdir()
    assert "val contains no class folders" in message_of(image_folder)
    (image_folder / "val" / "emu").mkdir()
    (image_folder / "val" / "emu" / "a.png").write_bytes(encoded(pixels(4, 4), "PNG"))
    assert "emu is a class that" in message_of(image_folder)
    shutil.rmtree(image_folder / "val")
    (image_folder / "train" / "empty_class").mkdir()
    assert "empty_class contains no images" in message_of(image_folder)


def make_unreadable(folder):
    """Files that must not be opened or cannot be read, and what is said about them."""
    os.mkfifo(folder / "fifo")
    (folder / "device").symlink_to("/dev/zero")
    (folder / "link.png").symlink_to("nothing")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "folder").mkdir()
    with (folder / "large.png").open("wb") as file:
        file.truncate(600_000_000)
    return {
        "fifo": "a FIFO; expected a regular file",
        "device": "a device; expected a regular file",
        "link.png": "No such file or directory",
        "loop.png": "Too many levels of symbolic links",
        "folder": "a folder; expected a regular file",
        "large.png": "600 MB; expected at most 512 MB",
    }


def test_only_regular_files_of_bounded_size_are_read(tmp_path):
    expected = make_unreadable(tmp_path)
    names = [*expected, "good\x1b.png", os.fsdecode(b"caf\xe9.png")]
    for name in names[-2:]:
        (tmp_path / name).write_bytes(encoded(pixels(4, 4), "PNG") + b"\0\0")
    split = FolderSplit(FileList.of([tmp_path / name for name in names]), np.zeros(8, np.int64))
    assert len(split.fingerprint()) == 64
    resized = split.resized((4, 4, 3))
    bad = decode_all(resized)
    assert bad == list(range(6))
    reasons = [f"{tmp_path / name} ({reason})" for name, reason in expected.items()]
    assert explain(resized, bad) == reasons
    contents = split.read(tf.constant([6, 7], tf.int64)).numpy()
    assert all(content == encoded(pixels(4, 4), "PNG") + b"\0\0" for content in contents)
    with pytest.raises(tf.errors.OpError, match=r"fifo: a FIFO; expected a regular file"):
        split.read(tf.constant([0], tf.int64))


def test_a_file_that_vanishes_is_named_safely(tmp_path):
    names = ["\x1b[2J.png", os.fsdecode(b"caf\xe9.png")]
    split = FolderSplit(FileList.of([tmp_path / name for name in names]), np.zeros(2, np.int64))
    assert explain(split.resized((4, 4, 3)), [0, 1]) == [
        f"{tmp_path}/\\x1b[2J.png (No such file or directory)",
        f"{tmp_path}/{names[1]} (No such file or directory)",
    ]


def test_the_content_hash_does_not_depend_on_where_the_images_lie(tmp_path):
    for place in ("here", "there"):
        for name in ("a", "b"):
            file = tmp_path / place / "train" / name / "1.png"
            file.parent.mkdir(parents=True)
            file.write_bytes(encoded(pixels(8, 8, 1), "PNG"))
            os.utime(file, ns=(10**18, 10**18))
    here, there = (
        open_source(DataConfig(name="folder", dir=str(tmp_path / place)))
        for place in ("here", "there")
    )
    assert here.content_hash() == there.content_hash()
    (tmp_path / "there" / "train" / "a" / "1.png").rename(tmp_path / "there/train/a/2.png")
    renamed = open_source(DataConfig(name="folder", dir=str(tmp_path / "there")))
    assert renamed.content_hash() != here.content_hash()


def replace_unnoticed(file: Path) -> None:
    """Replaces an image by another one of the same size and modification time."""
    status = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_verifying_bytes_finds_what_size_and_time_hide(image_folder):
    def hashes(verify: str) -> list[str]:
        source = open_folder(image_folder, verify=verify)
        assert isinstance(source.train, FolderSplit)
        part = source.train.subset(np.arange(5))
        return [source.content_hash(), source.train.fingerprint(), part.content_hash()]

    before = {verify: hashes(verify) for verify in ("stat", "bytes")}
    assert hashes("bytes") == before["bytes"]
    replace_unnoticed(sorted((image_folder / "train" / "cat").iterdir())[0])
    assert hashes("stat") == before["stat"]
    assert all(new != old for new, old in zip(hashes("bytes"), before["bytes"], strict=True))


def test_verifying_bytes_ignores_times_and_survives_unreadable_files(tmp_path):
    names = [*make_unreadable(tmp_path), "good.png"]
    (tmp_path / "good.png").write_bytes(encoded(pixels(4, 4), "PNG"))
    paths, labels = [tmp_path / name for name in names], np.zeros(len(names), np.int64)
    before = FolderSplit(FileList.of(paths), labels, "bytes").content_hash()
    os.utime(tmp_path / "good.png", ns=(10**18, 10**18))
    assert FolderSplit(FileList.of(paths), labels, "bytes").content_hash() == before


def test_a_file_list_recognises_each_change(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / "x" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "x" / name).write_text(name)
    names = [b"x/a", b"x/b", b"x/c", b"x/missing"]
    folder = os.fsencode(tmp_path)
    files = FileList(folder, names)
    assert files.states[:, 0].tolist() == [1, 1, 1, -1]
    assert files.states[3, 1] == 2  # ENOENT
    part = files.take(np.array([2, 0]))
    assert [part.path(0), part.path(1)] == [folder + b"/x/c", folder + b"/x/a"]
    assert part.states.tolist() == files.states[[2, 0]].tolist()
    assert part.digest() == FileList(folder, [b"x/c", b"x/a"]).digest()
    hashes = {files.digest(), part.digest(), FileList(folder, names[:3]).digest()}
    hashes.add(FileList(folder, [b"x/b", b"x/a", b"x/c", b"x/missing"]).digest())
    (tmp_path / "x" / "b").write_text("longer")
    hashes.add(FileList(folder, names).digest())
    os.utime(tmp_path / "x" / "a", ns=(1, 1))
    hashes.add(FileList(folder, names).digest())
    (tmp_path / "x" / "missing").write_text("")
    hashes.add(FileList(folder, names).digest())
    assert len(hashes) == 7


def test_files_anywhere_are_read_by_the_paths_that_are_given(tmp_path, monkeypatch):
    """Absolute and relative ones together, and `..` after a link, which is not that of its text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "far/away").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/away")
    (tmp_path / "far/x.png").write_bytes(b"right")
    (tmp_path / "x.png").write_bytes(b"wrong")
    paths = [Path("link/../x.png"), tmp_path / "x.png", Path("x.png")]
    split = FolderSplit(FileList.of(paths), np.zeros(3, np.int64))
    assert split.read(tf.range(3)).numpy().tolist() == [b"right", b"wrong", b"wrong"]
    assert [split.describe(index) for index in range(3)] == [str(path) for path in paths]
