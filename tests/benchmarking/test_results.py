"""The results of a benchmark, written and read back."""

import json
import re

import pytest
from PIL import Image

from distcnn.benchmarking.report import to_csv, to_markdown, write_report
from distcnn.benchmarking.results import Results, Row, read_results
from distcnn.errors import DistcnnError
from tests.benchmarking.samples import results, row


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


def test_a_row_has_a_key_and_a_placement():
    oversubscribed: Row = row(workers=4, scaling="strong", batch=256)
    assert oversubscribed.key == ("horovod", "strong", 4, 1, 256)
    assert oversubscribed.placement == "4 x 1*"
    assert row(workers=1, cores_per_worker=None).placement == "1"
