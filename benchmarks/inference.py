"""Time, and energy where it can be measured, of a prediction by each network of the benchmark in each of its forms.

``python -m benchmarks.inference [--models …] [--size 96] [--seconds 50] [--out FILE.md]``: torch in fp32, channels-last
and bf16 (where the processor multiplies it), ONNX Runtime, and ONNX Runtime in 8 bits. All forms of a network take
turns, a batch of one size each, so that what else the machine does meets all of them. The networks have random
weights: time does not depend on them; the accuracy in 8 bits does (`brain-dist export`).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from brain_dist.common.cores import cpu_cores
from brain_dist.config import Config, load
from brain_dist.errors import UserError, run
from brain_dist.exporting.int8 import quantise
from brain_dist.exporting.onnx_graph import write_graph
from brain_dist.exporting.speed import Speed, measure
from brain_dist.inference.network import OpenNetwork
from brain_dist.networks.create import create_network
from brain_dist.prediction.onnx_model import OnnxModel
from brain_dist.prediction.torch_model import TorchModel
from brain_dist.profiling.power import measure_power
from brain_dist.profiling.rapl import ProcessorEnergy
from brain_dist.ranks.threads import choose_threads
from brain_dist.ranks.world import discover
from brain_dist.stream.contract import Contract
from brain_dist.stream.normalize import Normalize
from brain_dist.training.precision import device_support

MODELS = (
    "configs/bench/convnext_atto.yaml,resnet18,tf_efficientnet_lite0,mobilenetv3_small_100,configs/bench/vgg11_bn.yaml"
)
CLASSES = ("glioma", "meningioma", "notumor", "pituitary")
BATCHES, ROUNDS = (1, 8, 32), 100
IMAGES = 64  # noise, for the measurement and for the scales of the 8-bit form
ENERGY_SECONDS = 2.0
Form = Callable[[np.ndarray], object]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--models", default=MODELS, help="timm's names, or YAML files with model.*; separated by commas"
    )
    parser.add_argument("--size", type=int, default=96, help="pixels per side (default: 96)")
    parser.add_argument("--seconds", type=float, default=50, help="of measuring each network (default: 50)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--busy", action="store_true", help="measure although other programs run")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="also write the table to this file")
    arguments = parser.parse_args(words)
    import torch

    load_average, cores = os.getloadavg()[0], cpu_cores()
    if load_average > cores and not arguments.busy:
        raise UserError(f"the load is {load_average:.1f} on {cores} cores; wait until it is lower, or add --busy")
    threads = choose_threads(discover())
    torch.set_num_threads(threads.count)
    command = shlex.join(["python", "-m", "benchmarks.inference", *(sys.argv[1:] if words is None else words)])
    lines = [
        "# Time and energy of a prediction", "", "```", command, "```", "",
        f"{processor(arguments.device)}; {threads}; load {load_average:.1f} at the start. {arguments.size}², random"
        " weights, noise images.",
        f"The forms of a network take turns with batches of {', '.join(map(str, BATCHES))}: medians, and 95th"
        " percentiles in brackets. CPU ms: of all threads, per image.",
        "",
        "| network | form | ms, one image | CPU ms | ms per image, best batch | CPU ms | × fp32 | joules per image |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    print("\n".join(lines), flush=True)
    for name in arguments.models.split(","):
        for line in rows(name, arguments.size, arguments.device, arguments.seconds):
            lines.append(line)
            print(line, flush=True)
    closing = f"Load at the end: {os.getloadavg()[0]:.1f}."
    print(f"\n{closing}")
    if arguments.out:
        arguments.out.write_text("\n".join([*lines, "", closing]) + "\n")
    return 0


def rows(name: str, size: int, device: str, seconds: float) -> list[str]:
    """The rows of the table for one network."""
    config = load(["--config", name] if name.endswith((".yaml", ".yml")) else ["--model.name", name])
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 1, size, size), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        forms = forms_of(config, size, pixels, device, Path(folder))
        speeds = measure(forms, pixels, BATCHES, rounds=ROUNDS, seconds=seconds)
        joules = {form: energy(forms[form], pixels, best(speeds[form]).batch, device) for form in forms}
    fastest = best(speeds["torch fp32"]).per_image
    return [row(config.model.name, form, speeds[form], fastest, joules[form]) for form in forms]


def forms_of(config: Config, size: int, pixels: np.ndarray, device: str, folder: Path) -> dict[str, Form]:
    """Name → the forms of a network, each computing the outputs of uint8 images."""
    import torch

    target = torch.device(device)
    contract = dataclasses.replace(Contract.of(config, CLASSES, ""), size=size)

    def opened(place: torch.device) -> TorchModel:
        network = create_network(config.model, len(CLASSES), seed=0, load_weights=False).eval().to(place)
        normalize = Normalize(config.data, config.model.in_chans, place, torch.float32)
        return TorchModel(OpenNetwork(network, normalize, contract, place, {}), None)

    def on_torch(layout: torch.memory_format, dtype: torch.dtype | None) -> Form:
        model = opened(target)
        network = model.opened.model.to(memory_format=layout)  # type: ignore[call-overload]

        def compute(images: np.ndarray) -> object:
            inputs = model.inputs(images).contiguous(memory_format=layout)
            with torch.no_grad(), torch.autocast(device, dtype, enabled=dtype is not None):
                return network(inputs).float().cpu()

        return compute

    forms = {
        "torch fp32": on_torch(torch.contiguous_format, None),
        "torch channels-last": on_torch(torch.channels_last, None),
    }
    if "amp" in device_support(target, config.model).precisions:
        forms["torch bf16"] = on_torch(torch.channels_last, torch.bfloat16)
    exact, small = folder / "exact.onnx", folder / "int8.onnx"
    write_graph(opened(torch.device("cpu")), pixels, exact)
    quantise(exact.read_bytes(), pixels, small)
    forms["ONNX Runtime"] = OnnxModel(exact, contract, device=device).outputs
    forms["ONNX Runtime int8"] = OnnxModel(small, contract, device="cpu").outputs
    return forms


def best(speeds: Sequence[Speed]) -> Speed:
    return min(speeds, key=lambda speed: speed.per_image)


def row(network: str, form: str, speeds: Sequence[Speed], fastest: float, joules: float | None) -> str:
    single, top = speeds[BATCHES.index(1)], best(speeds)
    cells = [
        network, form, f"{1e3 * single.median:.1f} ({1e3 * single.p95:.1f})", f"{1e3 * single.cpu:.1f}",
        f"{1e3 * top.per_image:.2f} ({1e3 * top.p95 / top.batch:.2f}) at {top.batch}",
        f"{1e3 * top.cpu / top.batch:.2f}",
        f"{fastest / top.per_image:.2f}", "not measured" if joules is None else f"{joules:.3f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def energy(form: Form, pixels: np.ndarray, batch: int, device: str) -> float | None:
    """Joules per image of a form alone, of the GPU or of the processor's packages; None if they can't be measured."""
    import torch

    counters = ProcessorEnergy()
    if device == "cpu" and counters.joules() is None:
        return None
    images, count = np.resize(pixels, (batch, *pixels.shape[1:])), 0
    with measure_power(torch.device(device)) as power:
        start, counters = time.monotonic(), ProcessorEnergy()
        while time.monotonic() < start + ENERGY_SECONDS:
            form(images)
            count += batch
        seconds, joules = time.monotonic() - start, counters.joules()
    if device == "cuda":
        joules = power["watts"] * seconds if "watts" in power else None
    return None if joules is None else joules / count


def processor(device: str) -> str:
    """The GPU, or the model of the processor as the system names it."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(run(main))
