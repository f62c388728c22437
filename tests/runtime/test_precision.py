import pytest

from distcnn.config import PrecisionConfig, TrainConfig
from distcnn.runtime.precision import Hardware, find_hardware, resolve_fast_path, resolve_precision

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
    assert (found.policy_reason, found.xla_reason) == ("asked for", "asked for")
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
