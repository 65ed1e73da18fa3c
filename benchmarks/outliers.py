"""How well outliers are detected: ``python -m benchmarks.outliers RUN [--external SHARDS …]``.

The kinds are pictures that the choice of the score in ``brain-dist outliers RUN`` never saw: radiology of other parts
and modalities (the test files of pydicom), another space (slices of nilearn's MNI template), phantoms, and the run's
own test images turned, mirrored top to bottom, or cut. Each is compared with the run's test images: AUROC of every
score, and for the chosen one false positives at 95 % detection and the share with the verdict not_like_training.
The last table has the run's own test images and the collections of ``--external``: the share rejected, the accuracy
with and without these, and, if the run is calibrated, how often a conformal set has the true class (a patient counts
once).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score, roc_curve

from brain_dist.calibration.record import Calibration, read_calibration
from brain_dist.calibration.scaling import scaled
from brain_dist.collection.pixels import store_image
from brain_dist.common.commands import STEP, checkpoint_step
from brain_dist.errors import UserError, run
from brain_dist.inference.features import row_outputs
from brain_dist.inference.network import SETS
from brain_dist.inference.run import LoadedRun, class_groups, load_run
from brain_dist.ood.build import see
from brain_dist.ood.record import Detector
from brain_dist.ood.scores import METHODS, Reference, fit
from brain_dist.phantom.generate import PhantomSettings, generate
from brain_dist.prediction.outputs import stack_pixels
from brain_dist.prediction.predictor import load
from brain_dist.prediction.reading import array_slices, read_slices
from brain_dist.prediction.torch_model import TorchModel
from brain_dist.store.reader import ShardReader
from brain_dist.stream.contract import Contract

BATCH, SEED = 32, 1
PER_KIND = 200  # images, at most
TRAINING_IMAGES = 2000
Outputs = tuple[np.ndarray, np.ndarray]  # features and logits


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.outliers", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--shards", help="where the run's shards are now")
    parser.add_argument("--external", action="append", default=[], help="shards of another collection; may be repeated")
    parser.add_argument("--step", type=checkpoint_step, help=STEP)
    options = parser.parse_args(arguments)
    loaded = load_run(options.run, step=options.step, shards=options.shards)
    model = load(options.run, step=loaded.step).model
    assert isinstance(model, TorchModel)
    if model.detector is None:
        raise UserError(
            f"{options.run} has no detector of step {loaded.step}; write it with `brain-dist outliers {options.run}"
            f" --step {loaded.step}`"
        )
    calibration = read_calibration(options.run)
    if calibration is not None and calibration.step != loaded.step:
        raise UserError(
            f"{options.run} is calibrated for step {calibration.step}, and this is step {loaded.step}; add"
            f" --step {calibration.step}"
        )
    detector, test = model.detector, loaded.rows("test")
    references = fit_all(loaded)
    own = row_outputs(loaded, test)
    group = loaded.dataset.columns["group"][test]
    print(
        f"{options.run}: {detector.reference.method}, rejected below p = {detector.limit:g}, {detector.groups:,}"
        " validation patients\n"
    )
    print_alarms(detector, own, group)
    print(
        f"\n| kind | images | {' | '.join(METHODS)} | FPR at 95 % | rejected |\n"
        f"|---|--:|{'--:|' * len(METHODS)}--:|--:|"
    )
    for kind, pixels in kinds(loaded, test, model.contract):
        outputs = outputs_of(model, pixels[:PER_KIND])
        row = [f"{auroc(references[name], own, outputs):.3f}" for name in METHODS]
        row += [f"{false_positives(detector.reference, own, outputs):.1%}", f"{rejected(detector, outputs).mean():.1%}"]
        print(f"| {kind} | {len(outputs[0])} | {' | '.join(row)} |", flush=True)
    print_collections(loaded, own, options.external, detector, calibration)
    return 0


def fit_all(loaded: LoadedRun) -> dict[str, Reference]:
    rows = np.sort(np.random.default_rng(0).permutation(loaded.rows("train"))[:TRAINING_IMAGES])
    features, _ = row_outputs(loaded, rows)
    label = loaded.dataset.columns["label"][rows].astype(np.int64)
    return {name: fit(name, features, label) for name in METHODS}


def rejected(detector: Detector, outputs: Outputs) -> np.ndarray:
    return detector.p_values(*outputs) < detector.limit


def auroc(reference: Reference, own: Outputs, other: Outputs) -> float:
    return float(roc_auc_score(*labelled(reference, own, other)))


def false_positives(reference: Reference, own: Outputs, other: Outputs) -> float:
    """Share of the run's own images that look unlike at the threshold that finds 95 % of the others."""
    positives, found, _ = roc_curve(*labelled(reference, own, other))
    return float(positives[np.searchsorted(found, 0.95)])


def labelled(reference: Reference, own: Outputs, other: Outputs) -> tuple[np.ndarray, np.ndarray]:
    score = np.concatenate([reference.scores(*own), reference.scores(*other)])
    return np.arange(len(score)) >= len(own[0]), score


def print_alarms(detector: Detector, own: Outputs, group: np.ndarray) -> None:
    """False alarms on the run's test images: of images, and the mean over patients with its interval."""
    alarm = rejected(detector, own)
    shares = by_patient(alarm, group)
    draws = np.random.default_rng(0).integers(0, len(shares), (2000, len(shares)))
    low, high = np.quantile(shares[draws].mean(axis=1), [0.025, 0.975])
    print(
        f"false alarms on {len(alarm):,} test images of {len(shares):,} patients: {alarm.mean():.1%} of images,"
        f" {shares.mean():.1%} (95 % interval {low:.1%} to {high:.1%}) for a random image of a patient"
    )


def by_patient(value: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The mean of bool [N] over the images of each patient."""
    _, number = np.unique(group.astype(str), return_inverse=True)
    return np.bincount(number, value) / np.bincount(number)


def print_collections(
    own: LoadedRun, own_outputs: Outputs, external: Sequence[str], detector: Detector, calibration: Calibration | None
) -> None:
    """One row for the run's own test images and one for each other collection: verdicts, accuracy, conformal sets."""
    wanted = "–" if calibration is None else f"{1 - calibration.alpha:.0%}"
    print(
        f"\n| test images | images | not_like_training | right | right of the others | sets with the true class"
        f" ({wanted} wanted) | classes in a set |\n|---|--:|--:|--:|--:|--:|--:|"
    )
    print(collection_row("own", own, own.rows("test"), own_outputs, detector, calibration))
    for shards in external:
        other = load_run(own.path, step=own.step, shards=shards)
        rows = np.sort(np.random.default_rng(SEED).permutation(other.rows("test"))[: 5 * PER_KIND])
        print(
            collection_row(other.dataset.name, other, rows, row_outputs(other, rows), detector, calibration), flush=True
        )


def collection_row(
    name: str,
    loaded: LoadedRun,
    rows: np.ndarray,
    outputs: Outputs,
    detector: Detector,
    calibration: Calibration | None,
) -> str:
    """What the run says about these rows of a dataset, with the logits [N, K] of the classes of its training.

    A tumour of unnamed kind is right if the tumours together are likelier than no tumour, and in a set with any tumour.
    """
    logits = outputs[1]
    groups = class_groups(loaded.trained_classes, loaded.dataset) or [[k] for k in range(logits.shape[1])]
    label = loaded.dataset.columns["label"][rows]
    prob = scaled(logits)
    right = np.stack([prob[:, group].sum(axis=1) for group in groups], axis=1).argmax(axis=1) == label
    out = rejected(detector, outputs)
    kept = f"{right[~out].mean():.1%}" if (~out).any() else "–"
    sets = None if calibration is None else calibration.sets(logits, SETS)
    covered = size = "–"
    if sets is not None:
        has_truth = np.stack([sets[:, group].any(axis=1) for group in groups], axis=1)[np.arange(len(rows)), label]
        covered = f"{by_patient(has_truth, loaded.dataset.columns['group'][rows]).mean():.1%}"
        size = f"{sets.sum(axis=1).mean():.2f}"
    return f"| {name} | {len(rows):,} | {out.mean():.1%} | {right.mean():.1%} | {kept} | {covered} | {size} |"


def outputs_of(model: TorchModel, pixels: Sequence[np.ndarray]) -> Outputs:
    batches = [
        model.outputs(stack_pixels(list(pixels[n : n + BATCH]), model.contract)) for n in range(0, len(pixels), BATCH)
    ]
    return np.concatenate([each.features for each in batches]), np.concatenate([each.logits for each in batches])


def kinds(loaded: LoadedRun, test: np.ndarray, contract: Contract) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Name and pixels of each kind."""
    reader = ShardReader(loaded.dataset)
    rows = np.random.default_rng(SEED).permutation(test)[:PER_KIND]
    grays = [store_image(reader.read(row)).pixels for row in rows.tolist()]
    yield "own test images, turned by 90°", [see(np.rot90(gray), contract) for gray in grays]
    yield "own test images, mirrored top to bottom", [see(gray[::-1], contract) for gray in grays]
    quarters = [
        gray[gray.shape[0] // 4 : gray.shape[0] // 2, gray.shape[1] // 4 : gray.shape[1] // 2] for gray in grays
    ]
    yield "own test images, a sixteenth enlarged", [see(part, contract) for part in quarters if min(part.shape) >= 16]
    yield from pydicom_kinds(contract)
    yield "MNI template (nilearn), axial", template_slices(contract)
    with tempfile.TemporaryDirectory() as folder:
        generate(
            Path(folder) / "phantoms",
            PhantomSettings(seed=SEED, patients=40, slices=2, size=256, planes=("axial",)),
            workers=2,
        )
        files = [path for name in contract.classes for path in sorted(Path(folder, "phantoms", name).glob("*"))]
        yield "phantoms", usable(read_slices(path.read_bytes(), path.name, contract, list) for path in files)


def pydicom_kinds(contract: Contract) -> Iterator[tuple[str, list[np.ndarray]]]:
    """The test files that pydicom's package contains, by modality; at most three frames of a file."""
    import pydicom

    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    by_modality: dict[str, list[np.ndarray]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        pixels = usable([read_slices(path.read_bytes(), path.name, contract, lambda frames: frames[:3])])
        if pixels:
            header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            by_modality.setdefault(str(header.get("Modality") or "other"), []).extend(pixels)
    for modality, pixels in sorted(by_modality.items()):
        yield f"pydicom's files, {modality}", pixels


def template_slices(contract: Contract) -> list[np.ndarray]:
    from nilearn.datasets import load_mni152_template

    volume = np.asarray(load_mni152_template(resolution=2).get_fdata(), dtype=np.float32)
    axial = np.transpose(volume[:, ::-1], (2, 1, 0))  # anterior at the top
    return usable([array_slices(axial[len(axial) // 4 : -len(axial) // 4], contract, list)])


def usable(files: object) -> list[np.ndarray]:
    """The pixels of the slices that can be used."""
    return [each.pixels for loaded in files for each in loaded if each.pixels is not None]  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(run(main))
