"""Files that somebody else may have put there."""

import os

import pytest

from distcnn.runtime.files import file_digest, open_regular, parse_json, write_text


def test_a_planted_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / ".partial-config.yaml").symlink_to(tmp_path / "victim")
    write_text(tmp_path / "config.yaml", "new")
    assert (tmp_path / "victim").read_text() == "mine"
    assert (tmp_path / "config.yaml").read_text() == "new"
    assert not (tmp_path / "config.yaml").is_symlink()


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"content"
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("fifo", "zero", "."):
        with pytest.raises(OSError, match="it is not a regular file"):
            open_regular(tmp_path / name)
        with pytest.raises(OSError, match="it is not a regular file"):
            file_digest(tmp_path / name)


@pytest.mark.parametrize("text", ["[" * 100_000, b'{"a":' * 100_000, "9" * 5_000, "{", b"\xff"])
def test_any_text_that_is_no_json_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"nested|digits|Expecting|decode"):
        parse_json(text)
