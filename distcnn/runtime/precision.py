"""Precision, XLA and threads: resolves `auto` for the hardware and applies the settings."""

from dataclasses import dataclass
from pathlib import Path

import keras
import tensorflow as tf

from distcnn.config import PrecisionConfig, TrainConfig
from distcnn.errors import DistcnnError


@dataclass(frozen=True)
class Hardware:
    """The hardware properties that the choice of precision depends on.

    Attributes:
        gpu: Name of the GPU, or None without one.
        compute_capability: CUDA compute capability of that GPU, or None.
        cpu_flags: Instruction set extensions of the CPU.
    """

    gpu: str | None
    compute_capability: tuple[int, int] | None
    cpu_flags: frozenset[str]


@dataclass(frozen=True)
class Precision:
    """The resolved settings, each with its reason.

    Attributes:
        policy: Name of the Keras dtype policy.
        policy_reason: Why this policy was chosen.
        xla: Whether the step is compiled with XLA.
        xla_reason: Why XLA is on or off.
    """

    policy: str
    policy_reason: str
    xla: bool
    xla_reason: str


def find_hardware() -> Hardware:
    """Detects the GPU, if any, and the CPU of this process."""
    gpus = tf.config.list_physical_devices("GPU")
    details = tf.config.experimental.get_device_details(gpus[0]) if gpus else {}
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "")
    return Hardware(
        gpu=details.get("device_name", "GPU") if gpus else None,
        compute_capability=details.get("compute_capability"),
        cpu_flags=frozenset(flags.split()),
    )


def resolve_precision(config: PrecisionConfig, hardware: Hardware) -> Precision:
    """Chooses the policy and XLA for the hardware; a pure function.

    bfloat16 needs hardware support (compute capability 8.0 and up on NVIDIA GPUs; on CPUs Intel's
    AMX, or the dot products of AVX-512, with which a step of the article's network took 0.63 times
    as long as in float32); float16 needs tensor cores (7.0 and up) and loss scaling.
    """
    policy: str = config.policy
    policy_reason = "set in the configuration"
    if config.policy == "auto":
        policy, policy_reason = _fastest_policy(hardware)
    xla, xla_reason = config.xla == "on", "set in the configuration"
    if config.xla == "auto":
        xla = hardware.gpu is not None
        xla_reason = "a GPU gains from fusion" if xla else "XLA is many times slower on a CPU"
    return Precision(policy, policy_reason, xla, xla_reason)


def resolve_fast_path(config: TrainConfig, *, xla: bool) -> tuple[bool, str]:
    """Returns whether to run the fast form of the model, and the reason."""
    if config.fast_path != "auto":
        return config.fast_path == "on", "set in the configuration"
    return not xla, "XLA fuses the step" if xla else "fewer passes over memory; XLA is off"


def apply_precision(
    config: PrecisionConfig, precision: Precision, threads: int | None = None
) -> None:
    """Applies Keras' dtype policy and TensorFlow's numeric and thread options to this process.

    Args:
        config: The configured options.
        precision: The resolved options.
        threads: Threads within one operation, if the configuration does not set them.

    Raises:
        DistcnnError: If `config.threads` differs from what a running TensorFlow already uses.
    """
    keras.config.set_dtype_policy(precision.policy)
    tf.config.experimental.enable_tensor_float_32_execution(config.tf32)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    try:
        if config.threads or threads:
            tf.config.threading.set_intra_op_parallelism_threads(config.threads or threads)
    except RuntimeError:
        if config.threads is None:
            return
        raise DistcnnError(
            f"precision.threads is {config.threads}, but TensorFlow already runs in this process; "
            "create the Trainer before anything else uses TensorFlow"
        ) from None


def _fastest_policy(hardware: Hardware) -> tuple[str, str]:
    if hardware.gpu is not None:
        capability = hardware.compute_capability or (0, 0)
        name = f"{hardware.gpu} has compute capability {capability[0]}.{capability[1]}"
        if capability >= (8, 0):
            return "mixed_bfloat16", f"{name}, with bfloat16 tensor cores"
        if capability >= (7, 0):
            return "mixed_float16", f"{name}, with float16 tensor cores"
        return "float32", f"{name}, without tensor cores"
    if "amx_bf16" in hardware.cpu_flags:
        return "mixed_bfloat16", "the CPU has bfloat16 matrix units (AMX)"
    if "avx512_bf16" in hardware.cpu_flags:
        return "mixed_bfloat16", "the CPU has bfloat16 dot products (AVX-512)"
    return "float32", "the CPU has no instructions for bfloat16"
