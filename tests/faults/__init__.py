"""Deliberate faults: commands for long campaigns, and a short sample of each as tests.

A run must survive what happens to its process, to its files and to its disk; a command must survive
what others put into its files and folders. Joins cli, config, data, inference, storage, training.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # as the commands do, before TensorFlow starts
