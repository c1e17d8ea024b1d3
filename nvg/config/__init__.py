"""Typed configuration: the dials (schema), how they are read (loading), what they must fulfil (checks)."""

from nvg.config.checks import validate
from nvg.config.fields import REQUIRED, SEEDS, operational, range_of
from nvg.config.given import GivenStructure, read_given
from nvg.config.loading import digest, from_dict, load, merged, read, read_file, serve_config, to_dict, to_yaml
from nvg.config.paths import with_home
from nvg.config.remarks import long_warmup, remarks
from nvg.config.schema import (
    DERIVED,
    ClusterConfig,
    Config,
    ContentConfig,
    DataConfig,
    DistillConfig,
    EvaluateConfig,
    GeneratorTrainingConfig,
    RepaConfig,
    SamplerConfig,
    ServeConfig,
    StructureConfig,
    TokenizerConfig,
    TokenizerTrainConfig,
    TrackingConfig,
    TrainConfig,
    TrainingConfig,
    operational_settings,
    trainings,
    without_operational,
)
from nvg.config.text import parse
from nvg.errors import ConfigError

__all__ = [
    "DERIVED",
    "REQUIRED",
    "SEEDS",
    "ClusterConfig",
    "Config",
    "ConfigError",
    "ContentConfig",
    "DataConfig",
    "DistillConfig",
    "EvaluateConfig",
    "GeneratorTrainingConfig",
    "GivenStructure",
    "RepaConfig",
    "SamplerConfig",
    "ServeConfig",
    "StructureConfig",
    "TokenizerConfig",
    "TokenizerTrainConfig",
    "TrackingConfig",
    "TrainConfig",
    "TrainingConfig",
    "digest",
    "from_dict",
    "load",
    "long_warmup",
    "merged",
    "operational",
    "operational_settings",
    "parse",
    "range_of",
    "read",
    "read_file",
    "read_given",
    "remarks",
    "serve_config",
    "to_dict",
    "to_yaml",
    "trainings",
    "validate",
    "with_home",
    "without_operational",
]
