"""What `nvidia-smi` lists, by a pretended one."""

import pytest

from distcnn.runtime.nvidia import count_nvidia_gpus, count_visible_gpus, nvidia_devices

LISTING = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-11)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-22)
  MIG 3g.20gb     Device  0: (UUID: MIG-aa-1)
  MIG 3g.20gb     Device  1: (UUID: MIG-aa-2)
GPU 2: NVIDIA A100-SXM4-40GB (UUID: GPU-33)
"""


@pytest.fixture
def _pretended(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{LISTING}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


@pytest.mark.usefixtures("_pretended")
def test_a_divided_gpu_is_represented_by_its_instances():
    assert nvidia_devices() == ["0", "MIG-aa-1", "MIG-aa-2", "2"]
    assert count_nvidia_gpus() == 3


@pytest.mark.usefixtures("_pretended")
@pytest.mark.parametrize(("listed", "count"), [(None, 3), ("0", 1), ("0,2", 2), ("", 0), ("-1", 0)])
def test_some_gpus_may_be_hidden(listed, count, monkeypatch):
    if listed is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert count_visible_gpus() == count


def test_without_the_driver_there_are_none(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_devices() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert count_nvidia_gpus() == count_visible_gpus() == 0
