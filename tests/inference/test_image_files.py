import os

import pytest

from distcnn.errors import DataError
from distcnn.inference.image_files import find_images


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def test_hidden_files_and_junk_are_left_out(tmp_path):
    touch(tmp_path, "b.png", "a/c.png", "notes.txt")
    touch(tmp_path, "Thumbs.db", ".DS_Store", "a/desktop.ini", ".git/x.png", "__MACOSX/y.png")
    assert find_images([tmp_path]) == [
        tmp_path / name for name in ("a/c.png", "b.png", "notes.txt")
    ]


def test_links_are_followed_into_each_folder_once(tmp_path):
    touch(tmp_path, "top/z/1.png", "elsewhere/2.png")
    top = tmp_path / "top"
    (top / "a").symlink_to("z")
    (top / "z" / "loop").symlink_to(top)
    (top / "linked").symlink_to(tmp_path / "elsewhere")
    (top / "dangling.png").symlink_to("nothing")  # decoding reports it
    expected = ["dangling.png", "linked/2.png", "z/1.png"]
    assert find_images([top]) == [top / name for name in expected]


def test_named_files_must_be_regular(tmp_path):
    os.mkfifo(tmp_path / "\x1bfifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    for name, message in [
        ("\x1bfifo", r"\\x1bfifo is a FIFO; expected a regular file or a folder"),
        ("zero", "zero is a device; expected a regular file or a folder"),
        ("loop", "loop cannot be read: Too many levels of symbolic links"),
        ("none", "the image .*none does not exist"),
    ]:
        with pytest.raises(DataError, match=message):
            find_images([tmp_path / name])


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.png")

    def refused(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", refused)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        find_images([tmp_path])
