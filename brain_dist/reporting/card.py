"""The model card of a run, ``MODEL_CARD.md``, in Hugging Face's format. It is only written, never uploaded.

Metadata and text are made from the run's files alone: every number is a metric of a predictions table, and what the
files do not say is "not known".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from brain_dist import __version__
from brain_dist.judging.patients import patient_names
from brain_dist.judging.predictions import Predictions
from brain_dist.pages.text import display_name, interval_text, listing, number, percent
from brain_dist.reporting.card_limits import limitations
from brain_dist.reporting.intervals import METRIC_NAMES, metric_intervals
from brain_dist.reporting.page import evaluated_on, shortcut_comparison, training_steps
from brain_dist.reporting.run_files import RunFiles, read_run_files

NAME = "MODEL_CARD.md"
UNKNOWN = "not known"
# Our metric → its name on Hugging Face, where it has one
HUB_METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced_accuracy",
    "f1_macro": "f1",
    "auc_macro": "roc_auc",
    "mcc": "matthews_correlation",
    "ece": "expected_calibration_error",
    "brier": "brier_score",
    "nll": "negative_log_likelihood",
}
SHARES = ("accuracy", "balanced_accuracy", "specificity_macro", "precision_macro", "f1_macro")
SETTINGS = (
    ("train.epochs", "epochs"),
    ("train.global_batch", "images per step"),
    ("optim.name", "optimiser"),
    ("optim.lr", "learning rate"),
    ("optim.weight_decay", "weight decay"),
    ("optim.label_smoothing", "label smoothing"),
    ("optim.ema", "moving average of the weights (0: none)"),
    ("train.precision", "precision"),
    ("train.balance", "balancing of classes"),
    ("train.best", "metric that selects the checkpoint (none: the last one)"),
    ("run.seed", "seed"),
)


def why_no_card(run: Path, predictions: Predictions) -> str | None:
    """Why nothing can be said of the model behind these predictions, or None."""
    if predictions.adopted is not None:
        return "the predictions were adopted from a file, which says nothing of their model"
    missing = [name for name in ("config.yaml", "environment.json") if not (run / name).is_file()]
    return f"{run} has no {listing(missing)}" if missing else None


def render_card(run: Path, name: str, folder: Path | None = None) -> str:
    """The card of one checkpoint of a run as Markdown with YAML metadata.

    Args:
        run: the run's folder, with ``config.yaml`` and ``environment.json``.
        name: name of predictions of the checkpoint that the card is about.
        folder: folder of the predictions; None is ``predictions`` in the run's folder. Tables of the training and the
            validation split are left out, and those of other checkpoints are only named.

    Raises:
        UserError: a file of the run cannot be read.
    """
    names = [path.stem for path in sorted((folder or run / "predictions").glob("*.parquet")) if path.name[0] != "."]
    tables = [read_run_files(run, each, folder) for each in names]
    step = tables[names.index(name)].predictions.step
    of_step = [files for files in tables if files.predictions.step == step]
    tests = [files for files in tables if set(files.predictions.split) == {"test"}]
    tested = [files for files in tests if files.predictions.step == step]
    elsewhere = [files for files in tests if files.predictions.step != step]
    # the shards of the training say how it was trained; the table itself can be about others
    some = next((files for files in of_step if _has_own_shards(files)), tables[names.index(name)])
    config = some.settings or {}
    sections = [
        f"# {_plain(some.run)}",
        _description(some),
        _details(some, config),
        "## Intended use",
        "Research on methods: repeating, comparing and explaining classifiers of brain MRI slices.\n\n"
        "Not intended: diagnosis, treatment or any other decision about a person. This is not a medical device.",
        _training(some, config),
        "## Evaluation",
        "\n\n".join(_evaluation(files) for files in tested) or "There is no evaluation on test images.",
        *([_left_out(elsewhere)] if elsewhere else []),
        "## Limitations\n\n" + "\n".join(f"- {_plain(text)}" for text in limitations(some, tested)),
        _use(some),
        _unknowns(),
    ]
    return _metadata(some, tested, config) + "\n\n".join(sections) + "\n"


def _has_own_shards(files: RunFiles) -> bool:
    """Whether the predictions are about the shards of the training, and these are still there."""
    return files.dataset is not None and files.dataset.version == (files.environment or {}).get("dataset_version")


def _left_out(files: list[RunFiles]) -> str:
    tables = listing([f"{each.name} (step {each.predictions.step:,})" for each in files])
    return _plain(f"Left out, as they are about other checkpoints: {tables}.")


def _metadata(some: RunFiles, tested: list[RunFiles], config: dict[str, Any]) -> str:
    """The card's YAML block. Results that count images which training knew are in the text only."""
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    for files in tested:
        predictions = files.predictions
        if predictions.allow_known and predictions.is_known.any():
            continue
        metrics = predictions.evaluate()
        results += [
            EvalResult(
                task_type="image-classification", task_name="Image classification",
                dataset_type=_dataset_name(files), dataset_name=_dataset_name(files), dataset_split="test",
                dataset_config=files.name,  # results of one dataset and configuration would be merged
                dataset_revision=predictions.dataset_version,
                metric_type=hub_name, metric_name=METRIC_NAMES[name], metric_value=metrics[name],
            )
            for name, hub_name in HUB_METRICS.items()
            if metrics[name] is not None
        ]  # fmt: skip
    data = ModelCardData(
        model_name=some.run,
        library_name="timm",
        pipeline_tag="image-classification",
        base_model=_base_model(config),
        tags=["brain-mri", "medical-imaging", "brain_dist"],
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n"


def _base_model(config: dict[str, Any]) -> str | None:
    """The repository of the ImageNet weights that the training started from, if it did."""
    import timm

    model = config["model"]
    settings = timm.models.get_pretrained_cfg(model["name"]) if model.get("pretrained") else None
    return getattr(settings, "hf_hub_id", None)


def _dataset_name(files: RunFiles) -> str:
    return files.dataset.name if files.dataset is not None else "+".join(sorted(set(files.predictions.dataset)))


def _description(some: RunFiles) -> str:
    classes = [display_name(name) for name in some.predictions.classes]
    text = f"A network that classifies single brain MRI slices as {_plain(listing(classes, 'or'))}."
    if _is_phantom(some):
        text += "\n\n**Made-up images.** Training and test images are computer-generated phantoms. The numbers test"
        text += " the software and say nothing about patients."
    return text


def _is_phantom(files: RunFiles) -> bool:
    return "phantom" in set(files.predictions.dataset)


def _details(some: RunFiles, config: dict[str, Any]) -> str:
    environment, model = some.environment or {}, config["model"]
    start = "random weights"
    if model.get("pretrained"):
        start = "ImageNet weights of timm"
    if model.get("weights"):
        start = f"the weights in {model['weights']}"
    rows = [
        ("architecture", model["name"]),
        ("parameters", f"{environment['parameters']:,}" if "parameters" in environment else UNKNOWN),
        ("input", f"{config['data']['size']} × {config['data']['size']} pixels, {config['data']['color']}"),
        ("training began with", start),
        ("evaluated step", f"{some.predictions.step:,}"),
        ("brain_dist", __version__),
        ("torch, timm", ", ".join(str(environment.get("versions", {}).get(n, UNKNOWN)) for n in ("torch", "timm"))),
        ("developed by, contact, licence", UNKNOWN),
    ]
    return "## Model details\n\n" + _table(("", ""), rows)


def _training(some: RunFiles, config: dict[str, Any]) -> str:
    environment = some.environment or {}
    rows: list[tuple[str, ...]] = [
        ("shards", f"{environment.get('dataset', UNKNOWN)}, version {environment.get('dataset_version', UNKNOWN)}")
    ]
    if some.dataset is not None and _has_own_shards(some):
        manifest = some.dataset.manifest
        rows += [
            ("images", ", ".join(f"{sum(counts.values()):,} {split}" for split, counts in manifest.counts.items())),
            ("split", manifest.split["method"]),
            ("collection", manifest.title),
            ("source", manifest.source),
            ("licence of the images, as stated", manifest.licence),
            ("citation", manifest.citation),
        ]
    steps = training_steps(some)
    if steps is not None:
        rows.append(("steps", f"{steps['done']:,} of {steps['planned']:,} planned"))
    for key, meaning in SETTINGS:
        section, name = key.split(".")
        value = config[section].get(name)
        rows.append((meaning, "none" if value is None else str(value)))
    rows.append(("machine", f"{environment.get('devices', UNKNOWN)}"))
    return "## Training\n\n" + _table(("", ""), rows)


def _evaluation(files: RunFiles) -> str:
    """Metrics of one predictions table with their intervals, by class, and beside shortcuts."""
    predictions = files.predictions
    metrics, intervals = predictions.evaluate(), metric_intervals(predictions)
    patients = len(set(patient_names(predictions.dataset, predictions.patient)) - {None})
    parts = [
        f"### {_plain(files.name)}: {_plain(evaluated_on(files))}",
        f"{metrics['n']:,} images in {metrics['groups']:,} groups of patients and copies; {patients:,} known patients."
        f" Dataset version `{predictions.dataset_version}`. The intervals resample whole groups;"
        " the calibration error has none, because resampling raises it.",
    ]
    rows = []
    for name, shown in METRIC_NAMES.items():
        write = percent if name in SHARES else number
        rows.append((shown, write(metrics[name]), interval_text(intervals[name], write)))
    parts.append(_table(("metric", "value", "95 % interval"), rows))
    classes = [
        (display_name(name), str(values["n"]), *(percent(values[m]) for m in ("sensitivity", "specificity", "f1")),
         number(values["auc"]))
        for name, values in metrics["per_class"].items()
    ]  # fmt: skip
    parts.append(_table(("class", "images", "sensitivity", "specificity", "F1", "AUC"), classes))
    shortcuts = shortcut_comparison(files, metrics["accuracy"])
    if shortcuts is not None:
        baselines = [(row["name"], percent(row["accuracy"])) for row in shortcuts["rows"]]
        parts.append(_table(("shortcut baseline", "accuracy"), baselines))
    return "\n\n".join(parts)


def _use(some: RunFiles) -> str:
    code = "import brain_dist\n\nrun = brain_dist.load_run('RUN')  # the run's folder"
    classes = _plain(", ".join(some.predictions.classes))
    return f"## How to use\n\n```python\n{code}\n```\n\nClasses in the order of the outputs: {classes}."


def _unknowns() -> str:
    rows = [(topic, UNKNOWN) for topic in ("energy, emissions", "results by age, sex, scanner and site", "funding")]
    return "## Not known\n\n" + _table(("", ""), rows)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]] | Any) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(_plain(str(cell)) for cell in line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Text from data in one line of Markdown, without columns and tags."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
