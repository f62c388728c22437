"""The report of a benchmark: CSV, Markdown, and tables on the terminal."""

import csv
import dataclasses
import io
import re

import pytest

from distcnn.benchmarking.report import print_report, to_csv, to_markdown, write_report
from tests.benchmarking.samples import results, row, wide_results


def test_without_rows_there_is_no_figure(tmp_path):
    without_rows = results(rows=(), prediction=None)
    write_report(without_rows, tmp_path / "out")
    assert not (tmp_path / "out" / "scaling.png").exists()
    assert "scaling.png" not in to_markdown(without_rows)
    assert "training step" in to_markdown(without_rows)


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


def test_the_largest_noise_of_communication_is_told(capsys):
    noises = (None, 0.012, 0.034)
    rows = [row(workers=2**k, communication_noise=noise) for k, noise in enumerate(noises)]
    print_report(results(rows=tuple(rows)))
    words = " ".join(capsys.readouterr().out.split())
    assert words.count("measured twice, differs by up to 3.4% of a step (A/A)") == 1
    print_report(results(rows=(rows[0],)))
    assert "measured twice" not in capsys.readouterr().out


def test_what_the_slowest_worker_costs_is_told(capsys):
    balanced, slow = row(workers=2, imbalance_share=0.019), row(workers=4, imbalance_share=0.125)
    print_report(results(rows=(balanced, slow)))
    words = " ".join(capsys.readouterr().out.split())
    assert words.count("for the slowest one") == 1
    assert "horovod, 4 x 1*, global batch 512: the average worker waits 12.5% of a step" in words
