"""The command `python -m distcnn.launchers`: where the launch scripts are.

A batch system or Kubernetes needs a file to read, and its user one to edit:
`cp "$(distcnn launchers)/slurm.sbatch" .`
"""

from collections.abc import Sequence

from distcnn.cli.command import run_command
from distcnn.cli.launch_scripts import LAUNCH_SCRIPTS
from distcnn.cli.parser import Parser


def main(arguments: Sequence[str]) -> int:
    """Prints the folder."""
    description = (
        "Prints the folder of the launch scripts, for Slurm, Kubernetes and several hosts."
    )
    Parser("distcnn.launchers", description).parse_args(list(arguments))
    print(LAUNCH_SCRIPTS)
    return 0


if __name__ == "__main__":
    run_command(main)
