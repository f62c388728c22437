"""The wheel: it contains everything, and trains without a clone."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from distcnn.version import __version__
from tests.conftest import ROOT

LAUNCH = ("horovod.patch", "install_horovod.sh", "environment.sh", "multi_node.sh", "slurm.sbatch")
RECIPES = ("article", "fast", "fast_article", "large_batch", "quickstart", "record")


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with neither the clone nor the active environment in its variables."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "VENV")}
    done = subprocess.run(
        command,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources, without leftovers of earlier builds."""
    source = tmp_path_factory.mktemp("source")
    for name in ("distcnn", "launch"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    # The version that pyproject.toml requires; without it, pip downloads one for an isolated build.
    new_enough = int(metadata.version("setuptools").split(".")[0]) >= 77
    here = ["--no-build-isolation"] if new_enough else []
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *here, "-w", out, source)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a new environment with the wheel, and with the tests' packages."""
    venv = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    pip = (sys.executable, "-m", "pip", "--python", venv / "bin/python", "install", "--quiet")
    run(*pip, "--no-deps", "--no-index", wheel)
    (site,) = venv.glob("lib/python*/site-packages")
    # Adds only a path: the *.pth files there, which lead to an editable distcnn, are not read.
    (site / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return venv / "bin"


def test_it_holds_the_whole_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {info.filename: info.external_attr >> 16 for info in archive.infolist()}
    about = f"distcnn-{__version__}.dist-info/"
    held = {name for name in names if not name.startswith(about)}
    for name in (*(f"launch/{name}" for name in LAUNCH), "py.typed", "launch/k8s/mpijob.yaml"):
        assert f"distcnn/{name}" in held
    assert {f"distcnn/config/recipes/{name}.yaml" for name in RECIPES} <= held
    sources = [path for path in (ROOT / "distcnn").rglob("*") if "__pycache__" not in path.parts]
    expected = {str(path.relative_to(ROOT)) for path in sources if path.is_file()}
    scripts = [path for path in (ROOT / "launch").rglob("*") if path.is_file()]
    expected |= {f"distcnn/{path.relative_to(ROOT)}" for path in scripts}
    assert held == expected
    assert names["distcnn/launch/multi_gpu.sh"] & 0o111
    assert f"{about}licenses/LICENSE" in names


def test_it_trains_away_from_the_clone(installed, tmp_path):
    where = run(installed / "python", "-c", "import distcnn; print(distcnn.__file__)").stdout
    assert Path(where).is_relative_to(installed.parent)
    assert "install-horovod" in run(installed / "distcnn", "--help").stdout
    assert run(installed / "distcnn", "--version").stdout == f"distcnn {__version__}\n"
    short = ("--recipe", "quickstart", "--train.epochs", "1")
    run(installed / "distcnn", "train", *short)
    summary = json.loads((tmp_path / "runs/quickstart/summary.json").read_text())
    assert (summary["epochs"], summary["world_size"]) == (1, 1)
    environment = json.loads((tmp_path / "runs/quickstart/environment.json").read_text())
    assert environment["command"] == ["distcnn train", *short]


def test_it_installs_horovod_into_its_own_environment(installed):
    said = run(installed / "distcnn", "install-horovod", "--dry-run").stdout
    (ours,) = {entry for entry in said.splitlines() if entry.startswith("wheel ")}
    clone = ROOT / "launch/install_horovod.sh"
    theirs = run("bash", clone, "--dry-run", VENV=str(installed.parent)).stdout
    assert ours in theirs.splitlines()  # same version, TensorFlow and patch


def test_its_launch_scripts_use_its_environment(installed):
    folder = Path(run(installed / "distcnn", "launchers").stdout.strip())
    assert folder.is_relative_to(installed.parent)
    train = f"{installed}/python -m distcnn.train"
    assert train in run(folder / "local.sh", "--dry-run").stdout
    launched = f"{installed}/python -m distcnn.launch --workers 1 train"
    assert launched in run(folder / "multi_gpu.sh", "--dry-run", WORKERS="1").stdout
    line = run(folder / "multi_node.sh", "--dry-run", "-H", "localhost:2", PRIVATE="no").stdout
    assert f"{installed}/python -m distcnn.launch -H localhost:2 train" in line
    batch = ("bash", folder / "slurm.sbatch", "--dry-run")
    assert train in run(*batch, PATH=f"{installed}:{os.environ['PATH']}").stdout
    assert train in run(*batch, VENV=str(installed.parent)).stdout
    assert run(folder / "install.sh", "cuda").stderr == ""
