"""The log lines at the start and the end of a run, and `summary.json`."""

import hashlib
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distcnn.runtime.text import decimals, printable
from distcnn.storage.checkpoint import Progress
from distcnn.storage.metrics_file import MEASUREMENTS

log = logging.getLogger("distcnn")

_FROM_RESOLVED = (
    "strategy",
    "world_size",
    "precision",
    "xla",
    "fast_path",
    "pixels",
    "task",
    "output",
    "parameters",
    "global_batch_size",
    "learning_rate",
)
_FROM_LAST_ROW = ("loss", "accuracy", "val_loss", "val_accuracy")


def _describe_images(resolved: dict[str, Any]) -> str:
    training, test = resolved["training_images"], resolved["test_images"]
    counts = f"{resolved['data']}: {training} training"
    if resolved["validated_on_test"]:
        return f"{counts}, {test} test, which serve as validation images too"
    return f"{counts}, {resolved['validation_images']} validation, {test} test"


def log_resolved(path: Path, resolved: dict[str, Any]) -> None:
    """Logs the resolved settings and the reasons for them.

    Args:
        path: The run directory.
        resolved: The resolved settings, from `TrainingSetup.resolved`.
    """
    log.info("run directory   %s", path)
    log.info("model           %s, %s parameters", resolved["model"], f"{resolved['parameters']:,}")
    log.info("images          %s", _describe_images(resolved))
    if resolved["labels"]:
        log.info("labels          %s", resolved["labels"])
    if resolved["division"]:
        log.info("split           %s", resolved["division"])
    if resolved["class_weights"]:
        log.info("class weights   %s", _describe_weights(resolved))
    log.info("pixels          %(pixels)s (%(pixels_reason)s)", resolved)
    log.info("output          %(output)s (%(output_reason)s)", resolved)
    log.info("strategy        %s", _describe_strategy(resolved))
    log.info("precision       %(precision)s (%(precision_reason)s)", resolved)
    log.info("xla             %s (%s)", "on" if resolved["xla"] else "off", resolved["xla_reason"])
    fast = "on" if resolved["fast_path"] else "off"
    log.info("fast path       %s (%s)", fast, resolved["fast_path_reason"])
    log.info(
        "batch           %s, %d steps an epoch",
        _describe_batch(resolved),
        resolved["steps_per_epoch"],
    )
    if resolved["phases"]:
        for phase in resolved["phases"]:
            log.info("phase           %s", phase)
    else:
        log.info("learning rate   %(base_learning_rate)g -> %(learning_rate)g", resolved)


def _describe_weights(resolved: dict[str, Any]) -> str:
    pairs = list(zip(resolved["classes"], resolved["class_weights"], strict=True))
    shown = ", ".join(f"{printable(name)} {weight:.3g}" for name, weight in pairs[:10])
    return shown + (", ..." if len(pairs) > 10 else "")


def _describe_strategy(resolved: dict[str, Any]) -> str:
    name = f"{resolved['strategy']} on {resolved['device']} ({resolved['strategy_reason']})"
    workers, hosts = resolved["world_size"], resolved["hosts"]
    if workers == 1:
        return name
    places = ", ".join(hosts[:4]) + (", ..." if len(hosts) > 4 else "")
    return f"{name}: {workers} workers on {places}, gradients by {resolved['transport']}"


def _describe_batch(resolved: dict[str, Any]) -> str:
    total, workers = resolved["global_batch_size"], resolved["world_size"]
    shards = resolved["virtual_workers"]
    if shards is not None:
        return f"{shards} shards x {total / shards:g} = {total}"
    parts = [f"{resolved['per_worker_batch_size']:g}"]
    if resolved["accumulation_steps"] > 1:
        parts.insert(0, f"{resolved['accumulation_steps']} accumulated")
    if workers > 1:
        parts.insert(0, f"{workers} workers")
    return " x ".join(parts) + (f" = {total}" if len(parts) > 1 else "")


def make_summary(
    recipe: str,
    resolved: dict[str, Any],
    progress: Progress,
    rows: list[dict[str, Any]],
    weights: Sequence[Any],
    *,
    saved_epoch: int,
) -> dict[str, Any]:
    """Returns the content of `summary.json`, except test results and the check of the weights.

    Args:
        recipe: Name of the recipe.
        resolved: The resolved settings, from `TrainingSetup.resolved`.
        progress: The progress of the run at its end.
        rows: All rows of `metrics.jsonl`.
        weights: Weights of the classifier that is saved.
        saved_epoch: Epoch (counted from 1) of its weights.
    """
    last: dict[str, Any] = next(
        (row for row in reversed(rows) if row["epoch"] == saved_epoch and "val_loss" in row), {}
    )
    seconds = progress.train_seconds
    return {
        "recipe": recipe,
        **{key: resolved[key] for key in _FROM_RESOLVED},
        "epochs": math.ceil(progress.step / resolved["steps_per_epoch"]),
        "saved_epoch": saved_epoch,
        "steps": progress.step,
        "train_seconds": seconds,
        "images_per_second": progress.images / seconds if seconds else None,
        **{key: last.get(key) for key in _FROM_LAST_ROW},
        **{key: value for key, value in last.items() if key not in MEASUREMENTS},
        "weights_sha256": hash_weights(weights),
    }


def log_summary(path: Path, summary: dict[str, Any]) -> None:
    """Logs the result of a run.

    Args:
        path: The run directory.
        summary: Content of its `summary.json`.
    """
    names = ("accuracy", "mAP", "f1", "mse", "mae")
    for key in (f"{split}_{name}" for split in ("val", "test") for name in names):
        if summary.get(key) is not None:
            log.info("%-15s %s", key.replace("_", " "), decimals(summary[key]))
    log.info("%-15s %.1f s", "training time", summary["train_seconds"])
    log.info("%-15s %s", "saved", path / "model.keras")


def hash_weights(weights: Sequence[Any]) -> str:
    """Returns the SHA-256 of the float32 bytes of all weights, in order."""
    digest = hashlib.sha256()
    for weight in weights:
        digest.update(np.asarray(weight, np.float32).tobytes())
    return digest.hexdigest()
