"""The report of a benchmark: JSON, CSV, Markdown, tables on the terminal, and a figure."""

import csv
import dataclasses
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from distcnn.benchmarking.plot import scaling_figure
from distcnn.benchmarking.report import print_report, to_csv, to_markdown, write_report
from distcnn.benchmarking.results import Results, Row, read_results
from distcnn.errors import DistcnnError
from distcnn.inference.plots import to_pixels
from tests.benchmarking.samples import comparison, results, row


def wide_results():
    """Results whose cells are as wide as on a large machine."""
    rows = [
        row(
            scaling=scaling,
            strategy="one_device" if workers == 1 else strategy,
            workers=workers,
            batch=65536,
            step_ms=9876.5,
            peak_memory_mb=123456.7,
        )
        for scaling in ("weak", "strong")
        for strategy in ("horovod", "multi_worker")
        for workers in (1, 16)
    ]
    wide = comparison(distcnn_precision="mixed_bfloat16", plain_ms=1234.5)
    return results(rows=tuple(rows), comparisons=(wide,))


def test_everything_is_written_and_read_back(tmp_path):
    folder = tmp_path / "new" / "folder"
    on_gpus = results(rows=(row(cores_per_worker=None, efficiency=None), row(workers=1)))
    for expected in (results(), on_gpus, results(prediction=None, comparisons=())):
        write_report(expected, folder)
        assert read_results(folder) == read_results(folder / "results.json") == expected
    names = ["environment.json", "results.csv", "results.json", "results.md", "scaling.png"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert json.loads((folder / "environment.json").read_text()) == expected.environment
    assert (folder / "results.csv").read_text() == to_csv(expected)
    assert (folder / "results.md").read_text() == to_markdown(expected)
    with Image.open(folder / "scaling.png") as image:
        assert image.format == "PNG"


def test_without_rows_there_is_no_figure(tmp_path):
    without_rows = results(rows=(), prediction=None)
    write_report(without_rows, tmp_path / "out")
    assert not (tmp_path / "out" / "scaling.png").exists()
    assert "scaling.png" not in to_markdown(without_rows)
    assert "training step" in to_markdown(without_rows)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("rows", 1, "workers"), "2", r"rows\[1\].workers is '2'; expected an integer"),
        (
            ("rows", 0, "oversubscribed"),
            1,
            r"rows\[0\].oversubscribed is 1; expected true or false",
        ),
        (("rows", 0, "steps"), True, r"rows\[0\].steps is True; expected an integer"),
        (
            ("rows", 0, "step_ms_p25"),
            float("nan"),
            r"rows\[0\].step_ms_p25 is nan; expected a finite number",
        ),
        (
            ("rows", 0, "scaling"),
            "wide",
            r"rows\[0\].scaling is 'wide'; expected 'weak' or 'strong'",
        ),
        (("rows",), {}, "rows is {}; expected a list"),
        (("comparisons", 0), 3, r"comparisons\[0\] is 3; expected an object"),
        (("prediction", "points", 2, "error"), "?", r"prediction.points\[2\].error is '\?'"),
        (("environment",), list(range(99)), "environment is list; expected an object"),
        (("rows", 0, "wrokers"), 2, r"rows\[0\] has the unknown key wrokers; expected scaling, "),
        (("extra",), 2, "the file has the unknown key extra; expected command, date, .*; run the"),
    ],
)
def test_a_damaged_value_is_named(path, value, message, tmp_path):
    part = content = json.loads(json.dumps(results().to_json()))
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    file = tmp_path / "results.json"
    file.write_text(json.dumps(content))
    with pytest.raises(DistcnnError, match=rf"^{re.escape(str(file))}: {message}"):
        read_results(file)


def test_a_missing_key_or_file_is_named(tmp_path):
    file = tmp_path / "results.json"
    with pytest.raises(DistcnnError, match=r"results\.json cannot be read: No such file"):
        read_results(file)
    file.write_text(json.dumps(results().to_json())[:-9])
    with pytest.raises(DistcnnError, match=r"results\.json is not JSON: .*; expected"):
        read_results(tmp_path)
    content = json.loads(json.dumps(results().to_json()))
    del content["rows"][1]["workers"], content["rows"][1]["verdict"]
    with pytest.raises(DistcnnError, match=r"^old: rows\[1\] lacks workers, verdict; expected"):
        Results.from_json(content, "old")
    with pytest.raises(DistcnnError, match=r"^old: the file is \[\]; expected an object"):
        Results.from_json([], "old")


def test_the_csv_holds_every_number():
    expected = results(rows=(row(), row(workers=1, cores_per_worker=None, efficiency=None)))
    parsed = list(csv.DictReader(io.StringIO(to_csv(expected))))
    assert len(parsed) == 2
    for line, source in zip(parsed, expected.rows, strict=True):
        assert float(line.pop("images_per_second_per_worker")) == (
            source.images_per_second / source.workers
        )
        values = dataclasses.asdict(source).items()
        assert line == {name: "" if value is None else str(value) for name, value in values}


def markdown_tables(text):
    """Returns the table below each heading, as a list of rows that map column headings to cells."""
    tables = {}
    for section in text.split("\n## ")[1:]:
        title, *lines = section.splitlines()
        cells = [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in lines
            if line.startswith("|")
        ]
        tables[title] = [dict(zip(cells[0], line, strict=True)) for line in cells[2:]]
    return tables


def number(cell):
    return float(cell.strip("%").replace(",", "")) / (100 if cell.endswith("%") else 1)


def test_the_markdown_holds_the_same_numbers():
    sample = results()
    text = to_markdown(sample)
    for part in (sample.command, sample.date, "AMD EPYC 9B14, 2 CPU cores", sample.denominator):
        assert part in text
    weak, strong, fractions, comparisons, predicted = markdown_tables(text).values()
    assert [line["workers x cores"] for line in weak] == ["1 x 1", "2 x 1", r"4 x 1\*"]
    assert r"\* these workers share cores or GPUs" in text
    for line, source in zip((*weak, *strong), sample.rows, strict=True):
        low, high = line["95 % interval"].split("-")
        shown = [
            *(line["images/s"], line["per worker"], line["step p50 ms"], low, high),
            *(line["p95 ms"], line["efficiency"], line["memory MB"], line["share of peak"]),
        ]
        assert [number(cell) for cell in shown] == pytest.approx(
            [
                *(
                    source.images_per_second,
                    source.images_per_second_per_worker,
                    source.step_ms_p50,
                ),
                *(
                    source.step_ms_p50_low,
                    source.step_ms_p50_high,
                    source.step_ms_p95,
                    source.efficiency,
                ),
                *(source.peak_memory_mb, source.share_of_peak),
            ],
            rel=2e-3,
        )
    assert [line["batch"] for line in weak] == ["128"] * 3
    for line, source in zip(fractions, sample.rows, strict=True):
        assert line["verdict"] == source.verdict
        assert number(line["comm."]) == pytest.approx(source.communication_share)
    assert [number(line["times as fast"]) for line in comparisons] == [1.25, 1.031]
    assert [line["error of step ms"] for line in predicted] == ["+0.0%", "-2.3%", "-"]


def test_special_characters_do_not_break_a_markdown_table():
    text = to_markdown(results(rows=(row(verdict="a | b\n<c>"),)))
    (fractions,) = [t for title, t in markdown_tables(text).items() if title.startswith("Where")]
    assert fractions[0]["verdict"] == r"a \| b \<c>"


@pytest.mark.parametrize("sample", [results(), wide_results()], ids=["usual", "wide"])
def test_a_terminal_of_100_columns_truncates_nothing(sample, monkeypatch, capsys):
    print_report(sample)
    unwrapped = capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    print_report(sample)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert "…" not in unwrapped + "".join(lines)
    assert max(len(line.rstrip()) for line in lines if "─" in line) <= 100
    end = lines.index(next(line for line in lines if line.startswith("Where the step time")))
    unwrapped_lines = unwrapped.splitlines()
    assert [line.rstrip() for line in lines[:end]] == [x.rstrip() for x in unwrapped_lines[:end]]
    words = " ".join(lines).split()
    assert sorted(word.strip("─") for word in words) == sorted(
        word.strip("─") for word in unwrapped.split()
    )


def lines_of(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def coordinates(line):
    return np.asarray(line.get_xydata())


def test_the_figure_shows_the_numbers():
    sample = results()
    figure = scaling_figure(sample)
    throughput, fractions = figure.axes
    lines = lines_of(throughput)
    for scaling in ("weak", "strong"):
        rows = [r for r in sample.rows if r.scaling == scaling]
        points = coordinates(lines[f"{scaling} scaling"])
        np.testing.assert_allclose(points, [(r.workers, r.images_per_second) for r in rows])
    np.testing.assert_allclose(
        coordinates(lines["predicted (weak)"]), [(1, 640), (2, 128e3 / 105), (16, 128e3 / 13.75)]
    )
    dotted = [line for line in throughput.lines if line.get_linestyle() == ":"]
    for line in dotted:
        np.testing.assert_allclose(coordinates(line), [(n, 640 * n) for n in (1, 2, 4, 16)])
    markers = [line for line in throughput.lines if line.get_marker() == "o"]
    hollow = [line for line in markers if line.get_markerfacecolor() == "white"]
    assert len(markers) == 6
    assert [coordinates(line)[0, 0] for line in hollow] == [4, 4]
    assert [label.get_text() for label in throughput.get_xticklabels()] == ["1", "2", "4", "16"]
    assert "images/s" in throughput.get_ylabel()

    widths = [[bar.get_width() for bar in bars] for bars in fractions.containers]
    expected = [(r.input_share, r.compute_share, r.communication_share) for r in sample.rows]
    np.testing.assert_allclose(np.transpose(widths), expected)
    for bars, starts in zip(fractions.containers, np.cumsum([[0] * 6, *widths], 0), strict=False):
        np.testing.assert_allclose([bar.get_x() for bar in bars], starts)
    assert fractions.get_yticklabels()[2].get_text() == "weak 4 x 1*, batch 512"
    assert fractions.yaxis_inverted()


def test_the_ideal_line_follows_the_cores_per_worker():
    """One, two or four workers divide four cores, so the ideal throughput is the same for all."""
    divided = [
        row(workers=n, cores_per_worker=4 // n, step_ms=50.0 * n, efficiency=1.0) for n in (1, 2, 4)
    ]
    sample = results(rows=tuple(divided), prediction=None)
    axes = scaling_figure(sample).axes[0]
    (dotted,) = [line for line in axes.lines if line.get_linestyle() == ":"]
    np.testing.assert_allclose(coordinates(dotted), [(n, 2560) for n in (1, 2, 4)])


@pytest.mark.parametrize(
    ("rows", "lines"),
    [
        (
            [
                *(row(strategy=name) for name in ("horovod", "multi_worker")),
                row(strategy="one_device", workers=1),
            ],
            {"weak scaling, horovod": [1, 2], "weak scaling, multi_worker": [1, 2]},
        ),
        ([row(), row(workers=1, cores_per_worker=2)], {"weak scaling": [1, 2]}),
        (
            [row(), row(workers=1), row(workers=1, cores_per_worker=2)],
            {
                "weak scaling, cores per worker 1": [1, 2],
                "weak scaling, cores per worker 2": [1],
            },
        ),
        (
            [row(), row(batch=65), row(scaling="strong")],
            {
                "weak scaling, batch 128": [2],
                "weak scaling, batch 65": [2],
                "strong scaling": [2],
            },
        ),
    ],
    ids=["one worker starts all lines", "different cores", "several cores", "several batches"],
)
def test_rows_are_grouped_into_lines(rows, lines):
    axes = scaling_figure(results(rows=tuple(rows), prediction=None)).axes[0]
    drawn = lines_of(axes)
    assert {label: coordinates(line)[:, 0].tolist() for label, line in drawn.items()} == lines


@pytest.mark.parametrize(
    "sample",
    [results(), wide_results(), results(rows=(row(),), prediction=None)],
    ids=["usual", "wide", "one row"],
)
def test_no_part_of_the_figure_hides_another(sample):
    figure = scaling_figure(sample)
    assert to_pixels(figure).std() > 5
    legends = [legend for half in figure.subfigs for legend in half.legends]
    parts = [*legends, *figure.axes, *figure.texts]
    boxes = [box for part in parts if (box := part.get_tightbbox()) is not None]
    assert len(boxes) == len(parts) == 5
    for number, box in enumerate(boxes):
        assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert 0 <= box.y0 < box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:number])


def test_a_row_has_a_key_and_a_placement():
    oversubscribed: Row = row(workers=4, scaling="strong", batch=256)
    assert oversubscribed.key == ("horovod", "strong", 4, 1, 256)
    assert oversubscribed.placement == "4 x 1*"
    assert row(workers=1, cores_per_worker=None).placement == "1"
