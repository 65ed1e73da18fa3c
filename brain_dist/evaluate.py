"""Evaluate: ``python -m brain_dist.evaluate runs/NAME`` writes predictions/<split>.parquet and its metrics beside it.

Exact over any number of ranks: each sample of the split counts once. Weights are read from safetensors, so a checkpoint
that somebody handed over can't run code here, and neither DeepSpeed nor the number of ranks of the training matters.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_dist.errors import Fault, UserError, leave

if TYPE_CHECKING:
    import torch

    from brain_dist.config import Config, DataConfig
    from brain_dist.data.index import Dataset
    from brain_dist.dist import World
    from brain_dist.loaders.batch import Batch, Finish


NO_TUMOUR, TUMOUR = "notumor", "tumor"  # the classes of shards that do not tell tumours apart


@dataclass(frozen=True)
class LoadedRun:
    """A trained network with all that is needed to show it images.

    Attributes:
        path: the run's folder.
        config: the run's configuration, with the shards that are evaluated.
        dataset: the opened shards.
        model: the network in evaluation mode, fp32.
        finish: turns loaded uint8 images into the network's input.
        step: optimiser steps that the weights have seen.
        device: where the model is.
        trained_on: classes that the network was trained on. Where the shards know only tumour or none, ``model`` gives
            the logs of those two probabilities: it has added up the others.
    """

    path: Path
    config: Config
    dataset: Dataset
    model: torch.nn.Module
    finish: Finish
    step: int
    device: torch.device
    trained_on: tuple[str, ...]

    def batches(self, rows: np.ndarray, *, micro_batch: int, world: World) -> Iterator[Batch]:
        """This rank's share of ``rows``, unaugmented."""
        from brain_dist.data import plan
        from brain_dist.loaders import open_loader
        from brain_dist.loaders.batch import evaluation_jobs

        planned = plan.evaluation(rows, micro_batch=micro_batch, rank=world.rank, world=world.size)
        jobs = evaluation_jobs(self.dataset, self.config.data, planned)
        return open_loader(self.config.data, self.dataset, jobs, augmented=False, batch=micro_batch, device=self.device)

    def images(self, rows: Sequence[int]) -> torch.Tensor:
        """The network's input [B, C, H, W] for these rows, exactly as in evaluation."""
        import torch

        from brain_dist.dist import discover

        alone = discover({})
        wanted = np.asarray(rows, dtype=np.int64)
        made = [
            self.finish(b.image)[b.valid] for b in self.batches(wanted, micro_batch=min(32, len(wanted)), world=alone)
        ]
        return torch.cat(made)

    def display(self, images: torch.Tensor) -> np.ndarray:
        """Undo the normalisation: uint8 [B, H, W]."""
        return self.finish.gray(images)


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

    from brain_dist import checkpoint, config, early, models
    from brain_dist.data.access import open_data
    from brain_dist.loaders.batch import Finish

    path = Path(path)
    settings = config.read(path / "config.yaml")
    found = checkpoint.steps(path / "checkpoints")
    if not found:
        raise UserError(f"{path} has no complete checkpoint yet; `python -m brain_dist.train` makes one")
    if step == "best":
        step = early.best_step(path, settings.train.best, found)
    if step is not None and step not in found:
        raise UserError(f"{path} has no checkpoint of step {step}; it has {', '.join(map(str, found))}")
    step = found[-1] if step is None else int(step)
    folder = checkpoint.folder(path / "checkpoints", step)
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
    damage = checkpoint.verify(folder, only=file.name)
    if damage:
        raise Fault(f"{damage[0]}; evaluate another --step")
    model = models.create(settings.model, len(classes), seed=0, load_weights=False)
    model.load_state_dict({name: value.float() for name, value in models.read_weights(file).items()})
    if merges:
        # a hook, not a wrapper: whoever looks into the network (Grad-CAM) still finds it
        model.register_forward_hook(lambda module, images, logits: merged(logits, merges))
    where = torch.device(device)
    finish = Finish(settings.data, settings.model.in_chans, where, torch.float32)
    return LoadedRun(path, settings, dataset, model.to(where).eval(), finish, step, where, classes)


def _other_shards(shards: str, data: DataConfig, version: str) -> Dataset:
    """The shards that somebody names; of the run's own ones, the run's own fold."""
    from brain_dist.data.access import open_shards

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


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, join the process group, evaluate, write."""
    parser = argparse.ArgumentParser("brain-dist evaluate", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path, help="the run's folder, such as runs/NAME")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"), help="which split (default: test)")
    parser.add_argument("--step", type=_step, help="which checkpoint, or best (default: the newest)")
    parser.add_argument("--shards", help="other shards than the run's own: external validation; needs --name")
    parser.add_argument("--name", help="name of the predictions' files (default: the split)")
    parser.add_argument("--batch", type=int, default=32, help="images a rank at once (default: 32)")
    parser.add_argument("--loader", choices=("dali", "torch"), help="default: the run's own")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one"
    )
    arguments, unknown = parser.parse_known_args(argv)
    unknown = [word for word in unknown if not word.startswith(("--local_rank", "--local-rank"))]
    if unknown:
        parser.error(f"unrecognised: {' '.join(unknown)}")
    if arguments.shards and arguments.name in (None, "train", "val", "test"):
        raise UserError("--shards needs a --name of its own, so that it does not overwrite the run's own predictions")
    if arguments.batch < 1:
        raise UserError(f"--batch {arguments.batch}: needs at least 1")

    from brain_dist.dist import choose_device, discover, process_group

    world = discover()
    device = choose_device(world, arguments.device)
    with process_group(world, device):
        loaded = load_run(arguments.run, step=arguments.step, shards=arguments.shards, device=str(device))
        if arguments.loader:
            data = dataclasses.replace(loaded.config.data, loader=arguments.loader)
            loaded = dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, data=data))
        name = arguments.name or arguments.split
        judged = evaluate(loaded, arguments.split, name, micro_batch=arguments.batch, world=world)
        if world.is_main:
            show(
                judged,
                f"{arguments.run}, {loaded.dataset.manifest['name']}, {arguments.split} split, step {loaded.step}",
            )
            if len(loaded.trained_on) > len(loaded.dataset.classes):
                tumours = ", ".join(name for name in loaded.trained_on if name != NO_TUMOUR)
                print(f"{TUMOUR}: the sum of the probabilities of {tumours}, which these shards do not tell apart")
            print(f"predictions: {arguments.run / 'predictions' / name}.parquet")
    return 0


def _step(word: str) -> int | str:
    if word != "best" and not word.isdigit():
        raise UserError(f"--step {word}: needs a number of optimiser steps, or best")
    return word if word == "best" else int(word)


def evaluate(loaded: LoadedRun, split: str, name: str, *, micro_batch: int, world: World) -> dict[str, Any]:
    """Predict a split on all ranks; the main one judges, and writes predictions/NAME.parquet and NAME.json.

    Returns the metrics, on the main rank.
    """
    from brain_dist import checkpoint, inference
    from brain_dist.data.access import check_shards
    from brain_dist.predictions import predictions_from_logits, write_predictions

    rows = loaded.dataset.rows(split)
    if not len(rows):
        raise UserError(f"{loaded.dataset.root} has no {split} split; rebuild it with other --fractions")
    checkpoint.together(world, lambda: check_shards(loaded.dataset, rows))
    batches = loaded.batches(rows, micro_batch=micro_batch, world=world)
    logits = inference.logits(loaded.model, loaded.finish, batches, rows, world)
    predictions = predictions_from_logits(loaded.dataset, rows, logits, run=loaded.config.run.name, step=loaded.step)
    judged: dict[str, Any] = {}
    if world.is_main:
        judged = predictions.evaluate()
        folder = loaded.path / "predictions"
        write_predictions(folder / f"{name}.parquet", predictions, rows)
        (folder / f"{name}.json").write_text(json.dumps(judged, indent=1) + "\n")
    return judged


def show(judged: dict[str, Any], title: str) -> None:
    """The metrics as tables for a person."""
    from rich.console import Console
    from rich.table import Table

    def text(value: float | None, percent: bool = False) -> str:
        return "–" if value is None else f"{value:.1%}" if percent else f"{value:.3f}"

    console = Console(highlight=False)
    table = Table(title=title, title_justify="left")
    for column in ("class", "images", "sensitivity", "specificity", "precision", "F1", "AUC"):
        table.add_column(column, justify="left" if column == "class" else "right")
    names = ("sensitivity", "specificity", "precision", "f1")
    for name, values in judged["per_class"].items():
        table.add_row(name, str(values["n"]), *(text(values[k], True) for k in names), text(values["auc"]))
    macro = [text(judged[f"{k}_macro"], True) for k in names]
    table.add_row("macro", str(judged["n"]), *macro, text(judged["auc_macro"]), style="bold")
    console.print(table)
    low, high = judged["accuracy_cluster"] or judged["accuracy_wilson"]
    over = f"{judged['groups']} groups resampled" if judged["accuracy_cluster"] else "Wilson"
    console.print(
        f"accuracy {judged['accuracy']:.2%} (95 % interval {low:.1%} to {high:.1%}, {over}),"
        f" kappa {text(judged['kappa'])}, ECE {text(judged['ece'])}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    leave(main)
