"""An archive is unpacked once by the processes of a host, not under the hands of the others."""

import tarfile
from pathlib import Path

import keras
import pytest

from distcnn.runtime.keras_hooks import Hooks
from distcnn.scripting import downloads


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    """Gets an archive as a rank of a run does, which each call begins; returns its file."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    content = tmp_path / "labels.txt"
    content.write_text("cat dog")
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(content, "labels.txt")

    def get() -> Path:
        folder = keras.utils.get_file(
            "set.tar",
            origin=(tmp_path / "set.tar").as_uri(),
            extract=True,
            cache_dir=str(tmp_path / "cache"),
        )
        return Path(folder, "labels.txt")

    def as_rank(*, began_later: float = 0.0) -> Path:
        hooks = Hooks()
        monkeypatch.setattr(downloads, "_SLACK", 1.0 - began_later)
        downloads.install_download_hooks(hooks)
        try:
            return get()
        finally:
            hooks.restore()

    return as_rank


def test_the_second_rank_finds_what_the_first_has_unpacked(fetch):
    file = fetch()
    assert file.read_text() == "cat dog"
    file.write_text("being read")
    assert fetch().read_text() == "being read"


def test_a_later_run_unpacks_again_as_keras_does(fetch):
    fetch().write_text("changed by hand")
    assert fetch(began_later=60.0).read_text() == "cat dog"


def test_a_damaged_lock_file_is_no_obstacle(fetch, tmp_path):
    fetch()
    (tmp_path / "home" / ".distcnn.lock").write_text("{damaged")
    assert fetch().read_text() == "cat dog"
    assert fetch().read_text() == "cat dog"
