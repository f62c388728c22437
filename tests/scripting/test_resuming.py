"""A script that was killed or stopped goes on, and computes what it computes uninterrupted."""

import contextlib
import pickle
import runpy
import shutil
import subprocess
import sys

import keras
import pytest

from distcnn.config import ScriptConfig
from distcnn.errors import UsageError
from distcnn.scripting.session import session
from distcnn.training.saving import BackgroundSaving
from tests.lockstep.groups import start_group
from tests.scripting.comparing import SCRIPTS, largest_difference
from tests.scripting.worker import outcome

TWO_PHASES = SCRIPTS.parent / "resumed" / "two_phases.py"


STRATEGIES = {
    "alone": [],
    "horovod": [],
    "mirrored": ["--distribute.strategy", "mirrored", "--distribute.devices", "2"],
    "multi_worker": ["--distribute.strategy", "multi_worker"],
}


def start(kind, folder, crash="SIGTERM:0", script=TWO_PHASES):
    flags = [*STRATEGIES[kind], "--resume", "saved", "--checkpoint_every_steps", "2"]
    size = 2 if kind in ("horovod", "multi_worker") else 1
    return start_group(kind, size, ["-m", "distcnn.run", *flags, str(script)], folder, CRASH=crash)


def finish(group, code=0):
    assert set(group.wait()) == {code}, group.output()
    return group.output()


def result_in(folder):
    return pickle.loads((folder / "result.pickle").read_bytes())


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What plain Python computes, uninterrupted."""
    folder = tmp_path_factory.mktemp("plain")
    subprocess.run([sys.executable, str(TWO_PHASES)], cwd=folder, check=True, capture_output=True)
    return result_in(folder)


def kill_and_stop(kind, run):
    """Kills a run in the middle of the second fit's second epoch, resumes and stops it."""
    assert 0 not in start(kind, run, "SIGKILL:8").wait()
    output = finish(start(kind, run, "SIGTERM:13"), 75)
    assert "fit call 1 is finished" in output
    assert "run the same command again to continue" in output
    return output


def test_killed_and_stopped_workers_go_on_and_one_worker_goes_on_for_two(tmp_path, plain):
    whole = start("horovod", tmp_path / "whole")
    finish(whole)
    run = tmp_path / "run"
    assert "fit call 2 in epoch 2, after execution 1" in kill_and_stop("horovod", run)
    one = tmp_path / "one"
    shutil.copytree(run, one)
    assert "resuming" in finish(start("horovod", run))
    difference, path = largest_difference(result_in(tmp_path / "whole"), result_in(run))
    assert difference <= 1e-6, path
    finish(start("alone", one))
    difference, path = largest_difference(plain, result_in(one))
    assert difference <= 1e-5, path


@pytest.mark.parametrize("kind", ["mirrored", "multi_worker"])
def test_runs_of_tf_distribute_go_on(kind, tmp_path, plain):
    kill_and_stop(kind, tmp_path)
    assert "fit call 2 in epoch" in finish(start(kind, tmp_path))
    difference, path = largest_difference(plain, result_in(tmp_path))
    assert difference <= 1e-5, path


class Killed(BaseException):
    """Stands for a process that ends right after a checkpoint."""


def run(name, folder=None, end_after=0):
    """Runs a script in this process; with a number, it ends after so many checkpoints."""
    keras.backend.clear_session()
    script = str((SCRIPTS / f"{name}.py").resolve())
    config = ScriptConfig(resume=str(folder), checkpoint_every_steps=2, fast_path="off")
    save, saved = BackgroundSaving.save, []

    def save_and_end(*arguments, **keywords):
        save(*arguments, **keywords)
        saved.append(arguments)
        if len(saved) == end_after:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(BackgroundSaving, "save", save_and_end)
        if folder is None:
            keras.utils.set_random_seed(config.seed)
        else:
            stack.enter_context(session(config=config, command=[script]))
        return outcome(runpy.run_path(script, run_name="__main__"))


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files left open
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize(
    ("name", "end_after"), [("gan", 3), ("generator", 4), ("callbacks", 5), ("two_phases", 5)]
)
def test_scripts_go_on_after_any_checkpoint(name, end_after, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = run(name)
    with pytest.raises(Killed):
        run(name, tmp_path / "saved", end_after)
    difference, path = largest_difference(plain, run(name, tmp_path / "saved"))
    assert difference <= 1e-6, path


def test_random_operations_without_a_state_are_reported(tmp_path, caplog):
    with pytest.raises(Killed):
        run("../resumed/noise", tmp_path / "saved", 1)
    assert "draws from" not in caplog.text
    run("../resumed/noise", tmp_path / "saved")
    assert "fit call 1 draws from TensorFlow's own random operations" in caplog.text


def enter(folder, script, *arguments, **settings):
    config = ScriptConfig(resume=str(folder), **settings)
    with session(config=config, command=[str(script), *arguments]):
        pass


def test_a_directory_of_another_run_is_refused(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("1\n")
    folder = tmp_path / "saved"
    enter(folder, script, "--fast")
    enter(folder, script, "--fast")
    with pytest.raises(UsageError, match=r"belongs to another run: the script's arguments changed"):
        enter(folder, script)
    with pytest.raises(UsageError, match="another run: seed changed"):
        enter(folder, script, "--fast", seed=3)
    script.write_text("2\n")
    with pytest.raises(UsageError, match=r"another run: the script's text changed; only the"):
        enter(folder, script, "--fast")
    with pytest.raises(UsageError, match="which holds other files"):
        enter(tmp_path, script)
    with pytest.raises(UsageError, match="cannot be written"):
        enter(script, script)


def test_a_script_without_fit_is_told_that_nothing_was_saved(tmp_path, caplog):
    script = tmp_path / "script.py"
    script.touch()
    enter(tmp_path / "saved", script)
    assert "the script has called no fit, so that nothing was saved" in caplog.text
