"""Who may use a run directory: looked at before anything is loaded, and again inside its lock."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from distcnn.config import Config, PrecisionConfig, TrainConfig
from distcnn.config.safe_yaml import sealed
from distcnn.errors import DistcnnError
from distcnn.storage.run_directory import RunDirectory

ENVIRONMENT: dict[str, Any] = {
    "resolved": {"training_images": 10, "global_batch_size": 2, "images_hash": "a"}
}


def config_for(out: Path | None, **changes: Any) -> Config:
    return dataclasses.replace(Config(recipe="mine"), out=str(out) if out else None, **changes)


def train(directory: RunDirectory, config: Config, *, finish: bool) -> None:
    directory.create(config, ENVIRONMENT)
    if finish:
        (directory.path / "summary.json").write_text("{}")
    directory.close()


def test_a_run_that_finished_meanwhile_is_not_replaced(tmp_path):
    config = config_for(tmp_path / "run")
    slow = RunDirectory.choose(config)
    assert not slow.begun
    train(RunDirectory.choose(config), config, finish=True)
    with pytest.raises(DistcnnError, match="holds a finished run"):
        slow.create(config, ENVIRONMENT)
    assert (tmp_path / "run" / "summary.json").exists()


def test_another_configuration_that_began_meanwhile_is_not_resumed(tmp_path):
    config = config_for(tmp_path / "run")
    slow = RunDirectory.choose(config)
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=3))
    train(RunDirectory.choose(other), other, finish=False)
    with pytest.raises(DistcnnError, match=r"another configuration \(train\.seed 3 -> 21\)"):
        slow.create(config, ENVIRONMENT)


def test_the_same_run_that_began_meanwhile_is_resumed(tmp_path):
    config = config_for(tmp_path / "run")
    slow = RunDirectory.choose(config)
    train(RunDirectory.choose(config), config, finish=False)
    slow.create(config, ENVIRONMENT)
    assert slow.begun
    never = dataclasses.replace(config.checkpoint, resume="never")
    with pytest.raises(DistcnnError, match="resume never would overwrite it"):
        RunDirectory.choose(dataclasses.replace(config, checkpoint=never))


def test_with_virtual_workers_the_number_of_threads_belongs_to_the_run(tmp_path):
    threads, virtual = PrecisionConfig(threads=2), TrainConfig(virtual_workers=4)
    free, bound = config_for(tmp_path / "free"), config_for(tmp_path / "bound", train=virtual)
    for config in (free, bound):
        train(RunDirectory.choose(config), config, finish=False)
    assert RunDirectory.choose(dataclasses.replace(free, precision=threads)).begun
    with pytest.raises(DistcnnError, match=r"\(precision\.threads None -> 2\)"):
        RunDirectory.choose(dataclasses.replace(bound, precision=threads))


def test_a_default_folder_that_was_taken_meanwhile_makes_way_for_the_next():
    config = config_for(None)
    slow = RunDirectory.choose(config)
    assert slow.path == Path("runs/mine")
    train(RunDirectory.choose(config), config, finish=True)
    slow.create(config, ENVIRONMENT)
    assert slow.path == Path("runs/mine-2")
    with pytest.raises(DistcnnError, match="another process is already training in runs/mine-2"):
        RunDirectory.choose(config).create(config, ENVIRONMENT)


@pytest.mark.parametrize(
    "names",
    [
        [".lock"],
        [".lock", ".partial-environment.json"],
        [".lock", "environment.json"],
        [".lock", "environment.json", ".partial-config.yaml"],
    ],
)
def test_an_unfinished_beginning_is_begun_again(names, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in names:
        (run / name).write_text("{")
    config = config_for(run)
    directory = RunDirectory.choose(config)
    directory.create(config, ENVIRONMENT)
    assert not directory.begun
    assert (run / "config.yaml").read_text() == sealed(config.to_yaml())


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").touch()
    with pytest.raises(DistcnnError, match="holds files that are not a run"):
        RunDirectory.choose(config_for(tmp_path / "run"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", b"\xff\xfe\x00"),
        ("config.yaml", b"train: {epochs: ["),
        ("config.yaml", b"a: !!python/object:os.system {}"),
        ("config.yaml", b"[" * 5000),
        ("environment.json", b"\x80\x81"),
        ("environment.json", b"{"),
        ("environment.json", b"[]"),
        ("environment.json", b'{"resolved": 3}'),
        ("environment.json", b'{"resolved": {"training_images": 10}}'),
    ],
)
def test_damaged_files_are_named(name, content, tmp_path):
    config = config_for(tmp_path / "run")
    train(RunDirectory.choose(config), config, finish=False)
    (tmp_path / "run" / name).write_bytes(content)
    with pytest.raises(DistcnnError, match=rf"{name} is damaged .*; restore it, choose") as error:
        RunDirectory.choose(config).create(config, ENVIRONMENT)
    assert "\n" not in str(error.value)


def test_a_deleted_or_replaced_directory_is_noticed(tmp_path):
    config = config_for(tmp_path / "run")
    directory = RunDirectory.choose(config)
    directory.create(config, ENVIRONMENT)
    directory.require_present()
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(DistcnnError, match="was deleted or replaced while the run wrote to it"):
        directory.require_present()
    other = RunDirectory.choose(config)
    other.create(config, ENVIRONMENT)
    with pytest.raises(DistcnnError, match="was deleted or replaced"):
        directory.require_present()
