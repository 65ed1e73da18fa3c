"""Export the network of a run to other formats, each with a certificate of parity on the run's own test images.

====== ===============================================================================================================
hf     the layout of the Hugging Face hub: ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads it
onnx   a graph for ONNX Runtime and others, without torch: pixels → logits, features, class activation maps
int8   the same graph with convolutions and products in 8 bits; ready only if it keeps the balanced accuracy
pt2    a program of torch.export with a free batch size, which needs torch but neither timm nor this project
triton a model repository of Triton Inference Server with the ONNX graph
web    the browser edition: a page with the ONNX graph in it, which answers without a server
====== ===============================================================================================================
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from brain_dist.common.files import partial_folder, write_atomically, writing
from brain_dist.errors import UserError
from brain_dist.exporting import edition, hub, int8, program, triton
from brain_dist.exporting.certificate import Certificate, certify
from brain_dist.exporting.source import Source, open_source
from brain_dist.exporting.speed import Speed, measure
from brain_dist.exporting.table import print_table
from brain_dist.ood.record import FILE as DETECTOR
from brain_dist.prediction.model import CERTIFICATE, open_model
from brain_dist.prediction.onnx_model import GRAPH
from brain_dist.prediction.outputs import Model, Outputs
from brain_dist.prediction.torch_model import TorchModel
from brain_dist.ranks.threads import choose_threads
from brain_dist.ranks.world import discover
from brain_dist.stream.contract import FILE
from brain_dist.web.build import check_libraries, write_sums


def write_onnx(source: Source, folder: Path) -> None:
    """Write the graph from pixels to logits, features and class activation maps."""
    (folder / GRAPH).write_bytes(source.onnx)


WRITERS: dict[str, Callable[[Source, Path], None]] = {
    "hf": hub.write, "onnx": write_onnx, "int8": int8.write, "pt2": program.write, "triton": triton.write,
    "web": edition.write,
}  # fmt: skip
INEXACT = ("int8",)
BATCHES, ROUNDS, SECONDS = (1, 8, 32), 20, 20.0  # of the measurement of speed


def export(
    run: Path, out: Path, targets: Sequence[str], *, step: int | str | None = None, shards: str | None = None,
    micro_batch: int = 32, npm: Path | None = None,
) -> None:  # fmt: skip
    """Write a folder for each format into ``out``, and print how each compares with the run.

    Args:
        run: the run's folder.
        out: folder of the exports; each gets a folder of its format's name, which must not exist.
        targets: names of formats.
        step: see :func:`brain_dist.inference.run.load_run`.
        shards: where the run's own shards are now.
        micro_batch: images per forward pass of the comparison.
        npm: folder in which npm installed the libraries of the browser edition.

    Raises:
        UserError: an unknown format or one that is named twice, a folder that exists, a package that is not installed,
            or the run or its shards cannot be used.
        Fault: an export in 32 bits says something else than the run, and is not kept; or the disk is full.
    """
    import torch

    from brain_dist.inference.run import load_run

    if micro_batch < 1:
        raise UserError(f"--batch {micro_batch}: must be ≥ 1")
    for target in targets:
        if target not in WRITERS or targets.count(target) > 1:
            problem = "named twice" if target in WRITERS else "unknown"
            raise UserError(f"--to {','.join(targets)}: {target!r} is {problem}; choose from {', '.join(WRITERS)}")
        if (out / target).exists():
            raise UserError(f"{out / target} exists; remove it, or choose another folder with --out")
    libraries = check_libraries(npm) if "web" in targets else None
    torch.set_num_threads(choose_threads(discover()).count)
    loaded = load_run(run, step=step, shards=shards)
    if loaded.dataset.version != loaded.trained_version:
        raise UserError(f"{loaded.dataset.root} is not what {run} was trained on; the comparison needs its own shards")
    model = open_model(run, step=loaded.step, device="cpu")
    assert isinstance(model, TorchModel)
    source = open_source(model, loaded, libraries)
    expected = _outputs(model, source.pixels, micro_batch)
    certificates, models = [], {"run": model.outputs}
    for target in targets:
        with partial_folder(out / target) as folder:
            WRITERS[target](source, folder)
            (folder / FILE).write_text(model.contract.to_json())
            if model.detector is not None:
                shutil.copyfile(run / DETECTOR, folder / DETECTOR)
            opened = open_model(folder, device="cpu")
            certificate = certify(
                target, _outputs(opened, source.pixels, micro_batch), expected, source.label, source.group,
                model.contract.classes, _size(folder), exact=target not in INEXACT,
            )  # fmt: skip
            _write(folder / CERTIFICATE, certificate)
            if target == "web":
                write_sums(folder)  # without which it does not work offline, should the rest be interrupted
        certificates.append(certificate)
        models[target] = opened.outputs
    speeds = measure(models, source.pixels, BATCHES, rounds=ROUNDS, seconds=SECONDS)
    for certificate in certificates:
        certificate.speed = [asdict(speed) for speed in speeds[certificate.target]]
        if certificate.target in INEXACT:
            certificate.slower = _slower(certificate.target, speeds)
        with writing(out):
            _write(out / certificate.target / CERTIFICATE, certificate)
            if certificate.target == "web":
                write_sums(out / "web")
    print_table(run, certificates, speeds)


def _slower(target: str, speeds: dict[str, list[Speed]]) -> str | None:
    """Which form in 32 bits is faster than ``target``, if any is, at the batch that suits each best."""
    fastest = {name: min(speed.per_image for speed in values) for name, values in speeds.items()}
    best = min((name for name in fastest if name not in INEXACT), key=fastest.__getitem__)
    if fastest[target] <= fastest[best]:
        return None
    return f"it takes {fastest[target] / fastest[best]:.2f} times as long for an image as {best}"


def _write(path: Path, certificate: Certificate) -> None:
    write_atomically(path, json.dumps(asdict(certificate), indent=1, allow_nan=False) + "\n")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != "lock")


def _outputs(model: Model, pixels: np.ndarray, micro_batch: int) -> Outputs:
    parts = [model.outputs(pixels[start : start + micro_batch]) for start in range(0, len(pixels), micro_batch)]
    maps = [part.maps for part in parts if part.maps is not None]
    return Outputs(
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.features for part in parts]),
        np.concatenate(maps) if maps else None,
    )
