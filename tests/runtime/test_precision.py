import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from distcnn.config import PrecisionConfig, TrainConfig
from distcnn.errors import DistcnnError
from distcnn.runtime.precision import Hardware, find_hardware, resolve_fast_path, resolve_precision
from distcnn.training.trainer import Trainer
from tests.runs import small_config

AMX = Hardware(None, None, frozenset({"avx512f", "amx_bf16"}))
DOTS = Hardware(None, None, frozenset({"avx512f", "avx512_bf16"}))
PLAIN = Hardware(None, None, frozenset({"avx2", "avx512f"}))


def gpu(major: int, minor: int) -> Hardware:
    return Hardware("GPU X", (major, minor), frozenset())


@pytest.mark.parametrize(
    ("hardware", "policy", "xla"),
    [
        (AMX, "mixed_bfloat16", False),
        (DOTS, "mixed_bfloat16", False),
        (PLAIN, "float32", False),
        (gpu(9, 0), "mixed_bfloat16", True),
        (gpu(8, 0), "mixed_bfloat16", True),
        (gpu(7, 5), "mixed_float16", True),
        (gpu(6, 1), "float32", True),
    ],
)
def test_auto_takes_what_the_hardware_does_best(hardware, policy, xla):
    found = resolve_precision(PrecisionConfig(), hardware)
    assert (found.policy, found.xla) == (policy, xla)
    assert found.policy_reason
    assert found.xla_reason


def test_what_is_asked_for_is_what_is_done():
    config = PrecisionConfig(policy="mixed_float16", xla="on")
    found = resolve_precision(config, AMX)
    assert (found.policy, found.xla) == ("mixed_float16", True)
    assert (found.policy_reason, found.xla_reason) == ("set in the configuration",) * 2
    assert not resolve_precision(PrecisionConfig(xla="off"), gpu(9, 0)).xla


def test_hardware_is_read_from_this_machine():
    found = find_hardware()
    assert found.gpu is not None or found.cpu_flags


@pytest.mark.parametrize(
    ("asked", "xla", "fast"),
    [
        ("auto", False, True),
        ("auto", True, False),
        ("on", True, True),
        ("off", False, False),
    ],
)
def test_the_fast_path_stays_out_of_xlas_way(asked, xla, fast):
    found, reason = resolve_fast_path(TrainConfig(fast_path=asked), xla=xla)
    assert found is fast
    assert reason


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_trains_with_float32_variables(tmp_path, policy):
    trainer = Trainer(small_config(tmp_path / "run", precision__policy=policy))
    try:
        summary = trainer.fit()
    finally:
        keras.config.set_dtype_policy("float32")
    assert summary is not None
    assert summary["precision"] == policy
    assert {w.dtype for w in trainer.model.weights} == {"float32"}
    assert np.isfinite(summary["loss"])
    assert hasattr(trainer.setup.optimizer, "inner_optimizer") == (policy == "mixed_float16")


def test_threads_cannot_change_once_tensorflow_runs(tmp_path):
    tf.constant(1)
    with pytest.raises(DistcnnError, match="TensorFlow already runs"):
        Trainer(small_config(tmp_path / "run", precision__threads=os.cpu_count() or 1 + 1))
