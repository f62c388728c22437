"""Named configurations, most of whose weights must not depend on the number of workers."""

from pathlib import Path
from typing import Any

from distcnn.config import Config
from tests.runs import small_config

COMMON: dict[str, Any] = {
    "model__factory": "tests.tiny:plain",
    "train__global_batch_size": 48,
    "train__epochs": 4,  # of 5 steps, the last one of 15 images
    "optimizer__lr": 0.01,
    "distribute__bucket_mb": 0.001,  # small models would fill one bucket only
}

ANY_WORKERS = (
    *("adam", "sgd", "accumulation", "sync_batchnorm", "sync_empty", "uneven", "grouped"),
    *("float16", "bfloat16", "lars", "xla", "xla_sync", "compiled", "own_step", "phases"),
    *("factors", "bfloat16_factors", "bfloat16_pointwise"),
)
"""The cases whose weights are the same for one worker and for several."""

_FACTORS: dict[str, Any] = {
    "model__factory": "tests.tiny:wide",
    "train__global_batch_size": 41,
    "optimizer__name": "sgd",
}

# Of 1 x 1 convolutions, whose gradients are products.
_POINTWISE: dict[str, Any] = {
    "model__factory": "tests.tiny:pointwise",
    "precision__policy": "mixed_bfloat16",
}

CASES: dict[str, dict[str, Any]] = {
    "adam": {},
    "sgd": {"optimizer__name": "sgd", "optimizer__lr": 0.05, "optimizer__clip_norm": 0.5},
    "accumulation": {"train__accumulation_steps": 2},
    "sync_batchnorm": {
        "model__factory": "tests.tiny:tiny",
        "model__args": {"dropout": 0.0},
        "distribute__sync_batchnorm": True,
        "optimizer__name": "sgd",
    },
    # Batches of 41 images, the last one of 2: two of its four shards are empty. The activation is
    # smooth, since normalising a single image puts many units at the kink of a relu.
    "sync_empty": {
        "model__factory": "tests.tiny:tiny",
        "model__args": {"dropout": 0.0, "activation": "tanh", "norms": 2},
        "distribute__sync_batchnorm": True,
        "train__global_batch_size": 41,
        "train__accumulation_steps": 2,
        "optimizer__name": "sgd",
    },
    "batchnorm": {
        "model__factory": "tests.tiny:tiny",
        "model__args": {"dropout": 0.5},
        "optimizer__name": "sgd",
    },
    # 207 images in batches of 103: the last step of an epoch has a single image.
    "uneven": {"train__global_batch_size": 103, "train__epochs": 7, "data__augment__mixup": 0.2},
    "grouped": {"train__steps_per_execution": 3, "optimizer__ema": 0.9},
    "float16": {
        "precision__policy": "mixed_float16",
        "optimizer__name": "sgd",
        "optimizer__lr": 0.0002,
    },
    "bfloat16": {"precision__policy": "mixed_bfloat16", "optimizer__name": "sgd"},
    "xla": {"precision__xla": "on", "train__epochs": 5},
    "xla_sync": {
        "model__factory": "tests.tiny:tiny",
        "model__args": {"dropout": 0.0, "activation": "tanh", "norms": 2},
        "distribute__sync_batchnorm": True,
        "precision__xla": "on",
        "train__global_batch_size": 41,
        "train__accumulation_steps": 2,
        "optimizer__name": "sgd",
    },
    # Models that their owner has compiled; an own train_step divides no batch any further.
    "compiled": {"model__factory": "tests.tiny:compiled", "train__accumulation_steps": 2},
    "own_step": {"model__factory": "tests.tiny:own_step", "train__steps_per_execution": 2},
    # First the last two of three layers, then all, each with a rate and a warm-up of its own.
    "phases": {
        "model__factory": "tests.tiny:tiny",
        "model__args": {"dropout": 0.0, "activation": "tanh", "norms": 2},
        "distribute__sync_batchnorm": True,
        "train__phases": [
            {"train": "last 2", "epochs": 2, "learning_rate": 0.01},
            {"train": "all", "epochs": 2},
        ],
        "optimizer__name": "sgd",
        "optimizer__schedule": "cosine",
        "optimizer__warmup_epochs": 0.5,
        "optimizer__layer_decay": 0.7,
        "optimizer__weight_decay": 0.01,
        "optimizer__ema": 0.9,
    },
    # A gradient that travels as the rows whose product it is: of 41 images, and of 2.
    "factors": _FACTORS,
    "bfloat16_factors": _FACTORS | {"precision__policy": "mixed_bfloat16", "optimizer__lr": 0.002},
    "bfloat16_pointwise": _POINTWISE
    | {"train__accumulation_steps": 2, "optimizer__name": "sgd", "optimizer__lr": 0.05},
    "lars": {"optimizer__name": "lars", "optimizer__lr": 1.0, "optimizer__weight_decay": 1e-4},
}


_VIRTUAL: dict[str, Any] = {
    "train__virtual_workers": 4,
    "model__factory": "tests.tiny:tiny",
    "model__args": {"dropout": 0.5, "norms": 2},
    "data__augment__mixup": 0.2,
    "optimizer__ema": 0.9,
}

CASES |= {
    # Batches of 41 images, the last one of 2, which are mixed: three of its four shards are empty.
    "virtual": _VIRTUAL | {"train__global_batch_size": 41},
    # The mean over 12 shards is rounded, and their tree is not symmetric.
    "virtual_uneven": _VIRTUAL
    | {
        "train__virtual_workers": 12,
        "train__global_batch_size": 103,
        "train__phases": [{"train": "last 2", "epochs": 2}, {"epochs": 2}],
    },
    "virtual_bfloat16": _VIRTUAL
    | {
        "model__factory": None,
        "model__args": {},
        "precision__policy": "mixed_bfloat16",
        "data__synthetic_examples": 110,
        "train__global_batch_size": 32,
        "optimizer__lr": 0.001,
        "train__epochs": 5,  # of 4 steps
    },
    "virtual_float16": _VIRTUAL | {"precision__policy": "mixed_float16"},
    "virtual_pointwise": _VIRTUAL | _POINTWISE | {"model__args": {"dropout": 0.5}},
    "not_virtual": _VIRTUAL | {"train__virtual_workers": None},
}

CASES |= {
    "labels": {"data__validation_split": 0.2, "train__epochs": 8},
    "numbers": {"data__validation_split": 0.2, "optimizer__lr": 0.003, "train__epochs": 12},
}
"""Labels of a file, which the plan names by data__labels: several for each image, and numbers."""

CASES["balanced"] = {"data__class_weights": "balanced", "data__oversample": "balanced"}

VIRTUAL = tuple(name for name in CASES if name.startswith("virtual"))
"""The cases whose weights are the same to the last bit."""


def case_config(name: str, out: Path, **overrides: Any) -> Config:
    """Returns the configuration of a case."""
    return small_config(out, **COMMON | CASES[name] | overrides)
