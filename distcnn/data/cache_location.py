"""Where this user's caches are."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Returns the folder for decoded images, distcnn/decoded in `$XDG_CACHE_HOME` or `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "distcnn" / "decoded"
