"""The command `python -m distcnn.launchers`: where the launch scripts are.

A batch system or Kubernetes needs a file to read, and its user one to edit:
`cp "$(distcnn launchers)/slurm.sbatch" .`
"""

from collections.abc import Sequence
from pathlib import Path

from distcnn.cli.command import run_command
from distcnn.cli.parser import Parser

FOLDER = (Path(__file__).parent / "launch").resolve()
"""The folder `launch` of the clone, or its copy in an installed package."""


def main(arguments: Sequence[str]) -> int:
    """Prints the folder.

    Args:
        arguments: The command line, without the program.

    Returns:
        0.
    """
    description = (
        "Prints the folder of the launch scripts, for Slurm, Kubernetes and several hosts."
    )
    Parser("distcnn.launchers", description).parse_args(list(arguments))
    print(FOLDER)
    return 0


if __name__ == "__main__":
    run_command(main)
