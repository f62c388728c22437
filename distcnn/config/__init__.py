"""Run configuration: its schema and the built-in recipes."""

from distcnn.config.schema import Config
from distcnn.config.script import ScriptConfig, ScriptPrecisionConfig
from distcnn.config.sections.augment import AUGMENT_PRESETS, AugmentConfig
from distcnn.config.sections.checkpoint import CheckpointConfig
from distcnn.config.sections.data import DataConfig
from distcnn.config.sections.distribute import DistributeConfig
from distcnn.config.sections.logging import LoggingConfig
from distcnn.config.sections.model import ModelConfig
from distcnn.config.sections.optimizer import OptimizerConfig
from distcnn.config.sections.precision import PrecisionConfig
from distcnn.config.sections.train import TrainConfig

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
    "ScriptPrecisionConfig",
    "TrainConfig",
]
