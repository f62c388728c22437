"""The command `python -m distcnn.probe`: one process of a cluster that tests its reductions.

`distcnn.doctor` starts two of them. Started by any launcher, it tests that launcher's cluster.
"""

import os
from collections.abc import Sequence

from distcnn.cli.commandline import Parser, run_command
from distcnn.cli.startup import import_tensorflow
from distcnn.config import DistributeConfig
from distcnn.runtime.cluster import find_cluster


def main(arguments: Sequence[str]) -> int:
    """Reduces values that differ between processes, and checks the sums.

    Args:
        arguments: Command-line arguments, without the program name.

    Returns:
        The exit code, 0 if the sums are right.
    """
    parser = Parser("distcnn.probe", "Tests whether the processes of a cluster reduce correctly.")
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
