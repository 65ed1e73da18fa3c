"""A trained run opened for use: its configuration, its network at a checkpoint, and the shards to show it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from brain_dist.errors import Fault, UserError

if TYPE_CHECKING:
    import torch

    from brain_dist.config import Config, DataConfig
    from brain_dist.ranks.world import World
    from brain_dist.store.dataset import Dataset
    from brain_dist.stream.batch import Batch
    from brain_dist.stream.normalize import Normalize


NO_TUMOUR, TUMOUR = "notumor", "tumor"  # the classes of shards that do not tell tumours apart


@dataclass(frozen=True)
class LoadedRun:
    """A trained network with all that is needed to show it images.

    Attributes:
        path: the run's folder.
        config: the run's configuration, with the shards that are evaluated.
        dataset: the opened shards.
        model: the network in evaluation mode, fp32.
        normalize: turns loaded uint8 images into the network's input.
        step: optimiser steps that the weights have seen.
        device: where the model is.
        trained_on: classes that the network was trained on. Where the shards know only tumour or none, ``model`` gives
            the logs of those two probabilities: it has added up the others.
    """

    path: Path
    config: Config
    dataset: Dataset
    model: torch.nn.Module
    normalize: Normalize
    step: int
    device: torch.device
    trained_on: tuple[str, ...]

    def batches(self, rows: np.ndarray, *, micro_batch: int, world: World) -> Iterator[Batch]:
        """This rank's share of ``rows``, unaugmented."""
        from brain_dist.stream.batches import evaluation_batches

        return evaluation_batches(
            self.config.data, self.dataset, rows, micro_batch=micro_batch, device=self.device,
            rank=world.rank, world_size=world.size,
        )  # fmt: skip

    def images(self, rows: Sequence[int]) -> torch.Tensor:
        """The network's input [B, C, H, W] for these rows, exactly as in evaluation."""
        import torch

        from brain_dist.ranks.world import discover

        alone = discover({})
        wanted = np.asarray(rows, dtype=np.int64)
        made = [
            self.normalize(b.image)[b.valid]
            for b in self.batches(wanted, micro_batch=min(32, len(wanted)), world=alone)
        ]
        return torch.cat(made)

    def display(self, images: torch.Tensor) -> np.ndarray:
        """Undo the normalisation: uint8 [B, H, W]."""
        return self.normalize.to_gray(images)


def load_run(
    path: str | Path,
    *,
    step: int | str | None = None,
    shards: str | None = None,
    device: str = "cpu",
    weights: str = "auto",
) -> LoadedRun:
    """Open a run's network at a checkpoint.

    Args:
        path: the run's folder.
        step: which checkpoint; "best" is the one of the best train.best, None the newest.
        shards: other shards than the run was trained on: of the same classes, or of notumor and tumor where the run
            knows notumor.
        device: torch device.
        weights: auto takes the average where the run kept one, model insists on the plain weights.

    Raises:
        UserError: no run, no complete checkpoint, or classes that differ.
    """
    import torch

    from brain_dist import config
    from brain_dist.checkpoints.layout import checkpoint_folder, complete_steps, verify_checkpoint
    from brain_dist.networks.create import create_network
    from brain_dist.networks.weights import read_weights
    from brain_dist.store.access import open_data
    from brain_dist.stream.normalize import Normalize
    from brain_dist.tracking.evaluations import best_step

    path = Path(path)
    settings = config.read(path / "config.yaml")
    found = complete_steps(path / "checkpoints")
    if not found:
        raise UserError(f"{path} has no complete checkpoint yet; `python -m brain_dist.train` makes one")
    if step == "best":
        step = best_step(path, settings.train.best, found)
    if step is not None and step not in found:
        raise UserError(f"{path} has no checkpoint of step {step}; it has {', '.join(map(str, found))}")
    step = found[-1] if step is None else int(step)
    folder = checkpoint_folder(path / "checkpoints", step)
    facts = path / "environment.json"
    if not facts.is_file():
        raise UserError(f"{facts} is not there; is {path} a run's folder?")
    about = json.loads(facts.read_text())
    classes, version = tuple(about["classes"]), about["dataset_version"]
    if shards:
        dataset = _other_shards(shards, settings.data, version)
        data = dataclasses.replace(settings.data, shards=shards, sources=(), leave_out=None, fold=dataset.fold)
        settings = dataclasses.replace(settings, data=data)
    else:
        dataset = open_data(settings.data, path.parent)
        if version != dataset.version:
            raise UserError(
                f"{dataset.root} was rebuilt since {path} was trained on it, and its split may have changed;"
                " give the shards it was trained on, or other ones by --shards and --name"
            )
    merges = _merges(classes, dataset)
    ema = folder / "ema.safetensors"
    file = ema if weights == "auto" and ema.is_file() else folder / "model.safetensors"
    damage = verify_checkpoint(folder, only=file.name)
    if damage:
        raise Fault(f"{damage[0]}; evaluate another --step")
    model = create_network(settings.model, len(classes), seed=0, load_weights=False)
    model.load_state_dict({name: value.float() for name, value in read_weights(file).items()})
    if merges:
        # a hook, not a wrapper: whoever looks into the network (Grad-CAM) still finds it
        model.register_forward_hook(lambda module, images, logits: merged(logits, merges))
    where = torch.device(device)
    normalize = Normalize(settings.data, settings.model.in_chans, where, torch.float32)
    return LoadedRun(path, settings, dataset, model.to(where).eval(), normalize, step, where, classes)


def _other_shards(shards: str, data: DataConfig, version: str) -> Dataset:
    """The shards that somebody names; of the run's own ones, the run's own fold."""
    from brain_dist.store.access import open_shards

    dataset = open_shards(shards, data.cache_dir)
    if dataset.version == version:
        return dataset.of_fold(data.fold)
    if dataset.folds:
        raise UserError(f"--shards {shards} was built as folds, which other runs cannot choose from; build it grouped")
    return dataset


def _merges(classes: tuple[str, ...], dataset: Dataset) -> list[list[int]]:
    """For each class of the shards the run's classes that it is made of; empty where the classes are the same."""
    if dataset.classes == classes:
        return []
    known, found = ", ".join(classes), ", ".join(dataset.classes)
    if NO_TUMOUR not in classes or set(dataset.classes) != {NO_TUMOUR, TUMOUR}:
        binary = f", or of {NO_TUMOUR} and {TUMOUR}, whose probability is the sum of the others'"
        raise UserError(
            f"the run knows the classes {known}, {dataset.root} has {found}; what fits are shards with a recipe of the"
            f" same classes in the same order{binary if NO_TUMOUR in classes else ''}"
        )
    none = classes.index(NO_TUMOUR)
    tumours = [at for at in range(len(classes)) if at != none]
    return [[none] if name == NO_TUMOUR else tumours for name in dataset.classes]


def merged(logits: torch.Tensor, merges: list[list[int]]) -> torch.Tensor:
    """Logits [B, K] → log-probabilities [B, len(merges)] of joined classes, so that softmax gives the sums back."""
    import torch

    logs = torch.log_softmax(logits.float(), dim=1)
    return torch.stack([logs[:, members].logsumexp(dim=1) for members in merges], dim=1)
