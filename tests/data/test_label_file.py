"""Files of paths and labels: what they may look like, and what is wrong with a row."""

import json
import re
from typing import Any

import numpy as np
import pytest

from distcnn.config import DataConfig
from distcnn.data.label_table import read_label_table
from distcnn.data.labelled import open_labels
from distcnn.errors import DataError, UsageError
from tests.data.samples import encoded, pixels


@pytest.fixture
def folder(tmp_path):
    for name in "abcdef":
        (tmp_path / f"{name}.png").write_bytes(encoded(pixels(4, 4, seed=ord(name)), "PNG"))
    return tmp_path


def table(folder, text, name="labels.csv", **options):
    (folder / name).write_bytes(text.encode("utf-8-sig", "surrogateescape"))
    return read_label_table(DataConfig(labels=str(folder / name), **options), folder / "cache")


@pytest.mark.parametrize(
    ("text", "options", "task", "classes", "labels"),
    [
        ("path,label\na.png,cat\nb.png,ant\n", {}, "classification", ("ant", "cat"), [1, 0]),
        ("a.png;10\nb.png;9\n", {}, "classification", ("9", "10"), [1, 0]),
        (
            'image\tbreed\tnote\n"a.png"\tx, y\t1\n\nb.png\tz\t2\n',
            {"label_column": "breed"},
            "classification",
            ("x, y", "z"),
            [0, 1],
        ),
        (
            "file,tags\na.png,sea|sky\nb.png,\nc.png,sky\n",
            {},
            "multilabel",
            ("sea", "sky"),
            [[True, True], [False, False], [False, True]],
        ),
        (
            "file,tags\na.png,sea\na.png,sky\nb.png,sky\n",
            {"task": "multilabel"},
            "multilabel",
            ("sea", "sky"),
            [[True, True], [False, True]],
        ),
        (
            "file,sea,sky\na.png,1,0\nb.png,true,1.0\n",
            {"label_column": "sky,sea"},
            "multilabel",
            ("sky", "sea"),
            [[False, True], [True, True]],
        ),
        ("file,age\na.png,3\nb.png,4.5\n", {}, "regression", ("age",), [[3.0], [4.5]]),
        (
            "file,x,y\na.png,3,1\nb.png,4.5,2\n",
            {"label_column": "x,y"},
            "regression",
            ("x", "y"),
            [[3.0, 1.0], [4.5, 2.0]],
        ),
        (
            "file,age\na.png,3\nb.png,4\n",
            {"task": "regression"},
            "regression",
            ("age",),
            [[3.0], [4.0]],
        ),
    ],
)
def test_what_labels_are(folder, text, options, task, classes, labels):
    found = table(folder, text, **options)
    assert (found.task, found.classes, found.labels.tolist()) == (task, classes, labels)
    dtypes = {"classification": np.int64, "multilabel": bool, "regression": np.float32}
    assert found.labels.dtype == dtypes[task]
    assert found.task in found.reading


def test_json_lines_with_splits(folder):
    rows = [
        {"file_name": "a.png", "labels": ["sea", 3], "split": "TRAIN"},
        {"file_name": str(folder / "b.png"), "labels": [], "split": "valid"},
        {"file_name": "sub/../c.png", "labels": ["sea"], "split": "test"},
    ]
    text = "\n".join(map(json.dumps, rows))
    found = table(folder, text, "labels.jsonl")
    assert found.classes == ("3", "sea")
    assert found.splits.tolist() == ["train", "val", "test"]
    source: Any = open_labels(DataConfig(labels=str(folder / "labels.jsonl")))
    parts = (source.train, source.validation, source.test)
    assert [part.labels.tolist() for part in parts] == [[[1, 1]], [[0, 0]], [[0, 1]]]
    assert source.train.resized((4, 4, 3)).gather(np.array([0])).shape == (1, 4, 4, 3)


def test_bad_rows_are_named_by_their_line(folder, caplog):
    text = (
        "path,label,split\n"
        'a.png,"two\nlines",train\n'
        "nope.png,cat,train\n"  # line 4
        ",cat,train\n"
        "b.png,,train\n"
        "c.png,cat,holdout\n"
        "a.png,cat,train\n"
        "d.png,cat,train\n"
    )
    with pytest.raises(DataError) as caught:
        table(folder, text)
    listed = re.search(r"all are listed in (.*)\)", str(caught.value))
    assert listed is not None
    with open(listed[1]) as file:  # noqa: PTH123
        lines = file.read().splitlines()
    assert lines == [
        "line 4 (nope.png cannot be read: No such file or directory)",
        "line 5 (no path in the column path)",
        "line 6 (the label is ''; expected the name of a class)",
        "line 7 (the split is 'holdout'; expected train, val or test)",
        "line 8 (a.png is already in line 2; if images have several labels, pass --data.task "
        "multilabel)",
    ]
    assert len(table(folder, text, on_error="skip").labels) == 2
    assert "5 of 7 rows cannot be used" in caplog.text
    with pytest.raises(DataError, match=r"line 3 \(age is 'old'; expected a number\)"):
        table(folder, "path,age\na.png,3\nb.png,old\n", task="regression")
    with pytest.raises(DataError, match=r"line 2 \(sky is '2'; expected 0 or 1\)"):
        table(folder, "path,sky,sea\na.png,2,0\n", label_column="sky,sea", task="multilabel")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "is empty"),
        ("path,label\n", {}, "has a header, but no rows"),
        ("path,label\na.png\n", {}, "line 2, has 1 cells; expected 2"),
        ('path,label\na.png,"x\n', {}, "is not CSV"),
        ("path,x,y\na.png,1,2\n", {}, "columns path, x, y; which of them holds the labels"),
        ("path,class,label\na.png,1,2\n", {}, "which of them holds the labels"),
        ("id,label\na,1\n", {}, "which of them holds the paths"),
        ("path,label\na.png,1\n", {"label_column": "lable"}, "did you mean label"),
        ("path,label,label\na.png,1,2\n", {}, "several columns named 'label'"),
        ('{"path": "a.png", "label": 1}\n[1]\n', {}, "line 2, is a list"),
        ('{"path": "a.png"\n', {}, "line 1, is not JSON"),
        ("path\0", {}, "is not text"),
        (
            "a.png,x,test\nb.png,y,train\n",
            {"split_column": "3"},
            "no training image has the",
        ),
    ],
)
def test_files_that_are_refused(folder, text, options, message):
    (folder / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=re.escape(message)):
        open_labels(DataConfig(labels=str(folder / "labels.csv"), **options))


def test_keys_without_a_file():
    with pytest.raises(UsageError, match=r"data.task is set, but there is no file of labels"):
        DataConfig(task="multilabel")
    with pytest.raises(UsageError, match=r"needs --data.labels FILE"):
        DataConfig(name="labels")
