"""Copies of a state in memory: whole or not at all, private, and gone when nobody can use them."""

import json
import stat

import numpy as np
import pytest

from distcnn.storage.checkpoint import Progress
from distcnn.storage.memory_copies import MemoryCopies

MINE, OTHER = "0123456789abcdef", "fedcba9876543210"


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "environment.json").write_text(json.dumps({"run_id": MINE}))
    return folder


@pytest.fixture
def memory(tmp_path):
    folder = tmp_path / "memory"
    folder.mkdir()
    return folder


def test_the_newest_copy_outlives_its_process_and_is_the_only_one(run, memory):
    copies = MemoryCopies(MINE, run, memory)
    for step in (5, 10):
        copies.write({"a": np.full(3, step)}, Progress(step=step), {"bytes": step, "sha256": ""})
    copies.close(remove=False)
    again = MemoryCopies(MINE, run, memory)
    found = again.newest(after=9)
    assert found is not None
    arrays, progress, mark = found
    assert (arrays["a"].tolist(), progress.step, mark["bytes"]) == ([10] * 3, 10, 10)
    assert again.newest(after=10) is None
    own = next(memory.iterdir())
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert len(list((own / MINE).glob("*.npz"))) == 1
    again.close(remove=True)
    assert not list(own.iterdir())


def test_a_damaged_copy_is_not_used(run, memory):
    copies = MemoryCopies(MINE, run, memory)
    copies.write({"a": np.arange(300)}, Progress(step=5), None)
    (path,) = memory.rglob("*.npz")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert copies.newest(after=0) is None


@pytest.mark.parametrize("end", ["deleted", "replaced", "finished", "running", "interrupted"])
def test_copies_that_nobody_can_use_are_removed_by_the_next_run(end, run, memory):
    copies = MemoryCopies(MINE, run, memory)
    copies.write({"a": np.zeros(3)}, Progress(step=5), None)
    if end != "running":
        copies.close(remove=False)
    if end == "deleted":
        (run / "environment.json").unlink()
    if end == "replaced":
        (run / "environment.json").write_text(json.dumps({"run_id": OTHER}))
    if end == "finished":
        (run / "summary.json").write_text("{}")
    MemoryCopies(OTHER, run, memory)
    left = {folder.name for folder in next(memory.iterdir()).iterdir()}
    assert left == ({MINE, OTHER} if end in ("running", "interrupted") else {OTHER})


def test_a_folder_that_somebody_planted_is_not_used(run, memory, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.getuid", lambda: 12345)
        (memory / "distcnn-12345").symlink_to(tmp_path)
        with pytest.raises(PermissionError, match="somebody else"):
            MemoryCopies(MINE, run, memory)
    assert not list(tmp_path.glob(MINE))
