"""A run's settings: dataclasses, read from YAML files and the command line, checked before anything heavy is imported.

``load(["--config", "configs/convnext_base.yaml", "--optim.lr", "1e-4"])`` gives a :class:`Config`. Every setting exists
once, in ``sections.py`` or ``augment.py``, with its meaning; ``dump`` writes the resolved form beside every result.
"""

from brain_dist.config.augment import AugmentConfig
from brain_dist.config.config import Config
from brain_dist.config.parse import dump, load, parser, read, to_dict
from brain_dist.config.sections import (
    Balance,
    DataConfig,
    Metric,
    ModelConfig,
    OptimConfig,
    Precision,
    RunConfig,
    TrackConfig,
    TrainConfig,
)

__all__ = [
    "AugmentConfig",
    "Balance",
    "Config",
    "DataConfig",
    "Metric",
    "ModelConfig",
    "OptimConfig",
    "Precision",
    "RunConfig",
    "TrackConfig",
    "TrainConfig",
    "dump",
    "load",
    "parser",
    "read",
    "to_dict",
]
