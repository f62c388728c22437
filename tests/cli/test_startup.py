import os
import sys
from types import SimpleNamespace

import pytest

from distcnn.cli.startup import import_tensorflow
from tests.runs import flags, small_config

NOTES = [
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    "I0000 00:00:1.0 1 port.cc:153] oneDNN custom operations are on. You may see slightly",
    "I0000 00:00:1.0 1 cudart_stub.cc:31] Could not find cuda drivers on your machine, GPU",
    "I0000 00:00:1.0 1 cpu_feature_guard.cc:227] This TensorFlow binary is optimized to use",
    "To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow",
    "E0000 00:00:1.0 1 cuda_platform.cc:52] failed call to cuInit: INTERNAL: UNKNOWN ERROR (303)",
]
OTHERS = [
    "E0000 00:00:1.0 1 cuda_platform.cc:52] failed call to cuInit: CUDA_ERROR_NO_DEVICE (100)",
    "W0000 00:00:1.0 1 gpu_device.cc:2342] Cannot dlopen some GPU libraries.",
    "gr\xfcn",
]


def lines(names: list[str]) -> bytes:
    return "".join(f"{name}\n" for name in names).encode("latin-1")


def fake_tensorflow(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """A tensorflow that prints while it looks for GPUs, as C++ does."""

    def list_physical_devices(kind: str) -> None:
        assert kind == "GPU"
        os.write(2, lines([*NOTES, *OTHERS]))
        if fails:
            raise RuntimeError("no devices")

    config = SimpleNamespace(list_physical_devices=list_physical_devices)
    monkeypatch.setitem(sys.modules, "tensorflow", SimpleNamespace(config=config))


@pytest.mark.parametrize("fails", [False, True])
def test_only_the_known_notes_are_dropped(fails, monkeypatch, capfdbinary):
    fake_tensorflow(monkeypatch, fails)
    files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    os.write(2, b"before\n")
    if fails:
        with pytest.raises(RuntimeError, match="no devices"):
            import_tensorflow()
    else:
        import_tensorflow()
    os.write(2, b"after\n")  # stderr is what it was
    assert capfdbinary.readouterr().err == b"before\n" + lines(OTHERS) + b"after\n"
    assert len(os.listdir("/proc/self/fd")) == files  # noqa: PTH208


def test_the_log_level_of_the_user_stays(monkeypatch):
    fake_tensorflow(monkeypatch, fails=False)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    import_tensorflow()
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0"
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    import_tensorflow()
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "2"


def test_xla_keeps_what_it_compiles(tmp_path, run_module, monkeypatch):
    monkeypatch.delenv("TF_XLA_FLAGS", raising=False)
    arguments = flags(small_config(tmp_path / "run", precision__xla="on", train__epochs=1))
    done = run_module("distcnn.train", *arguments)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "cache" / "distcnn" / "xla").iterdir())


def test_a_cache_of_the_users_own_stays(monkeypatch):
    own = "--tf_xla_persistent_cache_directory=/elsewhere"
    monkeypatch.setenv("TF_XLA_FLAGS", own)
    import_tensorflow()
    assert os.environ["TF_XLA_FLAGS"] == own
