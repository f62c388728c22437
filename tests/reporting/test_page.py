"""The page of the report: what it shows of a run directory, as text and as charts."""

import html.parser
import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from distcnn.errors import DistcnnError, UsageError
from distcnn.inference.details.calibration import Reliability
from distcnn.report import main
from distcnn.reporting.charts import Line, line_chart, reliability_chart, ticks
from distcnn.reporting.markup import image, table, text

HOSTILE = '<script>alert("x")</script>&\x1b[2J'


class Checker(html.parser.HTMLParser):
    """Collects the tags and addresses of a page, and checks that it closes what it opens."""

    VOID = ("meta", "img", "line", "rect", "path")

    def __init__(self, page):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def run(tmp_path):
    """An unfinished run with hostile names, and a restart."""
    folder = tmp_path / "run"
    folder.mkdir()
    settings = {"recipe": HOSTILE, "train": {"epochs": 3}, "data": {"name": "digits"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    environment = {"host": HOSTILE, "memory_bytes": 2**31, "resolved": {"model": HOSTILE}}
    (folder / "environment.json").write_text(json.dumps(environment))
    rows = [
        {"step": step, "epoch": 1, "loss": 2 / step, "accuracy": step / 9, "step_ms": 1.0}
        for step in range(1, 9)
    ]
    rows[-1] |= {"val_loss": 0.5, "val_accuracy": 0.75, "learning_rate": 0.1}
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    restart = {"attempt": 1, "cause": HOSTILE, "step": 4, "seconds": {"total": 2.25}}
    (folder / "restarts.jsonl").write_text(json.dumps(restart) + "\n")
    return folder


def test_an_unfinished_run_is_reported(run, capsys):
    assert main([str(run), "--json", "report.json"]) == 0
    printed = capsys.readouterr().out
    assert "it has no model.keras yet" in printed
    assert printed.endswith(f"report: {run / 'report.html'}\n")
    page = (run / "report.html").read_text()
    checker = Checker(page)
    assert "script" not in checker.tags
    assert all(each.startswith(("data:", "#")) for each in checker.addresses)
    assert "default-src 'none'" in page
    assert page.count("alert(&quot;x&quot;)") >= 5
    assert "\x1b" not in page
    for shown in ("Restarts", "2.2", "train.epochs", "2.0 GiB", "step 8", ">validation<"):
        assert shown in page
    content = json.loads(Path("report.json").read_text())
    assert content["evaluation"] is None
    assert content["restarts"][0]["step"] == 4


def test_what_is_no_run_is_refused(run, tmp_path):
    with pytest.raises(UsageError, match="is no run directory, but holds 1 of them; expected one"):
        main([str(tmp_path)])
    with pytest.raises(DistcnnError, match="none is no folder; expected a run directory"):
        main([str(tmp_path / "none")])
    (run / "environment.json").write_text("[]")
    with pytest.raises(
        DistcnnError, match=r"environment.json is damaged: .*; restore or delete it"
    ):
        main([str(run)])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (3, 97, [0, 20, 40, 60, 80, 100]),
        (5, 5, [2, 3, 4, 5, 6, 7, 8]),
        (-0.011, 0.004, [-0.015, -0.01, -0.005, 0, 0.005]),
    ],
)
def test_ticks_are_round_numbers(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_lines_have_gaps_and_dots():
    line = Line("a<b", [0, 1, 2, 3], [0.0, 1.0, math.nan, 1.0])
    chart = line_chart("loss", [line, Line("one", [2], [0.5])], "step")
    Checker(chart)
    first, second = (part.partition('"')[0] for part in chart.split(' d="')[1:])
    assert (first.count("M"), first.count("L")) == (2, 1)
    assert second.endswith("h0")
    assert "a&lt;b" in chart
    assert line_chart("loss", [Line("a", [1], [math.nan])], "step") == ""
    many = Line("many", list(range(100_000)), [float(value % 7) for value in range(100_000)])
    assert len(line_chart("many", [many], "step")) < 20_000


def test_a_reliability_diagram_has_a_bar_for_each_bin():
    confidence = np.array([0.2, 0.5, 0.55, 0.99])
    reliability = Reliability.of(confidence, np.array([True, False, True, True]), bins=10)
    chart = reliability_chart("calibration", reliability)
    Checker(chart)
    assert chart.count('class="gap" x=') == 4
    assert "1 images: confidence 0.990, accuracy 1.000" in chart


def test_images_are_kept_small_and_text_is_escaped():
    noise = np.random.default_rng(0).integers(0, 256, (500, 700, 3), np.uint8)
    assert len(image(noise, "noise")) < 40_000
    assert "image/png" in image(noise[:8, :8, :1], '"')
    assert 'alt="&quot;"' in image(noise[:8, :8], '"')
    assert text("\udce4<") == "\ufffd&lt;"
    assert table(["a"], []) == ""
