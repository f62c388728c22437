"""Trains Keras 3 models on anything from a laptop to a cluster.

From Python:

    import distcnn

    config = distcnn.load_config("quickstart", train={"epochs": 3}, out="runs/mine")
    summary = distcnn.Trainer(config).fit()
    distcnn.evaluate("runs/mine").accuracy
    distcnn.predict("runs/mine", ["cat.jpg"])[0].top(3)

TensorFlow is imported when it is first needed, not by `import distcnn`.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

from distcnn.config import (
    AugmentConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    DistributeConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    PrecisionConfig,
    ScriptConfig,
    ScriptPrecisionConfig,
    TrainConfig,
)
from distcnn.errors import DataError, DistcnnError, UsageError
from distcnn.version import __version__

if TYPE_CHECKING:
    from distcnn.cli.parser import load_config
    from distcnn.inference.evaluation import Evaluation, evaluate
    from distcnn.inference.prediction import Prediction, predict
    from distcnn.scripting.session import Session, session
    from distcnn.training.trainer import Trainer

__all__ = [
    "AugmentConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DataError",
    "DistcnnError",
    "DistributeConfig",
    "Evaluation",
    "LoggingConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PrecisionConfig",
    "Prediction",
    "ScriptConfig",
    "ScriptPrecisionConfig",
    "Session",
    "TrainConfig",
    "Trainer",
    "UsageError",
    "__version__",
    "evaluate",
    "load_config",
    "predict",
    "session",
]


_LAZY = {
    "load_config": "distcnn.cli.parser",
    "Trainer": "distcnn.training.trainer",
    "Evaluation": "distcnn.inference.evaluation",
    "evaluate": "distcnn.inference.evaluation",
    "Prediction": "distcnn.inference.prediction",
    "predict": "distcnn.inference.prediction",
    "Session": "distcnn.scripting.session",
    "session": "distcnn.scripting.session",
}
"""Names that are imported when they are first used, as they take long: all but the first need
TensorFlow."""


class _Package(types.ModuleType):
    """This package; `evaluate` and `predict` are its functions, not the commands of these names.

    Importing a submodule sets it as an attribute of its package. `python -m distcnn.evaluate` and
    `from distcnn.evaluate import main` find the commands all the same.
    """

    def __getattr__(self, name: str) -> Any:
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name != "load_config":
            from distcnn.cli.startup import import_tensorflow

            import_tensorflow()
        return getattr(importlib.import_module(_LAZY[name]), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _LAZY and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_LAZY})


sys.modules[__name__].__class__ = _Package
