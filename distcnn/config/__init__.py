"""What a run is asked to be: the schema of its keys, and recipes."""

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
    "TrainConfig",
]
