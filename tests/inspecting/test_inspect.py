"""The report before training: what it counts and names, without TensorFlow."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from distcnn import inspect
from tests.data.samples import encoded, pixels


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    for part, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                array = pixels(8 + number, 9, seed=100 * (part == "test") + 10 * label + number)
                (root / part / name / f"{number}.png").write_bytes(encoded(array, "PNG"))
    return root


def report_of(path, *flags):
    assert inspect.main([str(path), "--json", "report.json", *flags]) == 0
    with open("report.json") as file:  # noqa: PTH123
        return json.load(file)


def test_damage_duplicates_and_leaks_are_named(folder, capsys, tmp_path):
    same = pixels(9, 9, seed=1)
    (folder / "test" / "cat" / "leak.bmp").write_bytes(encoded(same, "BMP"))
    (folder / "train" / "dog" / "copy.png").write_bytes(
        (folder / "train" / "dog" / "2.png").read_bytes()
    )
    (folder / "train" / "dog" / "conflict.png").write_bytes(
        (folder / "train" / "cat" / "3.png").read_bytes()
    )
    broken = folder / "train" / "cat" / "0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    (folder / "test" / "dog" / "1.png").write_bytes(b"")
    report = report_of(folder, "--plot", str(tmp_path / "sheet.png"))
    assert report["splits"] == {"train": 10, "test": 5}
    assert report["classes"][1] == {"class": "dog", "images": 8, "train": 6, "test": 2}
    assert report["formats"] == {"PNG": 12, "BMP": 1}
    assert report["height"] == {"min": 8, "median": 9.0, "max": 11}
    assert [each["path"] for each in report["damaged"]] == [
        str(folder / "train" / "cat" / "0.png"),
        str(folder / "test" / "dog" / "1.png"),
    ]
    assert report["damaged"][1]["reason"] == "an empty file"
    assert len(report["duplicates"]) == 3
    (leak,) = report["leaks"]
    assert leak["splits"] == ["train", "test"]
    assert leak["paths"][1].endswith("leak.bmp")
    (conflict,) = report["conflicts"]
    assert conflict["labels"] == ["cat", "dog"]
    printed = capsys.readouterr().out
    assert "leaks       1 groups" in printed
    assert "leak.bmp [test, cat]" in printed
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[0] == 2 * 68 + 4
    assert (sheet[4:60, 150:210] < 250).any()


def test_statistics_and_drawn_test_images(tmp_path):
    for name, value in (("black", 0), ("white", 255)):
        (tmp_path / "flat" / name).mkdir(parents=True)
        for number in range(10):
            image = np.full((4, 4 + number, 3), value, np.uint8)
            (tmp_path / "flat" / name / f"{number}.png").write_bytes(encoded(image, "PNG"))
    report = report_of(tmp_path / "flat", "--data.test_split", "0.3")
    assert report["mean"] == [0.5] * 3
    assert report["deviation"] == [0.5] * 3
    assert report["splits"] == {"train": 14, "test": 6}
    assert report["test_is_drawn"] is True


def test_numbers_and_start_up(tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(encoded(pixels(5, 5, seed=number), "PNG"))
    rows = "".join(f"{number}.png,{number}.5\n" for number in range(6))
    (tmp_path / "n.csv").write_text("path,age\n" + rows)
    code = (
        "import sys; from distcnn import inspect;"
        "inspect.main(['n.csv', '--plot', 'n.png', '--json', 'n.json']);"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    (row,) = json.loads((tmp_path / "n.json").read_text())["classes"]
    assert (row["min"], row["mean"], row["max"]) == (0.5, 3.0, 5.5)
