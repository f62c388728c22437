"""The index of class folders: used while nothing has changed, and never wrong."""

import os

import pytest

from distcnn.data import folder_index, folder_layout
from distcnn.data.folder_index import FolderIndex
from distcnn.data.folder_layout import find_classes, find_labelled_images
from distcnn.errors import DataError


@pytest.fixture
def part(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_index, "_LEAST_FILES", 1)
    monkeypatch.setattr(folder_index, "_SETTLED_NS", 0)
    for name in ("cat", "dog\nwith a line break"):
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        for number in range(3):
            (folder / f"{number}.jpg").touch()
    (tmp_path / "train/cat" / os.fsdecode(b"\xff.jpg")).touch()
    return tmp_path / "train"


@pytest.fixture
def listed(part, monkeypatch):
    """Returns the images of the split and the names of the class folders that were listed."""
    scan, found = folder_layout._scan, []

    def record(folder):
        found.append(folder)
        return scan(folder)

    monkeypatch.setattr(folder_layout, "_scan", record)

    def find(on_error="fail"):
        found.clear()
        index = FolderIndex(part, part.parent / "cache")
        files, labels = find_labelled_images(part, find_classes(part), on_error, index)
        return list(files.names), labels.tolist(), {path.name for path in found if path != part}

    return find


def test_only_folders_that_have_changed_are_listed_again(part, listed):
    names, labels, folders = listed()
    assert names[:4] == [b"cat/0.jpg", b"cat/1.jpg", b"cat/2.jpg", b"cat/\xff.jpg"]
    assert labels == [0, 0, 0, 0, 1, 1, 1]
    assert folders == {"cat", "dog\nwith a line break"}
    assert listed() == (names, labels, set())
    for change in (
        lambda: (part / "cat/1.jpg").unlink(),
        lambda: (part / "cat/2.jpg").rename(part / "cat/5.jpg"),
        lambda: (part / "cat/6.jpg").touch(),
    ):
        times = (part / "cat").stat()
        change()
        os.utime(part / "cat", ns=(times.st_atime_ns, times.st_mtime_ns))  # as if it had not been
        names, labels, folders = listed()
        assert folders == {"cat"}
        assert sorted(names[: -len("dog")]) == sorted(
            b"cat/" + os.fsencode(path.name) for path in (part / "cat").iterdir()
        )
        assert listed() == (names, labels, set())


def test_what_is_no_image_is_reported_each_time(part, listed):
    (part / "cat/notes.txt").touch()
    for _ in range(2):
        with pytest.raises(DataError, match="1 entry is not an image"):
            listed()
        assert listed("skip")[2] >= {"cat"}


def test_a_folder_that_has_just_changed_is_listed_again(part, listed, monkeypatch):
    monkeypatch.setattr(folder_index, "_SETTLED_NS", 10**12)
    assert listed()[2] == listed()[2] == {"cat", "dog\nwith a line break"}


@pytest.mark.parametrize("damage", [lambda c: c[:100], lambda c: b"", lambda c: b"x" * len(c)])
def test_a_damaged_index_is_made_anew(damage, part, listed):
    names, labels, folders = listed()
    (file,) = (part.parent / "cache").glob("*.index")
    file.write_bytes(damage(file.read_bytes()))
    assert listed() == (names, labels, folders)
    assert listed() == (names, labels, set())


def test_each_changed_byte_of_an_index_is_noticed(part, listed):
    names, labels, _ = listed()
    (file,) = (part.parent / "cache").glob("*.index")
    content = file.read_bytes()
    for place in range(0, len(content), 40):
        changed = bytearray(content)
        changed[place] ^= 1
        file.write_bytes(changed)
        assert listed()[:2] == (names, labels)


def test_an_index_that_cannot_be_written_does_not_matter(part, listed):
    (part.parent / "cache").write_text("a file where the folder should be")
    assert listed() == listed()
