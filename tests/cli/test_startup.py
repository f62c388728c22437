import os
import sys
from types import SimpleNamespace

import pytest

from distcnn.cli.startup import import_tensorflow
from tests.runs import flags, small_config

NOTICES = [
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    "I0000 00:00:1.0 1 port.cc:153] oneDNN custom operations are on. You may see slightly",
    "I0000 00:00:1.0 1 cudart_stub.cc:31] Could not find cuda drivers on your machine, GPU",
    "I0000 00:00:1.0 1 cpu_feature_guard.cc:227] This TensorFlow binary is optimized to use",
    "To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow",
    "E0000 00:00:1.0 1 cuda_platform.cc:52] failed call to cuInit: INTERNAL: UNKNOWN ERROR (303)",
]
OTHER_LINES = [
    "E0000 00:00:1.0 1 cuda_platform.cc:52] failed call to cuInit: CUDA_ERROR_NO_DEVICE (100)",
    "W0000 00:00:1.0 1 gpu_device.cc:2342] Cannot dlopen some GPU libraries.",
    "gr\xfcn",
]


def encode(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("latin-1")


def fake_tensorflow(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """Installs a fake tensorflow that prints to descriptor 2, like C++, when it lists GPUs."""

    def list_physical_devices(kind: str) -> None:
        assert kind == "GPU"
        os.write(2, encode([*NOTICES, *OTHER_LINES]))
        if fails:
            raise RuntimeError("no devices")

    config = SimpleNamespace(list_physical_devices=list_physical_devices)
    monkeypatch.setitem(sys.modules, "tensorflow", SimpleNamespace(config=config))


@pytest.mark.parametrize("fails", [False, True])
def test_only_known_notices_are_dropped(fails, monkeypatch, capfdbinary):
    fake_tensorflow(monkeypatch, fails)
    files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    os.write(2, b"before\n")
    if fails:
        with pytest.raises(RuntimeError, match="no devices"):
            import_tensorflow()
    else:
        import_tensorflow()
    os.write(2, b"after\n")  # stderr is restored
    assert capfdbinary.readouterr().err == b"before\n" + encode(OTHER_LINES) + b"after\n"
    assert len(os.listdir("/proc/self/fd")) == files  # noqa: PTH208


def test_the_users_log_level_is_kept(monkeypatch):
    fake_tensorflow(monkeypatch, fails=False)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    import_tensorflow()
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0"
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    import_tensorflow()
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "2"


@pytest.mark.parametrize("driver", [True, False])
def test_a_driver_makes_xla_cache_programs_and_a_run_on_the_cpu_be_told(
    tmp_path, run_module, monkeypatch, driver
):
    monkeypatch.delenv("TF_XLA_FLAGS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # as launch/local.sh does
    if driver:
        (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    arguments = flags(small_config(tmp_path / "run", precision__xla="on", train__epochs=1))
    done = run_module("distcnn.train", *arguments)
    assert done.returncode == 0, done.stderr
    assert any((tmp_path / "cache").glob("distcnn/xla/*")) == driver
    told = "warning: nvidia-smi finds 1 GPU, TensorFlow none: this run computes on the CPU"
    assert (told in done.stderr) == driver


def test_the_users_own_cache_is_kept(monkeypatch):
    flag = "--tf_xla_persistent_cache_directory=/elsewhere"
    monkeypatch.setenv("TF_XLA_FLAGS", flag)
    import_tensorflow()
    assert os.environ["TF_XLA_FLAGS"] == flag
