"""Imports TensorFlow without the notices that it prints at every start, at any log level."""

import contextlib
import gc
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from distcnn.runtime.cluster import find_cluster
from distcnn.runtime.cuda_libraries import load_missed_libraries

_NOTICES = re.compile(
    rb"All log messages before absl::InitializeLog|oneDNN custom operations are on"
    rb"|Could not find cuda drivers on your machine|failed call to cuInit: .*\(303\)"
    rb"|This TensorFlow binary is optimized|To enable the following instructions"
)


def order_sets_alike() -> None:
    """Starts this process anew if its sets of strings would have an order of their own.

    Python hashes strings differently in every process; it reads PYTHONHASHSEED at its start.
    A script that iterates over a set would build its layers, or number its classes, in another
    order on every rank.
    """
    chosen = os.environ.get("PYTHONHASHSEED", "random")
    if chosen != "random" or find_cluster(os.environ).size == 1:
        return
    os.environ["PYTHONHASHSEED"] = "0"
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def import_tensorflow() -> None:
    """Imports TensorFlow and Keras, detects devices, and filters known notices out of their output.

    Garbage collection waits until the end: it takes a quarter of the time and finds nothing.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if shutil.which("nvidia-smi") is not None:
        _enable_xla_cache()
        load_missed_libraries()
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 2)
        gc.disable()
        try:
            import keras  # noqa: F401
            import tensorflow as tf

            tf.config.list_physical_devices("GPU")
        finally:
            gc.enable()
            os.dup2(stderr, 2)
            os.close(stderr)
            printed.seek(0)
            for line in printed:
                if not _NOTICES.search(line):
                    os.write(2, line)


def _enable_xla_cache() -> None:
    """Makes XLA keep compiled programs in the user's cache folder, for later runs on a GPU.

    TensorFlow reads the flag only once, when it starts. On a CPU, XLA compiles small programs only,
    and TensorFlow reports an error for each one that it reads from the cache.
    """
    flags = os.environ.get("TF_XLA_FLAGS", "")
    if "persistent_cache" in flags:
        return
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base, "distcnn", "xla")
    with contextlib.suppress(OSError):  # without a cache, XLA compiles again
        folder.mkdir(parents=True, exist_ok=True)
        option = f"--tf_xla_persistent_cache_directory={folder}"
        os.environ["TF_XLA_FLAGS"] = f"{flags} {option}".strip()
