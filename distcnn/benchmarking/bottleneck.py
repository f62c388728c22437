"""Says in words why a training step takes the time that it takes, and what to change."""

from distcnn.config import Config

_NOTABLE = 0.1
"""Share of a step from which on input or communication is worth a change."""

_SHORT_MS = 10.0
"""Steps below this are as much Python's as TensorFlow's."""


def verdict(
    config: Config,
    shares: dict[str, float],
    *,
    step_ms: float,
    precision: str,
    oversubscribed: bool,
    fast_path: bool,
    carrier: str,
    fastest_policy: str,
) -> str:
    """Names the largest avoidable cost and the flag that lowers it.

    Args:
        config: What was run.
        shares: `input_share`, `compute_share` and `communication_share` of the step.
        step_ms: Lower quartile of the step's time.
        precision: Resolved dtype policy.
        oversubscribed: Whether workers shared a core or a GPU.
        fast_path: Whether the model's fast form was computed.
        carrier: What carried the gradients.
        fastest_policy: What this hardware does fastest.
    """
    if oversubscribed:
        return "sharing cores or GPUs, the workers wait for each other; start fewer"
    fed, told = shares["input_share"], shares["communication_share"]
    if fed >= max(_NOTABLE, told):
        return f"bound by input ({fed:.0%}): {_feed_faster(config)}"
    if told >= _NOTABLE:
        return f"bound by communication ({told:.0%}): {_reduce_less(config, carrier)}"
    return f"bound by computing ({shares['compute_share']:.0%}): " + _compute_less(
        config, step_ms, fast_path, None if precision == fastest_policy else fastest_policy
    )


def _feed_faster(config: Config) -> str:
    if config.data.cache in ("none", "disk"):
        return "keep the decoded images in memory with --data.cache memory"
    if config.data.augment.randaugment:
        return "RandAugment costs most: lower --data.augment.randaugment, or use crop and flip"
    return "augment less (--data.augment flip,crop), or give the workers more cores"


def _reduce_less(config: Config, carrier: str) -> str:
    if config.distribute.sync_batchnorm:
        return "synchronised normalisation reduces in each layer: --distribute.sync_batchnorm false"
    compressed = config.distribute.compression != "none"
    if compressed or carrier != "Horovod":
        return "reduce less often with a larger --train.batch_size"
    if config.train.accumulation_steps == 1:
        return "reduce less often with a larger --train.batch_size or --train.accumulation_steps 2"
    return "send half the bytes with --distribute.compression fp16"


def _compute_less(config: Config, step_ms: float, fast_path: bool, policy: str | None) -> str:
    if step_ms < _SHORT_MS and config.train.steps_per_execution == 1:
        return "steps are short, so call TensorFlow less often with --train.steps_per_execution 10"
    if policy is not None:
        return f"try --precision.policy {policy}"
    if not fast_path:
        return "try --train.fast_path on"
    return "as it should be; more workers are what is left"
