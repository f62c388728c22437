"""The command `python -m distcnn.install_horovod`: builds Horovod for this environment."""

import os
import sys
from collections.abc import Sequence

from distcnn.cli.command import run_command
from distcnn.cli.launch_scripts import LAUNCH_SCRIPTS
from distcnn.cli.parser import Parser


def main(arguments: Sequence[str]) -> int:
    """Replaces this process by `install_horovod.sh`, which installs into this environment.

    Args:
        arguments: The command line, without the program.
    """
    description = (
        "Builds Horovod 0.28.1 for the installed TensorFlow, installs it into the environment that "
        "this command runs in, and tries it with two processes. Needs g++, make and patch, and two "
        "to ten minutes; the wheel is kept, so the next time takes seconds."
    )
    parser = Parser("distcnn.install_horovod", description)
    flags = {
        "cuda": "Build NCCL in too, for GPUs; needs CUDA's nvcc and NCCL's headers.",
        "mpi": "Build MPI in too, to be started by mpirun; needs Open MPI's mpicxx.",
        "dry-run": "Only say which wheel would be installed, and whether it is built.",
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
