"""What a trial left in its run directory."""

import pytest

from distcnn.errors import DistcnnError
from distcnn.searching.running import read_summary


def test_a_summary_is_read_missing_or_named_as_damaged(tmp_path):
    assert read_summary(tmp_path) is None
    (tmp_path / "summary.json").write_text('{"epochs": 2}')
    assert read_summary(tmp_path) == {"epochs": 2}
    (tmp_path / "summary.json").write_text("[" * 100_000)
    with pytest.raises(DistcnnError, match=r"summary\.json is damaged: it is nested too deeply"):
        read_summary(tmp_path)
