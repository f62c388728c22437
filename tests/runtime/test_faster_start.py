"""What makes the processes of the tests start faster leaves them as they are otherwise."""

import subprocess
import sys

SCRIPT = """
import gc, sys
import tensorflow, keras
print(sorted({"sklearn", "matplotlib"} & set(sys.modules)), gc.isenabled())
import sklearn.metrics, matplotlib.figure
print(sorted({"sklearn", "matplotlib"} & set(sys.modules)))
"""


def test_training_starts_without_what_only_evaluation_needs():
    code = (
        "import sys, distcnn.training.trainer; print({'sklearn', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "set()\n", done.stderr


def test_only_keras_goes_without_the_hidden_packages():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["[] True", "['matplotlib', 'sklearn']"], done.stderr
