"""The launch scripts, in a copy of the project whose Python only prints its arguments."""

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

Launch = Callable[..., subprocess.CompletedProcess[str]]

SAYS_ITS_ARGUMENTS = '#!/bin/sh\nprintf "[%s]" "$CUDA_VISIBLE_DEVICES" "$@"\necho\n'


def script(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(0o755)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An installed project in a folder with a space in its name."""
    root = tmp_path / "the project"
    shutil.copytree(ROOT / "launch", root / "launch")
    (root / "pyproject.toml").touch()
    for name in ("python", "pip"):
        script(root / ".venv/bin" / name, SAYS_ITS_ARGUMENTS)
    for stamp in ("base", "cuda"):
        (root / ".venv" / f".installed-{stamp}").touch()
    old = (root / "pyproject.toml").stat().st_mtime - 100
    os.utime(root / "pyproject.toml", (old, old))
    return root


@pytest.fixture
def launch(project: Path, tmp_path: Path) -> Launch:
    """Runs a launch script, with an `nvidia-smi` that finds a GPU or without one."""

    def run(
        name: str, *arguments: str, gpu: bool = False, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        tools = tmp_path / "tools"
        tools.mkdir(exist_ok=True)
        for tool in ("bash", "dirname", "basename", "flock", "touch", "python3"):
            where = shutil.which(tool)
            assert where is not None
            (tools / tool).unlink(missing_ok=True)
            (tools / tool).symlink_to(where)
        if gpu:
            script(tools / "nvidia-smi", "#!/bin/sh\necho GPU 0\n")
        return subprocess.run(
            [project / "launch" / name, *arguments],
            env={"PATH": str(tools), **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.parametrize(
    ("gpu", "environment", "visible"),
    [
        (False, {}, ""),
        (False, {"GPU": ""}, ""),
        (True, {}, "0"),
        (True, {"GPU": "1"}, "1"),
        (True, {"CUDA_VISIBLE_DEVICES": "3"}, "3"),
        (True, {"GPU": ""}, ""),
    ],
)
def test_local_trains_on_the_gpu_asked_for(gpu, environment, visible, launch, project):
    arguments = ["--recipe", "article", "--out", "a b's $HOME"]
    dry = launch("local.sh", "--dry-run", *arguments, gpu=gpu, **environment)
    assert dry.returncode == 0, dry.stderr
    assert shlex.split(dry.stdout) == [
        f"CUDA_VISIBLE_DEVICES={visible}",
        *(str(project / ".venv/bin/python"), "-m", "distcnn.train", *arguments),
    ]
    real = launch("local.sh", *arguments, gpu=gpu, **environment)
    said = "".join(f"[{word}]" for word in (visible, "-m", "distcnn.train", *arguments))
    assert (real.returncode, real.stdout) == (0, f"{said}\n"), real.stderr


def test_local_trains_quickstart_by_default(launch):
    assert launch("local.sh").stdout == "[][-m][distcnn.train][--recipe][quickstart]\n"
    assert launch("local.sh", "--dry-run").stdout.endswith("distcnn.train --recipe quickstart\n")


def test_local_refuses_a_gpu_that_is_not_there(launch):
    done = launch("local.sh", "--dry-run", GPU="1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: GPU is 1, but nvidia-smi finds no GPU")


def test_tensorboard_shows_folders_on_this_machine_only(launch, tmp_path):
    for name in ("a/run", "b/run", "c:d"):
        (tmp_path / name).mkdir(parents=True)
    rest = "[--host][localhost][--port][6006]\n"
    begin = "[][-m][tensorboard.main]"
    assert launch("tensorboard.sh", "a/run").stdout == f"{begin}[--logdir][a/run]{rest}"
    assert launch("tensorboard.sh", "c:d").stdout == f"{begin}[--logdir][c:d]{rest}"
    several = launch("tensorboard.sh", "a/run", "b/run", str(tmp_path / "a"), PORT="7")
    spec = f"a/run:a/run,b/run:b/run,{tmp_path}/a"
    assert several.stdout == f"{begin}[--logdir_spec][{spec}]{rest.replace('6006', '7')}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: runs is not a folder; expected a run directory"),
        (["c:d", "none"], "error: c:d contains a colon or a comma"),
        (["a", "none"], "error: none is not a folder"),
    ],
)
def test_tensorboard_refuses_what_it_cannot_show(arguments, message, launch, tmp_path):
    for name in ("a", "c:d"):
        (tmp_path / name).mkdir()
    done = launch("tensorboard.sh", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(message)


def test_nothing_is_installed_twice(launch):
    done = launch("install.sh", PYTHON="none")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert launch("install.sh", "cuda", PYTHON="none").returncode == 0


def test_an_old_or_missing_python_is_refused(launch, project, tmp_path):
    (project / ".venv/.installed-base").unlink()
    old = tmp_path / "python3.9"
    script(old, '#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 && exit\nexit 1\n')
    done = launch("install.sh", PYTHON=str(old))
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {old} is Python 3.9.2; expected Python 3.11 or newer")
    done = launch("install.sh", PYTHON="no-python")
    assert done.returncode == 1
    assert "expected Python 3.11 or newer" in done.stderr
    assert not (project / ".venv/.installed-base").exists()


@pytest.mark.parametrize("broken", [False, True])
def test_what_is_missing_is_installed_once(broken, launch, project, tmp_path):
    """Also into an environment without pip, which a failed `venv` on Debian leaves behind."""
    for stamp in ("base", "cuda"):
        (project / ".venv" / f".installed-{stamp}").unlink()
    if broken:
        (project / ".venv/bin/pip").unlink()
    python = tmp_path / "python"
    script(python, f'#!/bin/sh\n[ "$2" = venv ] && echo made >> "{tmp_path}/made"\nexit 0\n')
    done = launch("install.sh", "cuda", PYTHON=str(python))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "made").exists() == broken
    assert f"--editable][{project}[cuda]]" in done.stderr
    assert (project / ".venv/.installed-cuda").exists()
    assert (project / ".venv/.installed-base").exists()


def test_an_installed_package_uses_the_environment_that_it_is_in(tmp_path):
    prefix = tmp_path / "the env"
    folder = prefix / "lib/python3.11/site-packages/distcnn/launch"
    shutil.copytree(ROOT / "launch", folder)

    def run(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [folder / name, *arguments],
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    absent = run("local.sh", GPU="")
    assert (absent.returncode, absent.stdout) == (1, "")
    assert f"there is no {prefix}/bin/python; VENV must be the environment" in absent.stderr
    horovod = run("install_horovod.sh", "--dry-run", VENV="/no")
    assert horovod.stderr == "error: there is no /no/bin/python; install distcnn there first\n"
    script(prefix / "bin/python", SAYS_ITS_ARGUMENTS)
    script(tmp_path / "other/bin/python", "#!/bin/sh\necho the other\n")
    assert run("local.sh", GPU="").stdout == "[][-m][distcnn.train][--recipe][quickstart]\n"
    assert run("local.sh", GPU="", VENV=str(tmp_path / "other")).stdout == "the other\n"
    assert not list(folder.parent.glob(".venv*"))
