import json
from pathlib import Path

import pytest

from distcnn import train
from distcnn.errors import UsageError
from distcnn.records import main
from tests.after.conftest import RUN


def test_shards_train_as_the_folder_does(image_folder, capsys):
    folder = ["--data.name", "folder", "--data.dir", str(image_folder)]
    assert main([*folder, "--out", "shards", "--shards", "3", "--json", "summary.json"]) == 0
    splits = json.loads(Path("summary.json").read_text())["splits"]
    assert {name: (s["images"], s["shards"]) for name, s in splits.items()} == {
        "train": (40, 3),
        "test": (12, 3),
    }
    assert capsys.readouterr().out.startswith("train ")

    hashes = []
    shards = ["--data.name", "tfrecord", "--data.dir", "shards"]
    common = [*RUN, "--train.batch_size=8", "--logging.tensorboard=false"]
    for number, data in enumerate((folder, shards)):
        assert train.main([*common, *data, f"--out=run{number}"]) == 0
        summary = json.loads(Path(f"run{number}/summary.json").read_text())
        hashes.append(summary["weights_sha256"])
    assert hashes[0] == hashes[1]

    with pytest.raises(UsageError, match="shards already exists; expected a new or empty"):
        main([*folder, "--out", "shards"])
    with pytest.raises(UsageError, match="shards is 0; expected at least 1"):
        main([*folder, "--out", "other", "--shards", "0"])
