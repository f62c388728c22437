"""Says in words why a training step takes the time that it takes, and what to change."""

from distcnn.config import Config

_NOTABLE = 0.1
"""Share of a step from which on input or communication is worth a change."""

_SHORT_MS = 10.0
"""Steps below this are as much Python's as TensorFlow's."""


def describe_bottleneck(
    config: Config,
    fractions: dict[str, float],
    *,
    step_ms: float,
    precision: str,
    oversubscribed: bool,
    fast_path: bool,
    transport: str,
    fastest_policy: str,
) -> str:
    """Names the largest avoidable cost and the flag that lowers it.

    Args:
        config: What was run.
        fractions: `input_share`, `compute_share` and `communication_share` of the step.
        step_ms: Lower quartile of the step's time.
        precision: Resolved dtype policy.
        oversubscribed: Whether workers shared a core or a GPU.
        fast_path: Whether the model's fast form was computed.
        transport: What carried the gradients.
        fastest_policy: What this hardware does fastest.
    """
    if oversubscribed:
        return "sharing cores or GPUs, the workers wait for each other; start fewer"
    input_fraction, communication_fraction = (
        fractions["input_share"],
        fractions["communication_share"],
    )
    if input_fraction >= max(_NOTABLE, communication_fraction):
        return f"bound by input ({input_fraction:.0%}): {_speed_up_input(config)}"
    if communication_fraction >= _NOTABLE:
        remedy = _reduce_communication(config, transport)
        return f"bound by communication ({communication_fraction:.0%}): {remedy}"
    return f"bound by computing ({fractions['compute_share']:.0%}): " + _speed_up_computation(
        config, step_ms, fast_path, None if precision == fastest_policy else fastest_policy
    )


def _speed_up_input(config: Config) -> str:
    if config.data.cache in ("none", "disk"):
        return "keep the decoded images in memory with --data.cache memory"
    if config.data.augment.randaugment:
        return "RandAugment costs most: lower --data.augment.randaugment, or use crop and flip"
    return "augment less (--data.augment flip,crop), or give the workers more cores"


def _reduce_communication(config: Config, transport: str) -> str:
    if config.distribute.sync_batchnorm:
        return "synchronised normalisation reduces in each layer: --distribute.sync_batchnorm false"
    compressed = config.distribute.compression != "none"
    if compressed or transport != "Horovod":
        return "reduce less often with a larger --train.batch_size"
    if config.train.accumulation_steps == 1:
        return "reduce less often with a larger --train.batch_size or --train.accumulation_steps 2"
    return "send half the bytes with --distribute.compression fp16"


def _speed_up_computation(
    config: Config, step_ms: float, fast_path: bool, policy: str | None
) -> str:
    if step_ms < _SHORT_MS and config.train.steps_per_execution == 1:
        return "steps are short, so call TensorFlow less often with --train.steps_per_execution 10"
    if policy is not None:
        return f"try --precision.policy {policy}"
    if not fast_path:
        return "try --train.fast_path on"
    return "as it should be; more workers are what is left"
