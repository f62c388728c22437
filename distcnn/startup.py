"""Imports TensorFlow without the notes that it prints on every start, whatever its log level."""

import os
import re
import sys
import tempfile

_NOTES = re.compile(
    rb"All log messages before absl::InitializeLog|oneDNN custom operations are on"
    rb"|Could not find cuda drivers on your machine|failed call to cuInit: .*\(303\)"
    rb"|This TensorFlow binary is optimized|To enable the following instructions"
)


def import_tensorflow() -> None:
    """Imports TensorFlow and finds its devices; passes on what it prints, but for known notes."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_physical_devices("GPU")
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            printed.seek(0)
            for line in printed:
                if not _NOTES.search(line):
                    os.write(2, line)
