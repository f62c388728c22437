"""Real hosts and a real Slurm on one machine, where DISTCNN_TEST_HOSTS=1 asks for them, as in CI.

They need root and some of Debian's packages, make network namespaces and start daemons.
"""

import os
import shutil

import pytest

SEARCH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def require(*programs: str) -> None:
    """Skips the test if it was not asked for; fails it if root or a program is missing."""
    if not os.environ.get("DISTCNN_TEST_HOSTS"):
        pytest.skip("DISTCNN_TEST_HOSTS=1, as root, tests on real hosts")
    missing = [name for name in programs if shutil.which(name, path=SEARCH) is None]
    if os.geteuid() != 0:
        missing.append("root")
    if missing:
        pytest.fail(f"DISTCNN_TEST_HOSTS needs {', '.join(missing)}")
