"""The command `python -m distcnn.launchers`: prints the folder of the launch scripts.

Batch systems and Kubernetes need a file that the user can edit:
`cp "$(distcnn launchers)/slurm.sbatch" .`
"""

from collections.abc import Sequence

from distcnn.cli.command import run_command
from distcnn.cli.launch_scripts import LAUNCH_SCRIPTS
from distcnn.cli.parser import Parser


def main(arguments: Sequence[str]) -> int:
    """Runs the command."""
    description = (
        "Prints the folder of the launch scripts, for Slurm, Kubernetes and several hosts."
    )
    Parser("distcnn.launchers", description).parse_args(list(arguments))
    print(LAUNCH_SCRIPTS)
    return 0


if __name__ == "__main__":
    run_command(main)
