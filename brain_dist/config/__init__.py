"""The settings of a run: dataclasses, read from YAML files and the command line and checked.

``load(["--config", "configs/convnext_base.yaml", "--optim.lr", "1e-4"])`` returns a :class:`Config`. Each setting is a
field of a dataclass in ``sections.py`` or ``augmentation.py``, with its range in the annotation and its meaning in the
docstring; ``reference.py`` makes ``docs/configuration.md`` from them. Nothing heavy is imported before all settings are
checked.
"""

from brain_dist.config.augmentation import AugmentConfig
from brain_dist.config.config import Config
from brain_dist.config.parse import dump, load, read, read_sections, to_dict
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
    "AugmentConfig", "Balance", "Config", "DataConfig", "Metric", "ModelConfig", "OptimConfig", "Precision",
    "RunConfig", "TrackConfig", "TrainConfig", "dump", "load", "read", "read_sections", "to_dict",
]  # fmt: skip
