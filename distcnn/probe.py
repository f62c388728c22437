"""The command `python -m distcnn.probe`: one of several processes that prove that they reduce.

`distcnn.doctor` starts two of it; started by any launcher, it tries that launcher's own cluster.
"""

import os
from collections.abc import Sequence

from distcnn.cli.commandline import Parser, run_command
from distcnn.cli.startup import import_tensorflow
from distcnn.config import DistributeConfig
from distcnn.runtime.cluster import find_cluster


def main(arguments: Sequence[str]) -> int:
    """Reduces values that differ in every process.

    Args:
        arguments: The command line, without the program.

    Returns:
        0 if the sums are right.
    """
    parser = Parser("distcnn.probe", "Proves that the processes of a cluster reduce.")
    parser.add_class_arguments(DistributeConfig, "distribute")
    parser.hide_section_flags()
    options = parser.parse_args(list(arguments))
    cluster = find_cluster(os.environ)

    import_tensorflow()
    from distcnn.distribute import build_backend
    from distcnn.distribute.base import reporting_lost_peers
    from distcnn.distribute.consistency import verify_reduction

    backend, _ = build_backend(DistributeConfig(**options.distribute.as_dict()), cluster)
    with reporting_lost_peers(backend):
        verify_reduction(backend)
        backend.barrier()
    if cluster.is_chief:
        print(f"{backend.name}: {backend.replicas} workers reduce")
    return 0


if __name__ == "__main__":
    run_command(main)
