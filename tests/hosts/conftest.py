"""Real hosts and a real Slurm on one machine; they need root and some of Debian's packages.

Without those the tests are skipped, but where DISTCNN_REQUIRE_HOSTS is set, as in CI, they fail.
"""

import os
import shutil

import pytest


def require(*programs: str) -> None:
    """Skips the test, or fails it, if this is not root or a program is missing."""
    missing = [name for name in programs if shutil.which(name, path=SEARCH) is None]
    if os.geteuid() != 0:
        missing.append("root")
    if not missing:
        return
    reason = f"needs {', '.join(missing)}"
    if os.environ.get("DISTCNN_REQUIRE_HOSTS"):
        pytest.fail(reason)
    pytest.skip(reason)


SEARCH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
