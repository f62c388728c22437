"""Optimizers and schedules by name. To add one, write its function and register it here."""

from typing import Any

OPTIMIZERS: dict[str, Any] = {
    "adam": "distcnn.optim.optimizers:adam",
    "adamw": "distcnn.optim.optimizers:adamw",
    "sgd": "distcnn.optim.optimizers:sgd",
    "lars": "distcnn.optim.optimizers:lars",
    "lamb": "distcnn.optim.optimizers:lamb",
}
"""Functions of `(config, common)` that return a Keras optimizer, or their import paths. `common`
holds the keyword arguments shared by all optimizers: learning rate and clipping."""

SCHEDULES: dict[str, Any] = {
    "constant": "distcnn.optim.schedules:constant",
    "cosine": "distcnn.optim.schedules:cosine",
    "one_cycle": "distcnn.optim.schedules:cosine",
    "step": "distcnn.optim.schedules:step_decay",
}
"""Functions of `(config, step, span)` that return the factor on the peak learning rate after the
warm-up, or their import paths."""
