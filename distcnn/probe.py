"""The command `python -m distcnn.probe`: checks that the processes of a cluster reduce correctly.

`distcnn.doctor` starts two of these processes. Started by a launcher, it checks that cluster.
"""

from collections.abc import Sequence

from distcnn.cli.command import run_command
from distcnn.cli.parser import Parser
from distcnn.cli.startup import import_tensorflow
from distcnn.config import Config, DistributeConfig


def main(arguments: Sequence[str]) -> int:
    """Runs the command: reduces values that differ between the processes, and checks the sums."""
    parser = Parser("distcnn.probe", "Checks that the processes of a cluster reduce correctly.")
    parser.add_class_arguments(DistributeConfig, "distribute")
    parser.hide_section_flags()
    options = parser.parse_args(list(arguments))

    import_tensorflow()
    from distcnn.distribute.base import reporting_lost_peers
    from distcnn.distribute.context import join_run

    config = Config(distribute=DistributeConfig(**options.distribute.as_dict()))
    backend = join_run(config).backend
    with reporting_lost_peers(backend):
        backend.barrier()
    if backend.is_chief:
        print(f"{backend.name}: {backend.replicas} workers reduce")
    return 0


if __name__ == "__main__":
    run_command(main)
