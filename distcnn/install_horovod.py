"""The command `python -m distcnn.install_horovod`: builds and installs Horovod."""

import os
import sys
from collections.abc import Sequence

from distcnn.cli.command import run_command
from distcnn.cli.launch_scripts import LAUNCH_SCRIPTS
from distcnn.cli.parser import Parser


def main(arguments: Sequence[str]) -> int:
    """Runs the command: replaces this process by `install_horovod.sh`."""
    description = (
        "Builds Horovod 0.28.1 for the installed TensorFlow, installs it in this command's "
        "environment, and tests it with two processes. Needs g++, make and patch. Takes two to ten "
        "minutes; the wheel is cached, so that the next installation takes seconds."
    )
    parser = Parser("distcnn.install_horovod", description)
    flags = {
        "cuda": "Include NCCL, for GPUs; needs CUDA's nvcc and NCCL's headers.",
        "mpi": "Include MPI, to start runs with mpirun; needs Open MPI's mpicxx.",
        "dry-run": "Print the wheel that would be installed, and whether it is already built.",
    }
    for name, text in flags.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    options = parser.parse_args(list(arguments))

    given = [f"--{name}" for name in flags if options[name.replace("-", "_")]]
    script = str(LAUNCH_SCRIPTS / "install_horovod.sh")
    sys.stdout.flush()
    os.execvpe("bash", ["bash", script, *given], {**os.environ, "VENV": sys.prefix})


if __name__ == "__main__":
    run_command(main)
