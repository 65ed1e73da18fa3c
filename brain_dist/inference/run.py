"""Load a trained run: its configuration, its network at a checkpoint, and a dataset to predict."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from brain_dist.common.progress import no_progress, show_progress, track
from brain_dist.common.records import read_record
from brain_dist.errors import Fault, UserError

if TYPE_CHECKING:
    import torch

    from brain_dist.config import Config, DataConfig
    from brain_dist.judging.predictions import Predictions
    from brain_dist.ranks.watch import Watch
    from brain_dist.ranks.world import World
    from brain_dist.store.dataset import Dataset
    from brain_dist.stream.batch import Batch
    from brain_dist.stream.normalize import Normalize


NO_TUMOUR, TUMOUR = "notumor", "tumor"  # the two classes of shards on which runs of several tumours can be evaluated


@dataclass(frozen=True)
class LoadedRun:
    """A trained network and a dataset to predict.

    Attributes:
        path: the run's folder.
        config: the run's configuration; ``config.data`` describes ``dataset``.
        dataset: the opened shards.
        model: the network in evaluation mode, fp32; [B, C, H, W] → logits [B, K] of the dataset's classes. If the
            dataset only has the classes notumor and tumor, the logits are the logarithms of their probabilities.
        normalize: turns loaded uint8 images into the network's input.
        step: optimiser steps of the checkpoint.
        device: the device of the model.
        trained_classes: the classes that the network was trained on.
        trained_version: version of the shards that it was trained on.
    """

    path: Path
    config: Config
    dataset: Dataset
    model: torch.nn.Module
    normalize: Normalize
    step: int
    device: torch.device
    trained_classes: tuple[str, ...]
    trained_version: str

    def rows(self, split: str) -> np.ndarray:
        """The rows of a split, int64 [N]; UserError if it is empty."""
        rows = self.dataset.rows(split)
        if not len(rows):
            raise UserError(f"{self.dataset.root} has no {split} split; rebuild it with other --fractions")
        return rows

    def predict(
        self, split: str = "test", *, micro_batch: int = 32, world: World | None = None, watch: Watch | None = None
    ) -> Predictions:
        """Predict a split of the dataset, each sample exactly once over all ranks. Every rank must call.

        Args:
            split: train, val or test.
            micro_batch: images per forward pass.
            world: this process among all processes; None predicts in this process alone.
            watch: told of the progress of this rank.

        Raises:
            UserError: the split is empty, or shards are missing or too short.
            Fault: a sample is missing or occurs twice, or the logits are not finite.
        """
        from brain_dist.inference.logits import predict_logits
        from brain_dist.judging.predictions import predictions_from_logits
        from brain_dist.ranks.group import run_on_main
        from brain_dist.ranks.world import discover
        from brain_dist.store.access import check_shards

        world = world or discover({})
        rows = self.rows(split)
        run_on_main(world, lambda: check_shards(self.dataset, rows))
        total = -(-len(rows) // (micro_batch * world.size))
        with show_progress() if world.is_main else nullcontext(no_progress) as progress:
            batches = track(self.batches(rows, micro_batch=micro_batch, world=world), "predicting", total, progress)
            batches = watch.watch_items(batches, "predicting") if watch else batches
            logits = predict_logits(self.model, self.normalize, batches, rows, world)
        return predictions_from_logits(self.dataset, rows, logits, run=self.config.run.name, step=self.step)

    def batches(self, rows: np.ndarray, *, micro_batch: int, world: World) -> Iterator[Batch]:
        """This rank's part of ``rows`` (int64 [N]), without augmentation."""
        from brain_dist.stream.batches import evaluation_batches

        return evaluation_batches(
            self.config.data, self.dataset, rows, micro_batch=micro_batch, device=self.device,
            rank=world.rank, world_size=world.size,
        )  # fmt: skip

    def images(self, rows: Sequence[int]) -> torch.Tensor:
        """The network's input [B, C, H, W] for these rows of the index, exactly as in evaluation."""
        import torch

        from brain_dist.ranks.world import discover

        index = np.asarray(rows, dtype=np.int64)
        batches = self.batches(index, micro_batch=min(32, len(index)), world=discover({}))
        return torch.cat([self.normalize(batch.image)[batch.valid] for batch in batches])

    def display(self, images: torch.Tensor) -> np.ndarray:
        """Undo the normalisation of [B, C, H, W]: uint8 [B, H, W]."""
        return self.normalize.to_gray(images)


def load_run(
    path: str | Path,
    *,
    step: int | str | None = None,
    shards: str | None = None,
    loader: Literal["dali", "opencv", "torch"] | None = None,
    device: str = "cpu",
    weights: str = "auto",
    cache_dir: str | None = None,
    world: World | None = None,
) -> LoadedRun:
    """Load a run's network at a checkpoint. Weights are read from safetensors, so no code of the checkpoint runs.

    The main rank chooses the checkpoint and reads it for all ranks: the run may be training and saving checkpoints.

    Args:
        path: the run's folder.
        step: optimiser steps of the checkpoint, "best" or "newest" (default: the best if the run sets ``train.best``,
            else the newest).
        shards: other shards than those of the run: of the same classes, or, if the run has a class notumor, of the
            classes notumor and tumor. For a run of these two, shards of notumor and several tumours.
        loader: dali, opencv or torch (default: that of the run).
        device: torch device.
        weights: "auto" uses the moving average of the weights if the checkpoint has one, "model" never does.
        cache_dir: folder on this node's disk to copy shards to, see :func:`brain_dist.store.stage.stage`. The run's own
            ``data.cache_dir`` is not used: whoever trained a run does not decide where shards are copied here.
        world: this process among all processes, which must all call; None loads in this process alone.

    Raises:
        UserError: the run, a complete checkpoint or its shards are missing, or the shards or classes differ.
        Fault: the weights are damaged.
    """
    import torch

    from brain_dist import config
    from brain_dist.networks.create import create_network
    from brain_dist.ranks.group import gather_objects, run_on_main
    from brain_dist.ranks.world import discover
    from brain_dist.stream.normalize import Normalize

    path, world = Path(path), world or discover({})
    settings = config.read(path / "config.yaml")
    environment = read_environment(path)
    classes = tuple(environment["classes"])
    version = environment["dataset_version"]
    if shards:
        settings, dataset = _open_other(settings, version, shards, cache_dir)
    else:
        try:
            data, dataset = open_own_data(path, cache_dir)
        except UserError as error:
            raise UserError(f"{error}; if these shards are elsewhere, add --shards FOLDER") from None
        settings = dataclasses.replace(settings, data=data)
    if loader:
        settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, loader=loader))
    dataset = with_run_classes(dataset, classes)
    groups = class_groups(classes, dataset)
    model = create_network(settings.model, len(classes), seed=0, load_weights=False)
    steps: list[int] = []
    run_on_main(world, lambda: steps.append(load_checkpoint(model, path, settings, step, weights)))
    loaded_step = gather_objects(steps, world)[0][0]
    if world.size > 1:
        for tensor in model.state_dict().values():
            torch.distributed.broadcast(tensor, src=0)
    if groups:
        # a hook, not a wrapper module: maps of the class still find the layers of the network
        model.register_forward_hook(lambda module, images, logits: merge_logits(logits, groups))
    target = torch.device(device)
    normalize = Normalize(settings.data, settings.model.in_chans, target, torch.float32)
    return LoadedRun(path, settings, dataset, model.to(target).eval(), normalize, loaded_step, target, classes, version)


def read_environment(path: Path) -> dict[str, Any]:
    """What training recorded in environment.json, in the run's folder.

    Raises:
        UserError: the file is missing or damaged.
    """
    file = path / "environment.json"
    if not file.is_file():
        raise UserError(f"{file} does not exist; is {path} the folder of a run?")
    advice = "give the command of the training again, which writes it"
    return read_record(file, advice, {"classes": list, "dataset_version": str})


def open_own_data(path: Path, cache_dir: str | None) -> tuple[DataConfig, Dataset]:
    """The shards that a run was trained on: where its configuration or else its environment.json says.

    Args:
        path: the run's folder.
        cache_dir: see :func:`load_run`.

    Returns:
        The configuration that describes the shards, and the dataset.

    Raises:
        UserError: they are missing or were rebuilt.
    """
    from brain_dist import config
    from brain_dist.store.access import open_data

    data = dataclasses.replace(config.read(path / "config.yaml").data, cache_dir=cache_dir)
    environment = read_environment(path)
    places = [data]  # its paths may be relative to the folder of the training
    if "shards" in environment:
        places.append(dataclasses.replace(data, shards=environment["shards"], sources=(), leave_out=None))
    problems = []
    for place in places:
        try:
            dataset = open_data(place, path.parent)
        except UserError as error:
            problems.append(str(error))
            continue
        if dataset.version == environment["dataset_version"]:
            return place, dataset
        problems.append(f"{dataset.root} was rebuilt since {path} was trained on it, so its split may have changed")
    raise UserError(f"the data of {path}: {problems[0]}")


def _open_other(settings: Config, version: str, shards: str, cache_dir: str | None) -> tuple[Config, Dataset]:
    """Open ``shards``; returns the configuration that describes them, and the dataset."""
    from brain_dist.store.access import open_shards

    dataset = open_shards(shards, cache_dir)
    if dataset.version == version:
        dataset = dataset.of_fold(settings.data.fold)  # the run's own shards keep the run's own fold
    elif dataset.folds:
        raise UserError(
            f"--shards {shards} was built as folds, which other runs cannot use; build it with grouped splits"
        )
    data = dataclasses.replace(
        settings.data, shards=shards, sources=(), leave_out=None, fold=dataset.fold, cache_dir=cache_dir
    )
    return dataclasses.replace(settings, data=data), dataset


def load_checkpoint(model: torch.nn.Module, path: Path, settings: Config, step: int | str | None, weights: str) -> int:
    """Load verified weights into ``model``, and return the number of steps of their checkpoint.

    Args:
        model: the network to fill.
        path: the run's folder.
        settings: its configuration.
        step: see :func:`load_run`.
        weights: see :func:`load_run`.

    Raises:
        UserError: the checkpoint is missing.
        Fault: it is damaged.
    """
    from brain_dist.checkpoints.choice import choose_step
    from brain_dist.checkpoints.layout import checkpoint_folder, intact_weights
    from brain_dist.networks.weights import read_weights

    chosen = choose_step(path, step, settings.train.best)
    try:
        file = intact_weights(checkpoint_folder(path / "checkpoints", chosen), averaged=weights == "auto")
    except Fault as damage:
        raise Fault(f"{damage}; use another --step") from None
    model.load_state_dict({key: value.float() for key, value in read_weights(file).items()})
    return chosen


def with_run_classes(dataset: Dataset, classes: tuple[str, ...]) -> Dataset:
    """For a run of notumor and tumor: a dataset of several tumours as one of these two classes; else unchanged."""
    if set(classes) != {NO_TUMOUR, TUMOUR} or NO_TUMOUR not in dataset.classes or TUMOUR in dataset.classes:
        return dataset
    return dataset.of_classes(classes, {name: NO_TUMOUR if name == NO_TUMOUR else TUMOUR for name in dataset.classes})


def class_groups(classes: tuple[str, ...], dataset: Dataset) -> list[list[int]]:
    """For each class of ``dataset``, the indices of the run's ``classes`` that it covers; empty if both are the same.

    Raises:
        UserError: the classes of the dataset do not fit the run.
    """
    if dataset.classes == classes:
        return []
    if NO_TUMOUR not in classes or set(dataset.classes) != {NO_TUMOUR, TUMOUR}:
        binary = f", or shards of {NO_TUMOUR} and {TUMOUR} (its probability is the sum over the other classes)"
        raise UserError(
            f"the run has the classes {', '.join(classes)}, but {dataset.root} has {', '.join(dataset.classes)}; use"
            f" shards of the same classes in the same order{binary if NO_TUMOUR in classes else ''}"
        )
    no_tumour = classes.index(NO_TUMOUR)
    tumours = [index for index in range(len(classes)) if index != no_tumour]
    return [[no_tumour] if name == NO_TUMOUR else tumours for name in dataset.classes]


def merge_logits(logits: torch.Tensor, groups: list[list[int]]) -> torch.Tensor:
    """Logits [B, K] → log-probabilities [B, len(groups)], whose softmax is the sum of each group's probabilities."""
    import torch

    log_prob = torch.log_softmax(logits.float(), dim=1)
    return torch.stack([log_prob[:, group].logsumexp(dim=1) for group in groups], dim=1)
