"""What limits the speed of a training step, in words, and which flag to change."""

from distcnn.config import Config

_NOTABLE = 0.1
"""From this fraction of the step time on, input or communication is worth tuning."""

_SHORT_MS = 10.0
"""Shorter steps spend as much time in Python as in TensorFlow."""


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
        config: Configuration of the measured run.
        fractions: `input_share`, `compute_share`, `imbalance_share` and `communication_share`:
            fractions of the step time, in [0, 1].
        step_ms: Lower quartile of the step time in milliseconds.
        precision: Resolved dtype policy.
        oversubscribed: Whether workers shared a core or a GPU.
        fast_path: Whether the model was computed in its fast form.
        transport: What carried the gradients.
        fastest_policy: The dtype policy that is fastest on this hardware.
    """
    if oversubscribed:
        return "the workers share cores or GPUs and wait for each other; start fewer"
    input_fraction = fractions["input_share"]
    communication_fraction = fractions["communication_share"]
    if input_fraction >= max(_NOTABLE, communication_fraction):
        return f"input-bound ({input_fraction:.0%}): {_speed_up_input(config)}"
    if communication_fraction >= _NOTABLE:
        remedy = _reduce_communication(config, transport, precision)
        return f"communication-bound ({communication_fraction:.0%}): {remedy}"
    if fractions["imbalance_share"] >= _NOTABLE:
        return (
            f"unbalanced ({fractions['imbalance_share']:.0%}): all wait for a slower worker; find "
            "out what else its machine does, or leave it out"
        )
    faster_policy = None if precision == fastest_policy else fastest_policy
    remedy = _speed_up_computation(config, step_ms, fast_path, faster_policy)
    return f"compute-bound ({fractions['compute_share']:.0%}): {remedy}"


def _speed_up_input(config: Config) -> str:
    if config.data.checks_when_reading:
        return (
            "images are decoded in every epoch: give the workers more cores, store smaller images, "
            "or keep their files in memory with --data.cache memory"
        )
    if config.data.cache in ("none", "disk"):
        return "keep the decoded images in memory with --data.cache memory"
    if config.data.augment.randaugment:
        return "RandAugment costs most: lower --data.augment.randaugment, or use only crop and flip"
    return "augment less (--data.augment flip,crop), or give the workers more cores"


def _reduce_communication(config: Config, transport: str, precision: str) -> str:
    if config.distribute.sync_batchnorm:
        return "synchronised statistics reduce in every layer: --distribute.sync_batchnorm false"
    # bfloat16 gradients travel in two bytes as they are.
    in_two_bytes = config.distribute.compression != "none" or precision == "mixed_bfloat16"
    if in_two_bytes or transport != "Horovod":
        return "reduce less often with a larger --train.batch_size"
    if config.train.accumulation_steps == 1:
        return "reduce less often with a larger --train.batch_size or --train.accumulation_steps 2"
    return "send half the bytes with --distribute.compression fp16"


def _speed_up_computation(
    config: Config, step_ms: float, fast_path: bool, faster_policy: str | None
) -> str:
    if step_ms < _SHORT_MS and config.train.steps_per_execution == 1:
        return "steps are short, so call TensorFlow less often with --train.steps_per_execution 10"
    if faster_policy is not None:
        return f"try --precision.policy {faster_policy}"
    if not fast_path:
        return "try --train.fast_path on"
    return "already well tuned; only more workers would help"
