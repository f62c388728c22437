"""The section `distribute`."""

from dataclasses import dataclass
from typing import Literal

from distcnn.config.sections.bounds import require, require_at_least, require_at_most


@dataclass(frozen=True, kw_only=True)
class DistributeConfig:
    """Devices and processes of the run."""

    strategy: str = "auto"
    """one_device: the first GPU, else the CPU. mirrored: all GPUs of this process. multi_worker:
    all GPUs of several processes, over TensorFlow's collectives. horovod: one GPU per process.
    auto: the one that fits the processes that were started and the available GPUs."""
    devices: int | None = None
    """Number of devices per process for mirrored and multi_worker, each of them a worker: GPUs, or,
    for mirrored on a machine without a GPU, logical CPU devices. Default: all GPUs, else one
    CPU."""
    sync_batchnorm: bool = False
    """Let batch normalisation use the statistics of all workers instead of each worker's own."""
    compression: Literal["none", "fp16"] = "none"
    """fp16: send gradients as float16. Only for horovod; turns shared memory off."""
    shared_memory: Literal["auto", "off"] = "auto"
    """Reduce gradients through shared memory instead of Horovod's sockets. auto: for up to 4
    processes of horovod, all on the CPUs of one Linux host, without compression."""
    bucket_mb: float = 4.0
    """Reduce gradients in buckets of this many MB, each as soon as the backward pass has computed
    it, so that the network works while the model computes. 0: all at once, after the backward
    pass. Only for multi_worker, and for horovod unless it uses shared memory."""
    factors: Literal["auto", "off"] = "auto"
    """Send the few rows whose product the gradient of a large dense layer is, instead of the
    gradient, where they are smaller, and let every worker multiply them. auto: between CPUs of the
    same kind. Only for multi_worker, and for horovod unless it uses shared memory."""
    port: int | None = None
    """First port of the run, if the launcher sets none. Default: derived from the job."""

    def __post_init__(self) -> None:
        """Validates the numbers."""
        require_at_most("distribute", self, 1024, "devices")
        require_at_least("distribute", self, 1, "devices", "port")
        require_at_least("distribute", self, 0, "bucket_mb")
        require(
            self.port is None or self.port < 65_000,
            f"distribute.port is {self.port}; expected a value below 65000",
        )

    @property
    def bucket_bytes(self) -> int:
        """Bytes of a bucket."""
        return round(self.bucket_mb * 1e6)
