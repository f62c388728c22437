"""Run configuration: its schema and the built-in recipes."""

from distcnn.config.schema import (
    AUGMENT_PRESETS,
    AugmentConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    DistributeConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    PrecisionConfig,
    TrainConfig,
)
from distcnn.config.script import ScriptConfig

__all__ = [
    "AUGMENT_PRESETS",
    "AugmentConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DistributeConfig",
    "LoggingConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PrecisionConfig",
    "ScriptConfig",
    "TrainConfig",
]
