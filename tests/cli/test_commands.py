"""The program `distcnn`: its commands, its errors and its start-up time."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distcnn import install_horovod, launchers
from distcnn.cli import commands
from distcnn.cli.commands import COMMANDS
from distcnn.version import __version__
from tests.conftest import ROOT

SCRIPT = "from distcnn.cli.commands import COMMANDS, main\n"


def distcnn(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Runs a copy of the installed script `distcnn` in a separate folder."""
    script = Path("bin", "distcnn")
    script.parent.mkdir(exist_ok=True)
    script.write_text(f"{SCRIPT}{before}\nmain()\n")
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_help_lists_the_commands():
    done = distcnn("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: distcnn COMMAND ARGUMENT...\n")
    for name, (_, description) in COMMANDS.items():
        assert [name, *description.split()] in [line.split() for line in done.stdout.splitlines()]
    alone = distcnn()
    assert (alone.returncode, alone.stdout) == (2, done.stdout)
    version = distcnn("--version")
    assert (version.returncode, version.stdout) == (0, f"distcnn {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "banned"),
    [
        (["--help"], {"tensorflow", "keras", "jsonargparse", "numpy"}),
        (["train", "--help"], {"tensorflow", "keras", "numpy", "rich"}),
    ],
)
def test_help_imports_nothing_slow(arguments, banned):
    leave = f"atexit.register(lambda: print('slow:', {banned} & set(sys.modules)))"
    done = distcnn(*arguments, before=f"import atexit, sys\n{leave}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("slow: set()\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_the_same_arguments_by_either_name(name, monkeypatch, capsys):
    module, _, function = COMMANDS[name][0].partition(":")
    assert (module, function) == (f"distcnn.{name.replace('-', '_')}", "main")
    printed = []
    for program in (f"distcnn {name}", "file.py"):
        monkeypatch.setattr("sys.argv", [program, "--help"])
        with pytest.raises(SystemExit):
            commands._find(name)(["--help"])
        printed.append(capsys.readouterr().out)
    assert printed[0].startswith(f"usage: distcnn {name} ")
    assert printed[1].startswith(f"usage: python -m {module} ")
    options = [text[text.index("\n\n") :] for text in printed]
    assert options[0] == options[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian", "x"], "unknown command trian; did you mean train?"),
        (["install_horovod"], "unknown command install_horovod; did you mean install-horovod?"),
        (["xyz"], "unknown command xyz; distcnn --help lists the commands"),
        (["train", "--train.epochs", "x"], "train.epochs is 'x'; expected int"),
        (["install-horovod", "--gpu"], "unknown argument --gpu; did you mean --mpi?"),
    ],
)
def test_a_wrong_name_or_argument_is_one_line(arguments, message):
    done = distcnn(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {message}\n")


def test_python_m_runs_the_same(run_module):
    done = run_module("distcnn", "trian")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown command trian; did you mean train?\n"
    assert run_module("distcnn").stdout.startswith("usage: python -m distcnn COMMAND ")
    show = ("--recipe", "quickstart", "--print-config")
    printed = run_module("distcnn", "train", *show).stdout
    assert "epochs:" in printed
    assert printed == run_module("distcnn.train", *show).stdout


def test_one_line_adds_a_command():
    line = 'COMMANDS["hello"] = ("tests.cli.extension:main", "Greets.")'
    done = distcnn("hello", "--name", "me", before=line)
    assert (done.returncode, done.stdout) == (7, "distcnn hello: hello me\n"), done.stderr
    assert "hello            Greets." in distcnn("--help", before=line).stdout
    assert distcnn("hello", "--help", before=line).stdout.startswith("usage: distcnn hello [")
    wrong = distcnn("hello", before=line.replace("extension", "absent"))
    assert wrong.returncode == 1
    assert "No module named 'tests.cli.absent'" in wrong.stderr


def test_modules_of_the_working_folder_are_found():
    """As with `python -m`, for `--model.factory mine:build`."""
    Path("mine.py").write_text("def main(arguments):\n    print(arguments)\n")
    line = 'COMMANDS["mine"] = ("mine:main", "")'
    done = distcnn("mine", "a b", before=line)
    assert (done.returncode, done.stdout) == (0, "['a b']\n"), done.stderr


def test_horovod_goes_into_the_environment_of_the_command(monkeypatch):
    called: list[Any] = []
    monkeypatch.setattr(os, "execvpe", lambda *given: called.append(given))
    install_horovod.main(["--dry-run", "--cuda"])
    ((file, command, environment),) = called
    script = str(ROOT.resolve() / "launch/install_horovod.sh")
    assert (file, command) == ("bash", ["bash", script, "--cuda", "--dry-run"])
    assert environment["VENV"] == sys.prefix


def test_the_launch_scripts_have_a_folder(capsys):
    assert launchers.main([]) == 0
    assert Path(capsys.readouterr().out.strip()) == (ROOT / "launch").resolve()
