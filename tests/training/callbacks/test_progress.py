"""What the terminal shows of a run."""

from tests.runs import small_run


def test_live_progress_and_lines(tmp_path, capsys):
    small_run(tmp_path / "lines", logging__progress="lines")
    out = capsys.readouterr().out
    assert "step      7/14  epoch  1/2  loss" in out
    assert "val_accuracy" in out
    assert "images/s" in out
    assert "ms/step" in out
    assert "input wait" in out
    small_run(tmp_path / "live", logging__progress="live")
    assert "epoch  2/2  loss" in capsys.readouterr().out
    small_run(tmp_path / "none")
    assert capsys.readouterr().out == ""
