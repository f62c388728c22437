"""The section `precision`."""

from dataclasses import dataclass
from typing import Literal

from distcnn.config.sections.bounds import require_at_least, require_at_most


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """Precision, XLA and threads."""

    policy: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = "auto"
    """Keras dtype policy; variables stay float32. auto: the fastest on this hardware."""
    xla: Literal["auto", "on", "off"] = "auto"
    """Compile the training step with XLA. auto: on for GPUs, off for CPUs, where it is many times
    slower."""
    tf32: bool = True
    """Allow TensorFloat-32 in float32 matrix products and convolutions on recent GPUs."""
    deterministic: bool = False
    """Use only deterministic kernels: repeated runs on GPUs are bit-identical, but slower."""
    threads: int | None = None
    """Threads per operation. Default: one per core; 1 with train.virtual_workers, since sums may be
    added in another order with another number of threads."""

    def __post_init__(self) -> None:
        """Validates the number of threads."""
        require_at_most("precision", self, 1024, "threads")
        require_at_least("precision", self, 1, "threads")
