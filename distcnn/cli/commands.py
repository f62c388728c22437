"""The program `distcnn`: runs the command named by its first argument."""

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from distcnn.version import __version__

COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("distcnn.train:main", "Trains an image classifier."),
    "run": ("distcnn.run:main", "Runs a Keras script of your own on any number of workers."),
    "evaluate": ("distcnn.evaluate:main", "Evaluates a classifier on labelled images."),
    "predict": ("distcnn.predict:main", "Prints the most probable classes of images."),
    "inspect": ("distcnn.inspect:main", "Reports on labelled images before training."),
    "export": ("distcnn.export:main", "Writes a classifier in the formats of other runtimes."),
    "search": ("distcnn.search:main", "Looks for the best settings of a recipe by many trials."),
    "find-lr": ("distcnn.find_lr:main", "Tests which learning rates a run can use."),
    "find-batch": ("distcnn.find_batch:main", "Finds the largest batch that fits into memory."),
    "runs": ("distcnn.runs:main", "Lists runs: what they reached, and which settings differ."),
    "report": ("distcnn.report:main", "Writes a report on a run as one HTML file."),
    "records": ("distcnn.records:main", "Writes a data set as TFRecord shards."),
    "benchmark": (
        "distcnn.benchmark:main",
        "Measures throughput by number of workers.",
    ),
    "doctor": ("distcnn.doctor:main", "Checks whether training would work on this machine."),
    "probe": ("distcnn.probe:main", "Checks that the processes of a cluster reduce correctly."),
    "install-horovod": (
        "distcnn.install_horovod:main",
        "Builds and installs Horovod in this environment.",
    ),
    "launch": (
        "distcnn.launch:main",
        "Starts the workers of a run, and starts them again when some are lost.",
    ),
    "horovodrun": ("distcnn.horovodrun:main", "Starts the processes of a run through Horovod."),
    "launchers": ("distcnn.launchers:main", "Prints the folder of the launch scripts."),
}
"""The commands by name: import path of the function, as `package.module:function`, and description.

The function takes the arguments and returns the exit code (None for 0). Its module is imported only
when the command runs.
"""


def main(program: str = "distcnn") -> NoReturn:
    """Runs the command named by the process's first argument, and exits with its exit code.

    `sys.argv[0]` becomes `PROGRAM NAME`, for the usage line and the record of the run.

    Args:
        program: The program as the user started it.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else None
    if name is None or name in ("-h", "--help"):
        sys.stdout.write(_help(program))
        sys.exit(2 if name is None else 0)
    if name == "--version":
        sys.stdout.write(f"distcnn {__version__}\n")
        sys.exit(0)
    from distcnn.cli.command import run_command  # imported late to keep --help fast

    if program == "distcnn" and not sys.flags.safe_path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does, for user modules
    sys.argv = [f"{program} {name}", *sys.argv[2:]]
    run_command(lambda arguments: _find(name)(arguments))


def _find(name: str) -> Callable[[Sequence[str]], int | None]:
    """Imports a command.

    Raises:
        UsageError: If there is no command of that name.
    """
    if name not in COMMANDS:
        from distcnn.config.recipe import nearest
        from distcnn.errors import UsageError

        hint = nearest(name, COMMANDS) or "; distcnn --help lists the commands"
        error = UsageError(f"unknown command {name}{hint}")
        error.on_every_rank = True
        raise error
    module, _, function = COMMANDS[name][0].partition(":")
    found: Callable[[Sequence[str]], int | None] = getattr(
        importlib.import_module(module), function
    )
    return found


def _help(program: str) -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {description}" for name, (_, description) in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {program} COMMAND ARGUMENT...",
            "",
            "Trains Keras 3 image classifiers on one device, several GPUs or several machines.",
            "",
            "commands:",
            *lines,
            "",
            f"{program} COMMAND --help shows the arguments of a command, "
            f"{program} --version shows the version.",
            "",
        ]
    )
