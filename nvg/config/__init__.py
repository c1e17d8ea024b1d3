"""Typed configuration: the dials (schema), how they are read (loading), what they must fulfil (checks)."""

from nvg.config.checks import validate
from nvg.config.loading import digest, from_dict, load, merged, read, serve_config, to_dict, to_yaml
from nvg.config.schema import (
    DERIVED,
    REQUIRED,
    ClusterConfig,
    Config,
    ContentConfig,
    DataConfig,
    DistillConfig,
    EvaluateConfig,
    RepaConfig,
    SamplerConfig,
    ServeConfig,
    StructureConfig,
    TokenizerConfig,
    TokenizerTrainConfig,
    TrackingConfig,
    TrainConfig,
    trainings,
)
from nvg.errors import ConfigError

__all__ = [
    "ClusterConfig",
    "Config",
    "ConfigError",
    "ContentConfig",
    "DERIVED",
    "DataConfig",
    "DistillConfig",
    "EvaluateConfig",
    "REQUIRED",
    "RepaConfig",
    "SamplerConfig",
    "ServeConfig",
    "StructureConfig",
    "TokenizerConfig",
    "TokenizerTrainConfig",
    "TrackingConfig",
    "TrainConfig",
    "digest",
    "from_dict",
    "load",
    "merged",
    "read",
    "serve_config",
    "to_dict",
    "to_yaml",
    "trainings",
    "validate",
]
