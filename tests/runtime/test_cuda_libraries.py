"""A library where pip puts cuSOLVER, which is a copy of another one."""

import _ctypes
import importlib
import shutil
from pathlib import Path

import pytest

from distcnn.runtime.cuda_libraries import load_missed_libraries


@pytest.fixture
def library(tmp_path, monkeypatch):
    file = tmp_path / "nvidia/cusolver/lib/libcusolver.so.11"
    file.parent.mkdir(parents=True)
    shutil.copy(_ctypes.__file__, file)
    (tmp_path / "nvidia/cublas/lib").mkdir(parents=True)
    shutil.copy(_ctypes.__file__, tmp_path / "nvidia/cublas/lib/libcublas.so.12")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return file


def test_what_tensorflow_does_not_find_is_loaded(library):
    assert library in load_missed_libraries()
    loaded = Path("/proc/self/maps").read_text()
    assert str(library) in loaded
    assert "libcublas.so.12" not in loaded  # TensorFlow finds that one


def test_a_library_that_cannot_be_loaded_is_left_to_tensorflow(library):
    library.write_bytes(b"no library")
    assert library not in load_missed_libraries()


def test_without_them_nothing_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert load_missed_libraries() == []
