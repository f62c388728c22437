"""The peak of a process's memory."""

import subprocess
import sys

import numpy as np

from distcnn.runtime.memory import peak_bytes


def test_the_peak_is_that_of_the_process_itself():
    big = np.ones(80_000_000)
    assert peak_bytes() > 640_000_000
    code = "from distcnn.runtime.memory import peak_bytes; print(peak_bytes())"
    line = [sys.executable, "-c", code]
    printed = subprocess.run(line, capture_output=True, check=True, text=True).stdout
    assert 5_000_000 < int(printed) < 300_000_000
    assert big[0] == 1
