"""Horovod as distcnn builds it, between two processes."""

import os
import subprocess
import sys

import pytest

from distcnn.distribute.launching import tf_config

RANK = """
import os, sys
import numpy as np
import tensorflow as tf
os.environ |= {"HOROVOD_CYCLE_TIME": "60000", "HOROVOD_IDLE_CYCLE_TIME": "5000"}
from distcnn.config import DistributeConfig
from distcnn.distribute.alike import are_alike
from distcnn.distribute.strategies import strategy_of
from distcnn.runtime.cluster import find_cluster
cluster = find_cluster(os.environ)
config = DistributeConfig(shared_memory="off", factors=sys.argv[1])
backend = strategy_of("horovod").build(config, cluster)
sums = [float(backend.sum(np.array([step + cluster.rank]))[0]) for step in range(20)]
for length in (7, 2**18 + 1):  # more than a megabyte travels otherwise
    own = tf.range(float(length)) * (1 + cluster.rank)
    np.testing.assert_array_equal(backend.reduce_sum([own])[0], 3 * np.arange(length))
same = are_alike(backend)
if cluster.rank:
    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"
other = are_alike(backend)
backend.close()
print(sums == [2.0 * step + 1 for step in range(20)], backend.sends_factors, same, other)
"""


@pytest.mark.parametrize(("factors", "sent"), [("auto", "True"), ("off", "False")])
def test_ranks_wait_for_no_cycle_and_know_whether_they_compute_alike(factors, sent):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    processes = [
        subprocess.Popen(line, env=own, stdout=subprocess.PIPE, text=True)
        for line, own in tf_config(2, [sys.executable, "-c", RANK, factors], environment)
    ]
    # A cycle takes a minute here, unless a tensor ends the wait for it.
    said = [process.communicate(timeout=120)[0].split() for process in processes]
    assert said == [["True", sent, "True", "False"]] * 2
